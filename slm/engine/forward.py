"""Forward passes: new tokens of several drafts in, logits behind the last of each out.

`forward_of` picks the lean pass for Llamas and Qwen2s, and transformers' own for everything else. Both write keys and
values into each draft's own buffer and read none but its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel

from slm.engine.kv_cache import TokenChunk
from slm.engine.llama import LlamaForward, fits
from slm.engine.signals import Pass, Table


class PrecisionError(ValueError):
    """This model cannot be run in the precision that was asked for."""


class Forward(Protocol):
    """One forward pass over chunks of different drafts."""

    @property
    def head(self) -> Table | None:
        """The output matrix, shape (vocabulary, hidden), by which inner states are read; None without them."""

    def __call__(self, chunks: Sequence[TokenChunk]) -> Pass:
        """One row for each wanted row of the chunks, in order. Each chunk's `kv` grows by the chunk's ids."""


class TransformersForward:
    """Any causal language model of transformers, a pass for each chunk."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.head = None

    def __call__(self, chunks: Sequence[TokenChunk]) -> Pass:
        """Run the model once per chunk and join the rows of logits; implements `Forward`."""
        return Pass(torch.cat([self._one(chunk) for chunk in chunks]))

    def _one(self, chunk: TokenChunk) -> torch.Tensor:
        start = chunk.kv.length
        device = self._model.device
        logits: torch.Tensor = self._model(
            input_ids=torch.tensor([chunk.ids], device=device),
            position_ids=torch.arange(start, start + len(chunk.ids), device=device).unsqueeze(0),
            past_key_values=chunk.kv,
            use_cache=True,
            logits_to_keep=max(1, chunk.rows),
        ).logits[0]
        return logits[: chunk.rows]


def forward_of(model: PreTrainedModel, *, int8: bool = False) -> Forward:
    """The fastest forward pass for a model. Takes the model over: with `int8` its own weights are given up.

    Raises:
        PrecisionError: int8 is asked for a model that the lean pass does not fit.
    """
    if fits(model):
        return LlamaForward(model, int8=int8)
    if int8:
        raise PrecisionError(f"{type(model).__name__} cannot be run in int8: Llamas and Qwen2s only")
    return TransformersForward(model)
