"""Choose a threshold for the traffic of two traces: with a certificate on harm, or by pass rate or cost as observed.

The rows are split by conversation and tool: the selection part chooses the threshold (and certifies it for `max_harm`,
one row a conversation),
and the holdout part measures it. A threshold chosen by pass rate or cost alone is the best on the selection part and
holds on new traffic about as often as not. Its harm is bounded all the same: the holdout part had no part in the
choice, so the Clopper–Pearson bound of the harm counted there holds with confidence 1 − δ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.cases.case import Case
from evaluation.cases.splits import split
from evaluation.traces.table import Trace, TraceInfo, TraceRow
from evaluation.tuning.rows import Operating, Scoring, TuningRows
from policies.rules.certificate import Certificate, certify_harm, upper_bound
from policies.rules.judge import NamedScore
from policies.rules.single import OnOther

Goal = Literal["max_harm", "min_pass_rate", "max_cost", "quality_of_large"]
SHARES = {"choose": 0.5, "tell": 0.5}
SALT = "tuning"
STEPS = {"min_pass_rate": 0.02, "quality_of_large": 0.02, "max_cost": 0.1}
"""The distance of the goals beside the one asked for from it; `max_harm` is halved and doubled."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One goal, what was chosen for it, and what that does."""

    goal: Goal
    target: float
    certificate: Certificate | None
    """Certificate of the harm. For `max_harm`, of the selection part: None means that nothing could be certified. For
    the others, a bound counted on the holdout part at the threshold chosen before; None where everything goes large."""
    operating: Operating


@dataclass(frozen=True, slots=True)
class Tuning:
    """The choice that was asked for, its neighbours among `choices`, and on what all rests."""

    judge: Scoring
    choices: Sequence[Choice]
    """From the next better one, which answers less small, to the next worse."""
    chosen: Choice
    selection: TuningRows
    holdout: TuningRows

    @property
    def certifying(self) -> TuningRows:
        """The part that certificates of this tuning were counted on, one row a conversation."""
        return self.selection if self.chosen.goal == "max_harm" else self.holdout


def tune(
    cases: Sequence[Case],
    small: Trace,
    large: Trace,
    *,
    goal: Goal,
    target: float,
    delta: float,
    judge: Scoring | None = None,
    on_no_call: OnOther = "escalate",
    on_ask: OnOther = "escalate",
    small_usd_per_hour: float,
    seed: int = 0,
) -> Tuning:
    """Choose a threshold of the judge's score.

    Args:
        target: of the goal: a share of all requests (`max_harm`, `min_pass_rate`), a multiple of the large model's cost
            (`max_cost`) or of its pass rate (`quality_of_large`).
        delta: a certificate is wrong with at most this probability.
        judge: None: the weakest token.

    Raises:
        ReplayError: a part is empty or no draft has signals.
    """
    judging = judge or NamedScore("weakest_token")
    parts = split(cases, SHARES, salt=SALT)
    selection, holdout = (
        TuningRows.of(
            parts[part],
            small,
            large,
            judging,
            on_no_call=on_no_call,
            on_ask=on_ask,
            small_usd_per_hour=small_usd_per_hour,
            seed=seed,
        )
        for part in ("choose", "tell")
    )
    choices = [_choice(selection, holdout, goal, asked, delta) for asked in _targets(goal, target)]
    chosen = next(choice for choice in choices if choice.target == target)
    return Tuning(judging, choices, chosen, selection, holdout)


def always_right(small: Trace, *, usd_a_request: float, latency_s: float | None = None) -> Trace:
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
            latency_s=latency_s,
        )
        for row in small.rows
    ]
    info = TraceInfo(arm="always right", command="simulated", data_sha256=small.info.data_sha256)
    return Trace(info, rows)


def _targets(goal: Goal, target: float) -> list[float]:
    """The goal with its neighbours, the one that asks the large model most first."""
    if goal == "max_harm":
        return sorted({target / 2, target, min(2 * target, 0.999)})
    step = STEPS[goal]
    around = {max(0.0, target - step), target, target + step if goal != "min_pass_rate" else min(1.0, target + step)}
    return sorted(around, reverse=True)


def _choice(selection: TuningRows, holdout: TuningRows, goal: Goal, target: float, delta: float) -> Choice:
    if goal == "max_harm":
        each, arms = selection.one_each, selection.arms
        certificate = certify_harm(
            selection.scores[each], arms.small_pass[each], arms.large_pass[each], alpha=target, delta=delta
        )
        threshold = certificate.threshold if certificate else None
        return Choice(goal, target, certificate, holdout.operating(holdout.accepted(threshold), threshold))
    threshold = _observed(selection, goal, target)
    accepted = holdout.accepted(threshold)
    operating = holdout.operating(accepted, threshold)
    return Choice(goal, target, _counted(holdout, accepted, operating, delta), operating)


def _counted(holdout: TuningRows, accepted: np.ndarray, operating: Operating, delta: float) -> Certificate | None:
    """The bound on the harm of a threshold that was chosen on other rows."""
    if operating.threshold is None:
        return None
    errors, rows = operating.harmed_one_each
    bound = upper_bound(errors, rows, delta)
    if bound >= 1.0:
        return None
    taken = int(accepted[holdout.one_each].sum())
    return Certificate("harm", operating.threshold, bound, delta, rows, taken, errors, bound)


def _observed(part: TuningRows, goal: Goal, target: float) -> float | None:
    """The loosest threshold that keeps the pass rate, or the strictest that keeps the cost, on this part."""
    thresholds = np.unique(part.scores[np.isfinite(part.scores)])
    arms = part.arms
    if goal == "max_cost":
        total = arms.large_cost.sum()
        kept = (float(t) for t in thresholds[::-1] if part.costs(part.accepted(t)).sum() / total <= target)
        return next(kept, None)
    wanted = target * float(arms.large_pass.mean()) if goal == "quality_of_large" else target
    for threshold in thresholds:
        accepted = part.accepted(threshold)
        if np.where(accepted, arms.small_pass, arms.large_pass).mean() >= wanted:
            return float(threshold)
    return None
