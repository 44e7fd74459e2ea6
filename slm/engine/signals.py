"""Signals of a written token, computed from the model's distribution at its place. All formulas are in this module.

p = softmax(logits) over the whole vocabulary, before any grammar and at temperature 1; computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from slm.format.grammar import Mask
from slm.format.pattern import DraftSpan

HIDDEN_SIZE = 16
"""Numbers that a hidden state is projected to."""
HIDDEN_SEED = 20_261_123
CANDIDATES = 16
"""The most probable tokens, among which inner layers choose."""
_LEAST_LOG = -1e4


@dataclass(frozen=True, slots=True)
class MeasuredSignals:
    """Signals of one token; meanings and units as in `slm.protocol.Token`."""

    logprob: float
    margin: float
    entropy: float
    feasible_mass: float
    layer_agreement: float | None = None
    hidden: torch.Tensor | None = None
    """Shape (HIDDEN_SIZE,)."""
    alternatives: Sequence[tuple[int, float]] = ()
    """The most probable tokens and their log-probabilities, best first."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The output of a forward pass: `logits`, shape (rows, vocabulary), and, where the model's insides can be read,
    `states`, shape (probed layers + 1, rows, hidden), behind the final norm, the last layer's last."""

    logits: torch.Tensor
    states: torch.Tensor | None = None

    def rows(self, start: int, count: int) -> Pass:
        """Return `count` rows from `start` on."""
        states = None if self.states is None else self.states[:, start : start + count]
        return Pass(self.logits[start : start + count], states)


class Table(Protocol):
    """A matrix that rows are looked up in: a tensor, or what stands for one."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def device(self) -> torch.device: ...

    def __getitem__(self, ids: torch.Tensor, /) -> torch.Tensor: ...


class Lens:
    """Reads inner states: the logit lens (nostalgebraist 2020) over a few tokens, and a projection to a few numbers.

    The projection is Gaussian with a fixed seed, so that distances between states are kept on average (Johnson and
    Lindenstrauss) and the numbers mean the same in every process.

    Args:
        head: the output matrix, shape (vocabulary, hidden).
    """

    def __init__(self, head: Table) -> None:
        self._head = head
        generator = torch.Generator().manual_seed(HIDDEN_SEED)
        width = head.shape[1]
        projection = torch.randn(width, HIDDEN_SIZE, generator=generator, device="cpu") / width**0.5
        self._projection = projection.to(head.device)

    def first(self, states: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Return the most probable candidate by each state.

        Args:
            states: shape (layers, rows, hidden).
            candidates: token ids, shape (rows, candidates).

        Returns:
            Token ids, shape (layers, rows).
        """
        scores = torch.einsum("lrh,rch->lrc", states.float(), self._head[candidates].float())
        return candidates.expand(len(states), -1, -1).gather(2, scores.argmax(dim=-1, keepdim=True))[:, :, 0]

    def projected(self, states: torch.Tensor) -> torch.Tensor:
        """Project states of shape (rows, hidden) to shape (rows, HIDDEN_SIZE)."""
        return states.float() @ self._projection


class Distribution:
    """The distributions of one forward pass.

    Args:
        rows: logits of any floating type, one row a position.
        lens: for states, where `rows` has them.

    Raises:
        ArithmeticError: the model gave no distribution (NaN or infinity).
    """

    def __init__(self, rows: Pass, lens: Lens | None = None) -> None:
        self._logits = rows.logits.float()
        # −∞ becomes finite in place, so that p·log p is 0 where p is 0; a vocabulary is long, and few copies are made.
        self._logs = torch.log_softmax(self._logits, dim=-1).clamp_min_(_LEAST_LOG)
        p = self._logs.exp()
        self._p = p
        top, candidates = p.topk(min(CANDIDATES, p.shape[-1]), dim=-1)
        self._candidates = candidates
        self._margin: list[float] = (top[:, 0] - top[:, 1]).tolist()
        self._entropy: list[float] = torch.linalg.vecdot(p, self._logs).neg_().tolist()
        if not all(np.isfinite(self._entropy)):
            raise ArithmeticError("the model's logits are not finite")
        self._first: list[list[int]] | None = None
        self._hidden: torch.Tensor | None = None
        if rows.states is not None and lens is not None:
            self._hidden = lens.projected(rows.states[-1])
            if len(rows.states) > 1:
                self._first = lens.first(rows.states[:-1], candidates).T.tolist()

    def best(self, position: int, allowed: Mask | None) -> int:
        """Return the most probable token, among the allowed ones if a mask is given; of equals the lowest id."""
        row = self._logits[position]
        if allowed is not None:
            row = row.masked_fill(~_on(row, allowed), -torch.inf)
        return int(row.argmax())

    def signals(
        self,
        positions: Sequence[int],
        tokens: Sequence[int],
        masks: Sequence[Mask | None],
        alternatives: int = 0,
    ) -> list[MeasuredSignals]:
        """Signals of `tokens`, each written after its position; `masks` holds what the grammar allowed there.

        Args:
            alternatives: how many of the most probable tokens are wanted, at most CANDIDATES.
        """
        made = []
        for position, token, mask in zip(positions, tokens, masks, strict=True):
            mass = 1.0 if mask is None else float(self._p[position].dot(_on(self._p, mask).float()))
            made.append(
                MeasuredSignals(
                    logprob=min(0.0, float(self._logs[position, token])),
                    margin=self._margin[position],
                    entropy=max(0.0, self._entropy[position]),
                    feasible_mass=min(1.0, mass),
                    layer_agreement=None if self._first is None else _share(self._first[position], token),
                    hidden=None if self._hidden is None else self._hidden[position],
                    alternatives=self._best_few(position, alternatives) if alternatives else (),
                )
            )
        return made

    def _best_few(self, position: int, count: int) -> list[tuple[int, float]]:
        tokens: list[int] = self._candidates[position, :count].tolist()
        logs: list[float] = self._logs[position, tokens].tolist()
        return list(zip(tokens, logs, strict=True))


class Marks:
    """Collects the hidden states at the marked places of a draft, those of `slm.protocol.Done.hidden`."""

    def __init__(self) -> None:
        self._first: torch.Tensor | None = None
        self._starts: dict[DraftSpan, torch.Tensor] = {}
        self._values: torch.Tensor | None = None
        self._count = 0
        self._last: torch.Tensor | None = None

    def add(self, hidden: torch.Tensor | None, span: DraftSpan) -> None:
        """Add the state from which the draft's next token was chosen; None where there are no states."""
        if hidden is None:
            return
        self._last = hidden
        if self._first is None:
            self._first = hidden
        self._starts.setdefault(span, hidden)
        if span is DraftSpan.VALUE:
            self._values = hidden if self._values is None else self._values + hidden
            self._count += 1

    def rows(self) -> list[list[float]]:
        """Return the rows of first, plan, name, mean of values and last: HIDDEN_SIZE numbers each, none for a place
        that the draft does not have; no row at all where no state was added."""
        if self._last is None:
            return []
        mean = None if self._values is None else self._values / self._count
        places = (self._first, self._starts.get(DraftSpan.PLAN), self._starts.get(DraftSpan.NAME), mean, self._last)
        return [[] if row is None else row.tolist() for row in places]


def _on(tensor: torch.Tensor, mask: Mask) -> torch.Tensor:
    """A mask on a tensor's device."""
    return torch.from_numpy(mask).to(tensor.device)


def _share(firsts: Sequence[int], token: int) -> float:
    return sum(first == token for first in firsts) / len(firsts)
