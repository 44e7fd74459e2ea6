"""A model with a LoRA adapter that is to be trained: a fresh one, or one to go on from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from slm.adapter import AdapterError, adapter_config
from slm.recipe import Lora

_LAYER = re.compile(r"\.layers\.(\d+)\.")


class AdapterStartError(ValueError):
    """An adapter that a run cannot go on from; the message says why."""


def trainable(model: PreTrainedModel, lora: Lora, start: Path | None, *, seed: int) -> PeftModel:
    """The model, frozen, under an adapter whose weights are trained from `lora.from_layer` on.

    Args:
        start: folder of an adapter of the same rank and alpha; None makes a fresh one, which changes nothing yet.
        seed: of a fresh adapter's first weights.

    Raises:
        AdapterStartError: the adapter cannot be read, or is of another rank or scale.
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
    for name, weight in made.named_parameters():
        layer = _LAYER.search(name)
        if layer and int(layer[1]) < lora.from_layer:
            weight.requires_grad_(False)
    return made
