"""The loaded model, adapter merged, as a GGUF file in Q8_0: the same weights for llama.cpp as for our engine.

Names, tokenizer and settings are taken over from the GGUF file that the base model came in; only tensors are new.
Norms stay in float32, everything else is Q8_0 (8 bits, a scale for each 32 weights).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys, LlamaFileType
from gguf.quants import quantize
from transformers import LlamaForCausalLM

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


def write_q8_0(model: LlamaForCausalLM, base: Path, target: Path) -> None:
    """Write a Llama with tied output weights.

    Args:
        base: GGUF file of the same architecture and tokenizer.

    Raises:
        ValueError: the output weights are the model's own, not those of the embedding.
    """
    if not model.config.tie_word_embeddings:
        raise ValueError("only tied output weights are written")
    reader = GGUFReader(base)
    architecture = str(reader.fields[Keys.General.ARCHITECTURE].contents())
    writer = GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name in (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE) or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        items = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=items)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    for name, weight in _tensors(model):
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quantize(weight, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: LlamaForCausalLM) -> Iterator[tuple[str, np.ndarray]]:
    yield "token_embd.weight", _array(model.model.embed_tokens.weight)
    yield "output_norm.weight", _array(model.model.norm.weight)
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for index, layer in enumerate(model.model.layers):
        for ours, theirs in _OF_LAYER.items():
            weight = _array(layer.get_submodule(ours).weight)
            if theirs in heads:
                weight = _interleaved(weight, heads[theirs])
            yield f"blk.{index}.{theirs}.weight", weight


def _array(weight: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(weight.detach().float().numpy())


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order in which ggml turns them: pairs lie side by side there, here in two halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
