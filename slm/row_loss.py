"""The loss of a model on rows, row by row: what a comparison of two models can pair.

Less noisy than a pass rate, which changes with a single token. Cross-entropy of the taught tokens is taken in float32;
what leads up to it may be computed in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from slm.dataset import Encoded
from slm.model import Loaded


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Of each row, in order."""

    nats: list[float]
    """Sum over the row's taught tokens."""
    tokens: list[int]
    """Taught tokens, the end token among them."""

    @property
    def mean(self) -> float:
        """Nats a taught token, over all rows."""
        return sum(self.nats) / sum(self.tokens)


def row_losses(
    loaded: Loaded,
    rows: Sequence[Encoded],
    tell: Callable[[int, int], None] = lambda done, total: None,
    *,
    autocast: bool = False,
) -> RowLosses:
    """The losses of `rows` under a model; `tell` hears how many are done.

    `autocast`: matrix products in bfloat16. Unlike in training, an adapter is part of the weights that are rounded.
    """
    nats: list[float] = []
    device = loaded.model.device.type
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=autocast):
        for done, row in enumerate(rows):
            tell(done, len(rows))
            nats.append(_row_loss(loaded, row))
    tell(len(rows), len(rows))
    return RowLosses(nats, [len(row.ids) - row.prompt_tokens for row in rows])


def _row_loss(loaded: Loaded, row: Encoded) -> float:
    ids = torch.tensor([row.ids], device=loaded.model.device)
    decoder, head = loaded.model.get_decoder(), loaded.model.get_output_embeddings()
    hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    logits = head(hidden[0, row.prompt_tokens - 1 : -1]).float()
    return float(cross_entropy(logits, ids[0, row.prompt_tokens :], reduction="sum"))
