"""The conversion itself, on a tiny GGUF file made on the spot."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from tokenizers import Tokenizer, pre_tokenizers

from slm.engine.model import load
from slm.format.pattern import Segment
from slm.weights.convert import ConversionFailed, check_files, convert_in_process_of_its_own, read_manifest
from slm.weights.folders import read_model

pytestmark = pytest.mark.slow

WIDTH, INNER, HEADS, KV_HEADS = 64, 96, 4, 2
KV_WIDTH = WIDTH // HEADS * KV_HEADS
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SHA256 = "0" * 64


def tokens() -> tuple[list[str], list[str]]:
    """A byte-level vocabulary with its merges: two line feeds are one token."""
    return [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"], ["Ċ Ċ"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama in Q4_1 and F32; the weights as they are after quantisation, by their GGUF names."""
    vocabulary, merges = tokens()
    writer = begun(path, "llama", vocabulary, merges, "smollm")
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_bos_token_id(1)
    writer.add_unk_token_id(0)
    return filled(writer, len(vocabulary))


def write_qwen(path: Path, *, own_output: bool) -> dict[str, np.ndarray]:
    """The same as a Qwen2: biases, rows of the vocabulary without a token, and the output matrix beside the embedding,
    the same one more finely rounded or, with `own_output`, another one."""
    vocabulary, merges = tokens()
    vocabulary += ["[PAD260]", "[PAD261]"]
    writer = begun(path, "qwen2", vocabulary, merges, "qwen2")
    writer.add_bos_token_id(0)
    output = np.random.default_rng(4 if own_output else 3).normal(size=(len(vocabulary), WIDTH)).astype(np.float32)
    packed = quantize(output, GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    biases = {}
    for name, size in (("attn_q", WIDTH), ("attn_k", KV_WIDTH), ("attn_v", KV_WIDTH)):
        biases[name] = np.random.default_rng(size).normal(size=size).astype(np.float32)
        writer.add_tensor(f"blk.0.{name}.bias", biases[name])
    made = filled(writer, len(vocabulary))
    return {**made, "output": dequantize(packed, GGMLQuantizationType.Q8_0), **biases}


def begun(path: Path, architecture: str, vocabulary: list[str], merges: list[str], split: str) -> GGUFWriter:
    """A file with its settings and its tokenizer."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(vocabulary)
    writer.add_token_types([kind(token) for token in vocabulary])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    return writer


def kind(token: str) -> TokenType:
    """What a GGUF file says of a token."""
    if token.startswith("[PAD"):
        return TokenType.UNUSED
    return TokenType.CONTROL if token in SPECIALS else TokenType.NORMAL


def filled(writer: GGUFWriter, vocabulary: int) -> dict[str, np.ndarray]:
    """Write the weights that both have, and the file."""
    shapes = {
        "token_embd": (vocabulary, WIDTH),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (KV_WIDTH, WIDTH),
        "blk.0.attn_v": (KV_WIDTH, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    random = np.random.default_rng(3)  # the embedding is drawn first
    made = {}
    for name, shape in shapes.items():
        packed = quantize(random.normal(size=shape).astype(np.float32), GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q4_1)
        made[name] = dequantize(packed, GGMLQuantizationType.Q4_1)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        made[name] = random.normal(size=WIDTH).astype(np.float32)
        writer.add_tensor(f"{name}.weight", made[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs lie side by side in GGUF's Llama and half a head apart in transformers' Llama."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder and the weights that it was made of."""
    home = tmp_path_factory.mktemp("convert")
    made = write_gguf(home / "tiny.gguf")
    (home / "tiny").mkdir()
    convert_in_process_of_its_own(home / "tiny.gguf", home / "tiny", SHA256)
    return home / "tiny", made


def test_every_weight_is_the_unpacked_one(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Rounded to bfloat16 and with rotary halves in order; nothing is trained, scaled or left packed."""
    folder, made = converted
    found = load_file(folder / "model.safetensors")
    made = {
        **made,
        "blk.0.attn_q": halves(made["blk.0.attn_q"], HEADS),
        "blk.0.attn_k": halves(made["blk.0.attn_k"], KV_HEADS),
    }
    names = {
        "token_embd": "embed_tokens",
        "output_norm": "norm",
        "blk.0.attn_norm": "layers.0.input_layernorm",
        "blk.0.ffn_norm": "layers.0.post_attention_layernorm",
        **{f"blk.0.attn_{x}": f"layers.0.self_attn.{x}_proj" for x in "qkv"},
        "blk.0.attn_output": "layers.0.self_attn.o_proj",
        **{f"blk.0.ffn_{x}": f"layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    assert set(found) == {f"model.{name}.weight" for name in names.values()}
    for theirs, ours in names.items():
        assert torch.equal(found[f"model.{ours}.weight"], bfloat16(made[theirs])), ours


def test_the_tokenizer_keeps_control_words_whole_and_digits_apart(
    converted: tuple[Path, dict[str, np.ndarray]],
) -> None:
    """The step that transformers leaves out stands in the folder."""
    tokenizer = Tokenizer.from_file(str(converted[0] / "tokenizer.json"))
    assert tokenizer.encode("<|im_start|>a\n\n12").tokens == ["<|im_start|>", "a", "ĊĊ", "1", "2"]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder of a Qwen2 whose file holds its tied matrix twice, and the weights that it was made of."""
    home = tmp_path_factory.mktemp("qwen")
    made = write_qwen(home / "tiny.gguf", own_output=False)
    (home / "tiny").mkdir()
    convert_in_process_of_its_own(home / "tiny.gguf", home / "tiny", SHA256)
    return home / "tiny", made


def bfloat16(weight: np.ndarray) -> torch.Tensor:
    """As the folder holds it."""
    return torch.from_numpy(np.array(weight, dtype=np.float32)).bfloat16()


def test_of_two_roundings_of_one_matrix_the_finer_is_taken_for_both(qwen: tuple[Path, dict[str, np.ndarray]]) -> None:
    """The folder holds one matrix, that of the output; biases and rows are in the file's order."""
    folder, made = qwen
    found = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in found
    assert torch.equal(found["model.embed_tokens.weight"], bfloat16(made["output"]))
    assert torch.equal(found["model.layers.0.self_attn.q_proj.weight"], bfloat16(made["blk.0.attn_q"]))
    for name in "qkv":
        assert torch.equal(found[f"model.layers.0.self_attn.{name}_proj.bias"], bfloat16(made[f"attn_{name}"]))
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"] is True


def test_matrices_of_their_own_stay_apart(tmp_path: Path) -> None:
    """A model whose output is not its embedding keeps both."""
    made = write_qwen(tmp_path / "tiny.gguf", own_output=True)
    (tmp_path / "tiny").mkdir()
    convert_in_process_of_its_own(tmp_path / "tiny.gguf", tmp_path / "tiny", SHA256)
    found = load_file(tmp_path / "tiny" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], bfloat16(made["output"]))
    assert torch.equal(found["model.embed_tokens.weight"], bfloat16(made["token_embd"]))


def test_a_qwen_s_tokenizer_gives_every_text_back(qwen: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Digits stand alone, no character is composed, and rows without a token bear no name that a draft could spell."""
    tokens = load(qwen[0]).tokens
    assert [tokens.piece(id_) for id_ in tokens.encode("a\n\n12")] == [b"a", b"\n\n", b"1", b"2"]
    text = "e\u0301 <|im_start|> [PAD260]"
    ids = tokens.encode(text)
    assert b"".join(map(tokens.piece, ids)) == text.encode()
    assert not tokens.special_ids & set(ids)
    assert len(tokens.prompt([Segment("<|im_start|>", control=True)])) == 1
    assert "[PAD260]" not in Tokenizer.from_file(str(qwen[0] / "tokenizer.json")).get_vocab()


def test_the_manifest_covers_the_folder(converted: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Every file but the manifest is in it, and the folder is one that the worker accepts."""
    folder, _ = converted
    manifest = read_manifest(folder)
    check_files(folder, manifest, content=True)
    assert set(manifest.files) == {path.name for path in folder.iterdir()} - {"smallcall_manifest.json"}
    assert (manifest.source_sha256, manifest.dtype) == (SHA256, "bfloat16")
    assert manifest.weights_sha256 == read_model(folder).weights_sha256


def test_what_transformers_says_of_a_bad_file_is_passed_on(tmp_path: Path) -> None:
    """The converting process ends in an error; the caller gets one line of it."""
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    (tmp_path / "out").mkdir()
    with pytest.raises(ConversionFailed, match=r"bad\.gguf ended with code 1: \w+"):
        convert_in_process_of_its_own(tmp_path / "bad.gguf", tmp_path / "out", SHA256)


def test_a_conversion_that_hangs_is_ended(tmp_path: Path) -> None:
    """The time-out is the caller's."""
    with pytest.raises(ConversionFailed, match="more than 0 s"):
        convert_in_process_of_its_own(tmp_path / "bad.gguf", tmp_path / "out", SHA256, timeout_s=0.01)
