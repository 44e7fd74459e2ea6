"""A loaded model, adapter merged, as a GGUF file: the same weights for llama.cpp as for our engine.

Names, tokenizer and settings are taken over from the GGUF file that the base model came in; only tensors are new.
Norms and biases stay in float32, everything else is Q8_0 (8 bits, a scale for each 32 weights) or float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys, LlamaFileType
from gguf.quants import quantize
from transformers import PreTrainedModel

Packing = Literal["q8_0", "f16"]
_PACKINGS = {
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
}
_OF_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_INTERLEAVED = {"llama": True, "qwen2": False}
"""Architectures in GGUF's words, and whether ggml turns pairs of rows there that lie side by side."""


def write_gguf(model: PreTrainedModel, base: Path, target: Path, packing: Packing = "q8_0") -> None:
    """Write a Llama or a Qwen2 to `target`.

    Args:
        base: GGUF file of the same architecture and tokenizer.

    Raises:
        ValueError: the base file is of an architecture whose tensors are not known here.
        OSError: the base file cannot be read, or `target` not be written.
    """
    reader = GGUFReader(base)
    architecture = str(reader.fields[Keys.General.ARCHITECTURE].contents())
    if architecture not in _INTERLEAVED or architecture != model.config.model_type:
        raise ValueError(f"a {model.config.model_type} is not written on a base file of architecture {architecture}")
    kind, file_type = _PACKINGS[packing]
    writer = GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name in (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE) or field.name.startswith("GGUF."):
            continue
        value = field.types[0]
        items = field.types[-1] if value == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), value, sub_type=items)
    writer.add_file_type(file_type)
    for name, weight in _tensors(model, interleaved=_INTERLEAVED[architecture]):
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: PreTrainedModel, *, interleaved: bool) -> Iterator[tuple[str, np.ndarray]]:
    yield "token_embd.weight", _array(model.model.embed_tokens.weight)
    if not model.config.tie_word_embeddings:  # a file without it has the embedding for its output
        yield "output.weight", _array(model.lm_head.weight)
    yield "output_norm.weight", _array(model.model.norm.weight)
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in _OF_LAYER.items():
            for part, weight in layer.get_submodule(ours).named_parameters():
                array = _array(weight)
                if interleaved and theirs in heads:
                    array = _interleaved(array, heads[theirs])
                yield f"blk.{index}.{theirs}.{part}", array


def _array(weight: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(weight.detach().float().numpy())


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order in which ggml turns them: pairs lie side by side there, here in two halves."""
    rows, *columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, *columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, *columns))
