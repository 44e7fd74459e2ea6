"""What a distribution over tokens says about the token that was written. Formulas stand here and nowhere else.

p = softmax(logits) over the whole vocabulary, before any grammar and at temperature 1; computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slm.grammar import Mask


@dataclass(frozen=True, slots=True)
class Signals:
    """Signals of one token; meanings and units as in `slm.protocol.Token`."""

    logprob: float
    margin: float
    entropy: float
    feasible_mass: float


class Distribution:
    """The distributions of one forward pass.

    Args:
        logits: shape (positions, vocabulary), any floating type.

    Raises:
        ArithmeticError: the model gave no distribution (NaN or infinity).
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits.float()
        self._logs = torch.log_softmax(self._logits, dim=-1)
        p = self._logs.exp()
        self._p = p
        top = p.topk(2, dim=-1).values
        self._margin: list[float] = (top[:, 0] - top[:, 1]).tolist()
        # p·log p is 0 where p is 0, though log p may be −∞ there.
        self._entropy: list[float] = (-(p * self._logs.clamp_min(-1e4)).sum(dim=-1)).tolist()
        if not all(np.isfinite(self._entropy)):
            raise ArithmeticError("the model's logits are not finite")

    def best(self, position: int, allowed: Mask | None) -> int:
        """The most probable token, among the allowed ones where some are named; the lowest id of equals."""
        row = self._logits[position]
        if allowed is not None:
            row = row.masked_fill(~torch.from_numpy(allowed), -torch.inf)
        return int(row.argmax())

    def signals(self, positions: Sequence[int], tokens: Sequence[int], masks: Sequence[Mask | None]) -> list[Signals]:
        """Signals of `tokens`, each written after its position; `masks` holds what the grammar allowed there."""
        made = []
        for position, token, mask in zip(positions, tokens, masks, strict=True):
            mass = 1.0 if mask is None else float(self._p[position].dot(torch.from_numpy(mask).float()))
            made.append(
                Signals(
                    logprob=min(0.0, float(self._logs[position, token])),
                    margin=self._margin[position],
                    entropy=max(0.0, self._entropy[position]),
                    feasible_mass=min(1.0, mass),
                )
            )
        return made
