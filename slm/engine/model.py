"""A causal language model and its tokenizer from a Hugging Face folder, with an optional adapter merged in.

safetensors only, from the disk only, and never code from the folder. Every layer must have full attention (the prefix
cache relies on it); models with sliding windows or recurrent layers are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from slm.engine.kv_cache import Shape
from slm.engine.tokenizer import TokenizerError, Tokens
from slm.format.pattern import PATTERN_VERSION
from slm.protocol import PROTOCOL_VERSION, Info
from slm.weights.adapter import add_adapter
from slm.weights.folders import TOKENIZER, FolderError, read_adapter, read_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
"""Torch types that weights are loaded in; the engine quantises `int8` from float32 and computes the rest in float32."""
DTypeName = Literal["float32", "bfloat16", "int8"]
DeviceName = Literal["cpu", "cuda"]


class LoadError(ValueError):
    """A folder cannot be loaded; the message says why and holds no secrets."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run. `vocabulary` is the number of rows of its logits."""

    model: PreTrainedModel
    tokens: Tokens
    shape: Shape
    context_tokens: int
    vocabulary: int
    info: Info


def use_threads(count: int) -> None:
    """Set the number of CPU threads that torch uses in this process."""
    torch.set_num_threads(count)


def load(
    folder: Path, adapter: Path | None = None, dtype: DTypeName = "float32", device: DeviceName = "cpu"
) -> LoadedModel:
    """Load a model for inference. `cuda` is the first GPU.

    Raises:
        LoadError: the folder or the adapter is incomplete, damaged or of a kind that is not supported, or the device is
            not there or cannot compute in this precision.
    """
    if device == "cuda" and dtype == "int8":
        raise LoadError("device cuda: int8 runs on the CPU only")
    if device == "cuda" and not torch.cuda.is_available():
        raise LoadError("device cuda: torch finds no CUDA GPU here, or is a build without CUDA")
    try:
        source, added = read_model(folder), read_adapter(adapter) if adapter else None
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=DTYPES[dtype],
            output_loading_info=True,
        )
        if report["missing_keys"]:
            raise LoadError(f"weights are missing, {min(report['missing_keys'])} among them")
        model.eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if added is not None:
            add_adapter(model, added.path)
        model.requires_grad_(False)
        if device != "cpu":
            model.to(device)
        context = int(model.config.max_position_embeddings)
        vocabulary = int(model.get_output_embeddings().weight.shape[0])
        return LoadedModel(
            model=model,
            tokens=_tokens(folder, model, tokenizer, vocabulary),
            shape=_shape(model, device),
            context_tokens=context,
            vocabulary=vocabulary,
            info=Info(
                protocol=PROTOCOL_VERSION,
                model=source.name,
                weights_sha256=source.weights_sha256,
                adapter_sha256=added.sha256 if added else None,
                pattern_version=PATTERN_VERSION,
                architecture=type(model).__name__,
                dtype=dtype,
                context_tokens=context,
            ),
        )
    except (FolderError, OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as exc:
        raise LoadError(f"cannot load {folder.name}: {exc}") from exc


def _tokens(folder: Path, model: PreTrainedModel, tokenizer: Any, vocabulary: int) -> Tokens:
    """The folder's tokenizer as its file says: some classes of transformers put steps of their own around it, by which
    characters would be composed and a text not come back."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (folder / TOKENIZER).is_file():
        backend = Tokenizer.from_file(str(folder / TOKENIZER))
    if backend is None:
        raise TokenizerError("the tokenizer has no fast form (tokenizer.json)")
    ends: set[int] = set()
    for source in (model.generation_config, model.config, tokenizer):
        declared = getattr(source, "eos_token_id", None)
        ends.update(declared if isinstance(declared, list) else [] if declared is None else [declared])
    begins = tokenizer("a").input_ids[0]
    return Tokens(backend, vocabulary, ends, begins if begins == tokenizer.bos_token_id else None)


def _shape(model: PreTrainedModel, device: DeviceName) -> Shape:
    """Measured by one token, since configurations name these figures in many ways."""
    probe = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.long, device=device), past_key_values=probe, use_cache=True)
    sizes = {(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in probe.layers if layer.is_initialized}
    if any(type(layer) is not DynamicLayer for layer in probe.layers) or len(sizes) != 1:
        raise LoadError(f"{type(model).__name__} has layers without full attention or of different shapes")
    (keys, values), *_ = sizes
    if keys != values:
        raise LoadError(f"{type(model).__name__} has keys and values of different shapes")
    return Shape(layers=len(probe.layers), heads=keys[1], head_dim=keys[3], dtype=model.dtype, device=device)
