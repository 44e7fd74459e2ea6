"""Choose a threshold for the traffic of two traces: with a certificate on harm, or by pass rate or cost as observed.

The rows are parted by conversation and tool: one part chooses (and certifies, one row a conversation), the other tells
what the choice does. A threshold chosen by pass rate or cost alone is the best on the choosing part and holds on new
traffic about as often as not; only the goal `max_harm` gives a guarantee (`policies.certificate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.cases import Case
from evaluation.intervals import wilson
from evaluation.metrics import Floats
from evaluation.replay import Arms, ReplayError, join, servable_drafts, servable_scores
from evaluation.splits import split
from evaluation.study import Estimate
from evaluation.trace_table import Trace, TraceInfo, TraceRow
from policies.cascade import OnOther
from policies.certificate import Certificate, certify_harm, one_of_each
from policies.confidence import SCORES
from policies.policy import BoolArray

Goal = Literal["max_harm", "min_pass_rate", "max_cost"]
SHARES = {"choose": 0.5, "tell": 0.5}
SALT = "tuning"
NEIGHBOURS = (0.5, 1.0, 2.0)
"""Goals beside the one asked for, as multiples of it: what a stricter and a looser one would bring."""


@dataclass(frozen=True, slots=True)
class Operating:
    """What `score ≥ threshold` does on the telling part."""

    threshold: float | None
    """None: everything goes large."""
    share_small: float
    passed: Estimate
    large_passed: float
    cost: float
    """Over always-large, drafts included."""
    harmed: Estimate
    """Answered small and wrong where the large model is right, over all requests."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One goal, what was chosen for it, and what that does."""

    goal: Goal
    target: float
    certificate: Certificate | None
    """For `max_harm`; None there means that nothing could be certified."""
    operating: Operating


@dataclass(frozen=True, slots=True)
class Tuning:
    """The choice that was asked for, its neighbours among `choices`, and on what all rests."""

    score: str
    choices: Sequence[Choice]
    """In the order of `NEIGHBOURS`."""
    chosen: Choice
    choosing_rows: int
    certifying_rows: int
    telling_rows: int


def tune(
    cases: Sequence[Case],
    small: Trace,
    large: Trace,
    *,
    goal: Goal,
    target: float,
    delta: float,
    score: str = "weakest_token",
    on_no_call: OnOther = "escalate",
    on_ask: OnOther = "escalate",
    small_usd_per_hour: float,
    seed: int = 0,
) -> Tuning:
    """Choose a threshold of `score`.

    Args:
        target: of the goal: a share of all requests (`max_harm`, `min_pass_rate`), or a multiple of the large model's
            cost (`max_cost`).
        delta: a certificate is wrong with at most this probability.

    Raises:
        ReplayError: a part is empty or no draft has signals.
        ValueError: an unknown score.
    """
    if score not in SCORES:
        raise ValueError(f"score: {score!r} is none of {', '.join(SCORES)}")
    parts = split(cases, SHARES, salt=SALT)
    choosing, telling = (
        _Part.of(join(parts[part], small, large, small_usd_per_hour=small_usd_per_hour), score, on_no_call, on_ask)
        for part in ("choose", "tell")
    )
    one_each = one_of_each([case.conversation for case in choosing.arms.cases], np.random.default_rng(seed))
    choices = []
    for factor in NEIGHBOURS if goal == "max_harm" else (1.0,):
        certificate = None
        if goal == "max_harm":
            arms, asked = choosing.arms, min(target * factor, 0.999)
            certificate = certify_harm(
                choosing.scores[one_each],
                arms.small_pass[one_each],
                arms.large_pass[one_each],
                alpha=asked,
                delta=delta,
            )
            threshold = certificate.threshold if certificate else None
        else:
            asked, threshold = target, _observed(choosing, goal, target)
        choices.append(Choice(goal, asked, certificate, _operating(telling, threshold)))
    chosen = next(choice for choice in choices if choice.target == target)
    return Tuning(score, choices, chosen, len(choosing.arms), len(one_each), len(telling.arms))


def always_right(small: Trace, *, usd_a_request: float) -> Trace:
    """A large model that answers everything rightly at one price: simulated, for traffic that nobody recorded.

    Harm is then counted where the small model is wrong, which no real large model makes larger.
    """
    rows = [
        TraceRow(
            case_id=row.case_id,
            source=row.source,
            category=row.category,
            arm="always right",
            outcome="calls",
            passed=True,
            cost_usd=usd_a_request,
        )
        for row in small.rows
    ]
    info = TraceInfo(arm="always right", command="simulated", data_sha256=small.info.data_sha256)
    return Trace(info, rows)


@dataclass(frozen=True, slots=True)
class _Part:
    arms: Arms
    scores: Floats

    @classmethod
    def of(cls, arms: Arms, score: str, on_no_call: OnOther, on_ask: OnOther) -> _Part:
        scores = servable_scores(SCORES[score], arms, servable_drafts(arms, on_no_call, on_ask))
        if scores is None:
            raise ReplayError("no draft that may be served has signals: collect with signals")
        return cls(arms, scores)

    def accepted(self, threshold: float | None) -> BoolArray:
        return self.scores >= threshold if threshold is not None else np.zeros(len(self.scores), dtype=bool)

    def cost(self, accepted: BoolArray) -> float:
        """Over always-large. Where everything goes large nothing is drafted."""
        if not accepted.any():
            return 1.0
        arms = self.arms
        spent = (arms.small_cost * arms.draftable).sum() + arms.large_cost[~accepted].sum()
        return float(spent / arms.large_cost.sum())


def _observed(part: _Part, goal: Goal, target: float) -> float | None:
    """The loosest threshold that keeps the pass rate, or the strictest that keeps the cost, on this part."""
    thresholds = np.unique(part.scores[np.isfinite(part.scores)])
    if goal == "max_cost":
        return next((float(t) for t in thresholds[::-1] if part.cost(part.accepted(t)) <= target), None)
    arms = part.arms
    for threshold in thresholds:
        accepted = part.accepted(threshold)
        if np.where(accepted, arms.small_pass, arms.large_pass).mean() >= target:
            return float(threshold)
    return None


def _operating(part: _Part, threshold: float | None) -> Operating:
    arms, accepted = part.arms, part.accepted(threshold)
    passed = np.where(accepted, arms.small_pass, arms.large_pass)
    return Operating(
        threshold=threshold,
        share_small=float(accepted.mean()),
        passed=_rate(passed),
        large_passed=float(arms.large_pass.mean()),
        cost=part.cost(accepted),
        harmed=_rate(accepted & ~arms.small_pass & arms.large_pass),
    )


def _rate(hits: BoolArray) -> Estimate:
    return Estimate(float(hits.mean()), *wilson(int(hits.sum()), len(hits)))
