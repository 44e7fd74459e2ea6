"""Tiny random models with real tokenizers, made on the spot: no network, no weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from slm.engine.engine import DraftEngine
from slm.protocol import DraftCommand

TEXT = [
    'Thought: get_weather, get_time\nAction: get_weather\nAction Input: {"city": "Paris", "unit": "c"}',
    "Thought: none\nAction: none\nThought: ask\nAction: ask\n### user\nWhat is the weather in London tomorrow?",
    'Action Input: {"zone": "CET", "days": 12, "exact": true, "orderId": null, "orderName": [1, 2]}',
]


def tool(name: str, parameters: Any = None, description: str = "") -> dict[str, Any]:
    """An OpenAI tool definition."""
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def schema(required: list[str] | None = None, **properties: Any) -> dict[str, Any]:
    """A schema of an object."""
    return {"type": "object", "properties": properties, "required": required or []}


WEATHER = tool("get_weather", schema(["city"], city={"type": "string"}, unit={"enum": ["c", "f"]}))
TIME = tool("get_time", schema(["zone"], zone={"enum": ["CET", "UTC"]}))


def command(**changes: Any) -> DraftCommand:
    """A draft command with two tools and one question, changed as asked."""
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": "What is the weather in London?"}],
        "tools": [WEATHER, TIME],
        "max_tokens": 64,
    }
    return DraftCommand(**{**fields, **changes})


def _tokenizer(specials: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama of random weights with a ChatML tokenizer and grouped heads."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = _tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = LlamaConfig(
            vocab_size=448, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=2,
            initializer_range=0.2,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", unk_token="<|endoftext|>", bos_token="<|im_start|>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Qwen2 of random weights, biases included, with tied output weights and a ChatML tokenizer."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = _tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = Qwen2Config(
            vocab_size=448, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=2, pad_token_id=0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rms_norm_eps=1e-6, tie_word_embeddings=True,
            initializer_range=0.2,
        )  # fmt: skip
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # drawn as nought
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def opt_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer OPT of random weights whose tokenizer begins every text with `</s>`, as OPT's does."""
    folder = tmp_path_factory.mktemp("opt")
    tokenizer = _tokenizer(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    with torch.random.fork_rng():
        torch.manual_seed(11)
        config = OPTConfig(
            vocab_size=400, hidden_size=48, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=1024, word_embed_proj_dim=48, bos_token_id=1, eos_token_id=1, pad_token_id=0,
            init_std=0.2,
        )  # fmt: skip
        OPTForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> DraftEngine:
    """The tiny Llama, loaded."""
    return DraftEngine.load(llama_folder)


@pytest.fixture(scope="session")
def opt(opt_folder: Path) -> DraftEngine:
    """The tiny OPT, loaded."""
    return DraftEngine.load(opt_folder)


@pytest.fixture(params=["llama", "opt"])
def engine(request: pytest.FixtureRequest) -> DraftEngine:
    """Each of the two tiny models."""
    made: DraftEngine = request.getfixturevalue(request.param)
    return made
