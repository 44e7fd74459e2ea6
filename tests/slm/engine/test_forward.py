"""The forward passes: the lean one computes what transformers computes, whoever shares the pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from slm.engine.forward import PrecisionError, TransformersForward, forward_of
from slm.engine.kv_cache import KVCache, Shape, TokenChunk
from slm.engine.llama import LlamaForward

SHAPE = Shape(layers=2, heads=2, head_dim=12, dtype=torch.float32)
IDS = list(range(3, 43))


def fresh(folder: Path) -> PreTrainedModel:
    """The model in transformers' own form."""
    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval().requires_grad_(False)


def whole(folder: Path, ids: list[int]) -> torch.Tensor:
    """Logits of a plain pass over a whole text: shape (tokens, vocabulary)."""
    with torch.inference_mode():
        return fresh(folder)(torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("architecture", ["llama_folder", "qwen_folder"])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [17, 1, 3, 12, 7]])
def test_the_lean_pass_is_transformers_pass(
    request: pytest.FixtureRequest, architecture: str, sizes: list[int]
) -> None:
    """However a text is divided into chunks, every logit equals that of one plain pass over it."""
    folder = request.getfixturevalue(architecture)
    forward = forward_of(fresh(folder))
    assert isinstance(forward, LlamaForward)
    kv, got = KVCache(SHAPE, 64), []
    with torch.inference_mode():
        for size in sizes:
            start = kv.length
            got.append(forward([TokenChunk(kv, IDS[start : start + size], size)]).logits)
            assert kv.length == start + size
    torch.testing.assert_close(torch.cat(got), whole(folder, IDS), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama_folder", "opt_folder"])
def test_chunks_of_one_pass_do_not_see_each_other(request: pytest.FixtureRequest, architecture: str) -> None:
    """Chunks of different lengths, places and rows in one pass get the logits that each text gets alone."""
    folder = request.getfixturevalue(architecture)
    shape = SHAPE if architecture == "llama_folder" else Shape(2, 4, 12, torch.float32)
    forward = forward_of(fresh(folder))
    texts = [IDS[:9], IDS[5:30], IDS[::-1]]
    memories = [KVCache(shape, 64) for _ in texts]
    with torch.inference_mode():
        forward([TokenChunk(memories[1], texts[1][:20], 0)])
        reads = [(0, 9, 2), (20, 25, 5), (0, 33, 0)]
        chunks = [TokenChunk(m, t[a:b], rows) for m, t, (a, b, rows) in zip(memories, texts, reads, strict=True)]
        got = forward(chunks).logits
        last = forward([TokenChunk(memories[2], texts[2][33:], 7)]).logits
    expected = torch.cat([whole(folder, texts[0])[-2:], whole(folder, texts[1])[-5:]])
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(last, whole(folder, texts[2])[-7:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
        {"head_dim": 20, "rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ],
)
def test_every_llama_that_fits_is_computed_right(changes: dict[str, Any]) -> None:
    """Biases, tied heads, ungrouped heads, odd head sizes and other angles give transformers' logits."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LlamaConfig(**{
            "vocab_size": 64, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "initializer_range": 0.3, **changes,
        })  # fmt: skip
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    ids = [7, 1, 40, 3, 3, 22, 63, 9]
    shape = Shape(2, config.num_key_value_heads, config.head_dim, torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids]), use_cache=False).logits[0]
        got = forward_of(model)([TokenChunk(KVCache(shape, 16), ids, 8)]).logits
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def test_weights_are_held_once(llama_folder: Path) -> None:
    """The joined weights are the model's own: it still computes the same, and from the same cache."""
    model = fresh(llama_folder)
    forward_of(model)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.untyped_storage().data_ptr() == attention.v_proj.weight.untyped_storage().data_ptr()
    with torch.inference_mode():
        logits = model(torch.tensor([IDS]), use_cache=False).logits[0]
    torch.testing.assert_close(logits, whole(llama_folder, IDS))


def test_other_models_get_transformers_own_pass(opt_folder: Path) -> None:
    """OPT, angles that depend on the length and sliding windows are left to transformers; int8 is refused there."""
    assert isinstance(forward_of(fresh(opt_folder)), TransformersForward)
    dynamic = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
            rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        )
    )  # fmt: skip
    assert isinstance(forward_of(dynamic), TransformersForward)
    windows = Qwen2Config(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, use_sliding_window=True, sliding_window=4, max_window_layers=0,
    )  # fmt: skip
    assert isinstance(forward_of(Qwen2ForCausalLM(windows)), TransformersForward)
    with pytest.raises(PrecisionError, match="OPTForCausalLM"):
        forward_of(fresh(opt_folder), int8=True)


@pytest.mark.parametrize("architecture", ["llama_folder", "qwen_folder"])
def test_int8_stays_near_full_precision(request: pytest.FixtureRequest, architecture: str) -> None:
    """Weights in int8 move the distributions little, and none of the model's own weights are kept beside them."""
    folder = request.getfixturevalue(architecture)
    model = fresh(folder)
    forward = forward_of(model, int8=True)
    assert not any(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    with torch.inference_mode():
        kv = KVCache(SHAPE, 64)
        assert forward([TokenChunk(kv, IDS[:12], 0)]).logits.shape == (0, 448)
        got = forward([TokenChunk(kv, IDS[12:], 28)]).logits.log_softmax(-1)
    expected = whole(folder, IDS)[12:].log_softmax(-1)
    assert float((expected.exp() * (expected - got)).sum(-1).mean()) < 0.02
    assert not torch.equal(got, expected)


def test_inner_states_are_those_of_the_layers(llama_folder: Path) -> None:
    """The states kept for the signals are the inner layers' residual stream and the last state, behind the norm."""
    model = fresh(llama_folder)
    with torch.inference_mode():
        out = model(torch.tensor([IDS]), use_cache=False, output_hidden_states=True)
        expected = torch.stack([model.model.norm(out.hidden_states[1][0]), out.hidden_states[-1][0]])
        states = forward_of(model)([TokenChunk(KVCache(SHAPE, 64), IDS, 40)]).states
    assert states is not None
    torch.testing.assert_close(states, expected, atol=2e-5, rtol=1e-4)
