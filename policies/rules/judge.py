"""The judge that compares a draft with a threshold: one raw score, what it is worth as a probability, and why it is so.

Thresholds are set on the raw score; the calibrated probability is for weighing money only (its steps would tie drafts
that the score keeps apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from policies.rules.scores import SCORES
from policies.types import Draft, Request, TokenSignals

Contribution = tuple[str, float]
"""A signal's name and what it adds to the score; negative where it speaks against the draft."""


class Judge(Protocol):
    """Judges drafts. Immutable; the same draft always gets the same score."""

    @property
    def name(self) -> str:
        """A stable name for policies' names."""

    def score(self, request: Request, draft: Draft) -> float | None:
        """The raw score, higher is safer; None where the draft lacks what the judge needs."""

    def at_most(self, plan_signals: TokenSignals) -> float:
        """An upper bound on the score of any draft that begins with these tokens; infinity where none is known."""

    def probability(self, score: float) -> float | None:
        """P(draft is right) for a raw score, in [0, 1]; None where the judge was not calibrated."""

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution]:
        """The signals that spoke most, the loudest first; at most three."""


@dataclass(frozen=True, slots=True)
class FewTools:
    """Minus the number of tools offered: for the stage before decoding, where little else is known."""

    @property
    def name(self) -> str:
        return "few_tools"

    def score(self, request: Request, draft: Draft) -> float | None:
        return -float(len(request.tools))

    def at_most(self, plan_signals: TokenSignals) -> float:
        return 0.0

    def probability(self, score: float) -> float | None:
        return None

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution]:
        return (("tools", -float(len(request.tools))),)


@dataclass(frozen=True, slots=True)
class NamedScore:
    """One of `policies.rules.scores.SCORES` as a judge."""

    score_name: str
    calibration: tuple[tuple[float, float], ...] = ()
    """Pairs (score, probability), both not falling; between them the probability is interpolated."""

    def __post_init__(self) -> None:
        if self.score_name not in SCORES:
            raise ValueError(f"score: {self.score_name!r} is none of {', '.join(SCORES)}")
        for before, after in zip(self.calibration, self.calibration[1:], strict=False):
            if not (before[0] < after[0] and before[1] <= after[1]):
                raise ValueError("calibration: scores must rise, and probabilities must not fall")
        if not all(0.0 <= p <= 1.0 for _, p in self.calibration):
            raise ValueError("calibration: a probability is not in [0, 1]")

    @property
    def name(self) -> str:
        return self.score_name

    def score(self, request: Request, draft: Draft) -> float | None:
        return None if draft.signals is None else SCORES[self.score_name](draft.signals)

    def at_most(self, plan_signals: TokenSignals) -> float:
        """A minimum over tokens only falls with further tokens; a mean may rise again."""
        if self.score_name in ("weakest_token", "least_margin"):
            return SCORES[self.score_name](plan_signals)
        return float("inf")

    def probability(self, score: float) -> float | None:
        if not self.calibration:
            return None
        scores, probabilities = zip(*self.calibration, strict=True)
        return float(np.interp(score, scores, probabilities))

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution]:
        """The score itself: it has no parts."""
        score = self.score(request, draft)
        return () if score is None else ((self.score_name, score),)
