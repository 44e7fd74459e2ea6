"""A model with a LoRA adapter that is to be trained: a fresh adapter, or an existing one to continue from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from slm.training.recipe import Lora
from slm.weights.adapter import AdapterError, adapter_config

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class AdapterStartError(ValueError):
    """A run cannot start from this adapter; the message says why."""


def trainable(model: PreTrainedModel, lora: Lora, start: Path | None, *, seed: int) -> PeftModel:
    """Freeze the model and put an adapter on it whose weights are trained from `lora.from_layer` on.

    Args:
        start: folder of an adapter of the same rank and alpha; None makes a fresh one, which changes nothing yet.
        seed: of a fresh adapter's first weights.

    Raises:
        AdapterStartError: the adapter cannot be read, or is of another rank or scale; or the model has no numbered
            layers for `lora.from_layer` to count.
    """
    model.requires_grad_(False)
    if start is None:
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng():  # peft draws from the process's generator
            torch.manual_seed(seed)
            made = get_peft_model(model, config)
    else:
        try:
            found = adapter_config(start)
        except AdapterError as error:
            raise AdapterStartError(f"start: {error}") from error
        if (found["r"], found["lora_alpha"]) != (lora.rank, lora.alpha):
            raise AdapterStartError(
                f"start: rank {found['r']} and alpha {found['lora_alpha']}, the recipe has {lora.rank} and {lora.alpha}"
            )
        made = PeftModel.from_pretrained(model, str(start), is_trainable=True)
        for config in made.peft_config.values():  # where peft looks for the base's configuration when it saves
            config.base_model_name_or_path = model.config.name_or_path
    if lora.from_layer:
        _freeze_below(made, lora.from_layer)
    return made


def _freeze_below(model: PeftModel, first: int) -> None:
    layers = {name: int(found[1]) for name, _ in model.named_parameters() if (found := _LAYER.search(name))}
    if first > max(layers.values(), default=-1):
        raise AdapterStartError(f"lora.from_layer: the model has no layer {first} under a name like layers.{first}")
    for name, weight in model.named_parameters():
        if layers.get(name, first) < first:
            weight.requires_grad_(False)
