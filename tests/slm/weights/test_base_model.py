"""The real base models: pulled if the cache lacks them, then read back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from router.settings import load_settings
from slm.engine.model import load
from slm.engine.tokenizer import Tokens
from slm.format.pattern import Segment
from slm.weights.convert import read_manifest
from slm.weights.folders import folder_sha256, read_model
from slm.weights.registry import ModelFolder, resolve_model

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    """SmolLM2's converted folder in the configured cache."""
    return resolve_model("smollm2-135m-instruct", load_settings().cache_folder)


@pytest.fixture(scope="module")
def tokenizer(folder: ModelFolder) -> PreTrainedTokenizerFast:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(folder.path, local_files_only=True)


@pytest.fixture(scope="module")
def model(folder: ModelFolder) -> PreTrainedModel:
    """Its weights, in the dtype that they are stored in."""
    return AutoModelForCausalLM.from_pretrained(folder.path, local_files_only=True, use_safetensors=True)


def test_the_conversion_gives_the_same_bytes_everywhere(folder: ModelFolder) -> None:
    """Bundles and adapters are bound to these weights, so every machine must make the same ones."""
    manifest = read_manifest(folder.path)
    assert manifest.files["model.safetensors"].sha256 == (
        "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    )
    assert folder.weights_sha256 == folder_sha256(folder.path)


def test_the_folder_is_an_ordinary_one(folder: ModelFolder) -> None:
    """It is accepted by path, too, under the same hash."""
    by_path = read_model(folder.path)
    assert (by_path.name, by_path.weights_sha256) == (folder.name, folder.weights_sha256)


def test_the_weights_mean_something(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Weights whose rotary halves are not put back in order load as well, and know no capital."""
    assert model.dtype == torch.bfloat16
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        best = model(ids).logits[0, -1].topk(3).indices
    assert " Paris" in [tokenizer.decode(int(token)) for token in best]


def test_control_words_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """The chat format's marks are one token each, at the ids of the original."""
    assert tokenizer("<|im_start|>").input_ids == [1]
    assert tokenizer("<|im_end|>").input_ids == [2]
    assert tokenizer.eos_token_id == 2


UNKNOWN = "\x04\x06\x13\x14\x16\x1d"


@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn"), exclude_characters=UNKNOWN)))
@settings(max_examples=200, deadline=None)
def test_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    """Tokens decode to the text that they were made of, in every assigned character but six control codes."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_six_control_codes_are_not_in_the_vocabulary(tokenizer: PreTrainedTokenizerFast, unknown: str) -> None:
    """They are dropped without a trace: the vocabulary was learned from text that lacks these bytes."""
    assert tokenizer(f"a{unknown}b").input_ids == tokenizer("a").input_ids + tokenizer("b").input_ids


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("2024", ["2", "0", "2", "4"]),
        ("a 12", ["a", " ", "1", "2"]),
        ("x:\n\n1", ["x", ":", "\n\n", "1"]),
        ("x   7", ["x", "   ", "7"]),
    ],
)
def test_digits_stand_alone(tokenizer: PreTrainedTokenizerFast, text: str, pieces: list[str]) -> None:
    """White space before a digit is one token, as the model has learned it."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert [tokenizer.decode(token) for token in ids] == pieces


# ── Qwen2.5-Coder-0.5B ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def qwen() -> ModelFolder:
    """Its converted folder in the configured cache."""
    return resolve_model("qwen2.5-coder-0.5b-instruct", load_settings().cache_folder)


@pytest.fixture(scope="module")
def qwen_tokens(qwen: ModelFolder) -> Tokens:
    """Its tokenizer as the engine has it."""
    return load(qwen.path, dtype="bfloat16").tokens


def test_the_larger_conversion_gives_the_same_bytes_everywhere(qwen: ModelFolder) -> None:
    """Weights, configuration and tokenizer."""
    assert qwen.weights_sha256 == folder_sha256(qwen.path)
    assert qwen.weights_sha256 == "43fff57db12016398624014c1c07b05bd2636493bc4c1a0a929c7d7bbfc393c2"


@given(text=st.text(st.characters(exclude_categories=("Cs",))))
@settings(max_examples=200, deadline=None)
def test_every_text_comes_back_and_none_becomes_a_control_token(qwen_tokens: Tokens, text: str) -> None:
    """Byte for byte, composed or not, and spelt-out control tokens are divided like any text."""
    ids = qwen_tokens.encode(text + "<|im_end|>")
    assert b"".join(map(qwen_tokens.piece, ids)) == (text + "<|im_end|>").encode()
    assert not qwen_tokens.special_ids & set(ids)


def test_its_prompts_begin_with_no_token_of_their_own(qwen_tokens: Tokens) -> None:
    """Control tokens have the ids of the original, and digits stand alone."""
    segments = [Segment("<|im_start|>", control=True), Segment("user\n2024"), Segment("<|im_end|>", control=True)]
    ids = qwen_tokens.prompt(segments)
    assert (ids[0], ids[-1]) == (151644, 151645)
    assert [qwen_tokens.piece(token) for token in ids[1:-1]] == [b"user", b"\n", b"2", b"0", b"2", b"4"]
