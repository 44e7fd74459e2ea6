"""A LoRA adapter in PEFT's folder layout, added into a model's weights at load.

W ← W + s · B · A with s = α / r, or α / √r where `use_rslora` is set (Hu et al. 2021, arXiv 2106.09685; Kalajdzievski
2023, arXiv 2312.03732). The folder holds `adapter_config.json` and `adapter_model.safetensors`; peft itself is not
imported. Whatever this cannot add exactly is refused: other methods, DoRA, biases, whole modules, ranks by pattern.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from slm.weights.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_PREFIX = "base_model.model."
_HARMLESS = frozenset(
    """r lora_alpha use_rslora target_modules exclude_modules layers_to_transform layers_pattern lora_dropout task_type
    base_model_name_or_path revision inference_mode auto_mapping peft_version megatron_core qalora_group_size
    """.split()
)
"""Settings that the formula takes up, that the weights' names already say, or that matter in training only."""
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
}
"""Settings with the values under which the formula is the one above. Any other must be empty."""


class AdapterError(ValueError):
    """An adapter that cannot be added to this model; the message says which setting or weight."""


def add_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Add the adapter in `folder` to `model` in place, computing in float32.

    Raises:
        AdapterError: the folder is incomplete, asks for something unsupported, or does not fit the model; the model
            may then be partly changed and must not be used.
    """
    scale = _scale(adapter_config(folder))
    for name, (down, up) in _pairs(folder).items():
        try:
            weight = model.get_submodule(name).weight
        except AttributeError as exc:
            raise AdapterError(f"the model has no {name}") from exc
        if not isinstance(weight, torch.Tensor) or weight.shape != (up.shape[0], down.shape[1]):
            raise AdapterError(f"{name}: the adapter was made for another shape")
        with torch.no_grad():
            weight.copy_(weight.float() + scale * (up.float() @ down.float()))


def adapter_config(folder: Path) -> Mapping[str, Any]:
    """The configuration of the adapter in `folder`.

    Raises:
        AdapterError: it cannot be read, or asks for something unsupported.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise AdapterError(f"cannot read {ADAPTER_CONFIG}: {type(exc).__name__}") from exc
    if not isinstance(config, dict):
        raise AdapterError(f"{ADAPTER_CONFIG} holds no object")
    for key, value in config.items():
        if key not in _HARMLESS and value and value not in _PLAIN.get(key, ()):
            raise AdapterError(f"{ADAPTER_CONFIG}: {key} is set to what is not supported")
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{ADAPTER_CONFIG}: peft_type is not LORA")
    return config


def _scale(config: Mapping[str, Any]) -> float:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise AdapterError(f"{ADAPTER_CONFIG}: r must be a positive integer and lora_alpha a number")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pairs(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Module name → (A of shape (r, in), B of shape (out, r))."""
    try:
        weights = load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as exc:
        raise AdapterError(f"cannot read {ADAPTER_WEIGHTS}: {type(exc).__name__}") from exc
    if not weights:
        raise AdapterError(f"{ADAPTER_WEIGHTS} holds no weights")
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in weights.items():
        name, dot, half = key.removeprefix(_PREFIX).rpartition(".lora_")
        if not dot or half not in ("A.weight", "B.weight") or tensor.ndim != 2:
            raise AdapterError(f"{ADAPTER_WEIGHTS}: {key} is not supported")
        halves.setdefault(name, {})[half[0]] = tensor
    for name, pair in halves.items():
        if len(pair) != 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise AdapterError(f"{ADAPTER_WEIGHTS}: {name} lacks a matching half")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}
