"""Thresholds of all stages chosen together, and whether they pay.

What is weighed is cost and time a request, each over always-large: w·cost + (1 − w)·latency. Three parts of the rows
share no conversation and no tool. On the first, every combination of a gate on the request, a gate on the plan and a
threshold on the draft is tried, and those are kept that are the best at their harm (a Pareto front, ordered from the
least harm). The second walks along that order and stops at the first combination whose harm cannot be shown to be at
most α (certificate C: fixed-sequence testing along an order learned elsewhere). The third reports. The single threshold
is chosen by the same walk without gates; gates are kept only where they beat it on the third part by more than chance.
Each walk has half of δ, because which of the two is used is known only afterwards.

Early exits save time, hardly money: a small model's tokens are nearly free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from evaluation.cases.case import Case
from evaluation.cases.splits import split
from evaluation.intervals import cluster_weights, percentile_interval, weighted_means
from evaluation.metrics import Floats
from evaluation.replay.figures import Estimate
from evaluation.replay.replay import ReplayError
from evaluation.tuning.rows import Operating, TuningRows
from policies.rules.certificate import Certificate, certify_along
from policies.rules.judge import Judge
from policies.types import BoolArray

SHARES = {"learn": 0.3, "certify": 0.35, "tell": 0.35}
SALT = "staged tuning"
GATE_QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.45)
THRESHOLD_QUANTILES = tuple(np.linspace(0.0, 1.0, 129))
"""So many that gates are not kept for being the finer grid."""
DRAWS = 2000
NONE = -np.inf
"""A gate's threshold that lets all pass."""


@dataclass(frozen=True, slots=True)
class Combination:
    """Thresholds of the three stages; −inf: a gate lets all pass."""

    request: float
    plan: float
    draft: float

    @property
    def gated(self) -> bool:
        """True if a gate on the request or the plan is set."""
        return self.request > NONE or self.plan > NONE


@dataclass(frozen=True, slots=True)
class StagedTuning:
    """The best certified combination, the best certified single threshold, and the one that is to be used."""

    staged: Combination | None
    """None: nothing could be certified."""
    single: Combination | None
    staged_certificate: Certificate | None
    single_certificate: Certificate | None
    staged_operating: Operating | None
    single_operating: Operating | None
    saved: Estimate | None
    """Weighed cost and time that the gates save: what the single threshold takes more, with its 95 % interval by
    clusters; None where one of them is missing or they are the same."""
    certifying: TuningRows
    holdout: TuningRows

    @property
    def pays(self) -> bool:
        """True if the gates beat the single threshold: the whole interval of `saved` is above 0."""
        saved = self.saved
        return saved is not None and saved.low is not None and saved.low > 0


@dataclass(frozen=True, slots=True)
class _Seen:
    """One part, with the scores of all stages."""

    rows: TuningRows
    request: Floats
    plan: Floats
    drafted_at_plan: Floats
    """Share of each draft's work that is done when its plan stands."""

    @classmethod
    def of(cls, rows: TuningRows, request_judge: Judge, plan_judge: Judge) -> _Seen:
        return cls(
            rows,
            rows.stage_scores(request_judge, "request"),
            rows.stage_scores(plan_judge, "plan"),
            np.array([_share_at_plan(rows, index) for index in range(len(rows))]),
        )

    def accepted(self, at: Combination) -> BoolArray:
        passes = (self.request >= at.request) & (self.plan >= at.plan)
        return np.asarray(passes & (self.rows.scores >= at.draft))

    def drafted(self, at: Combination) -> Floats:
        draftable = self.rows.arms.draftable & (self.request >= at.request)
        return np.asarray(draftable * np.where(self.plan >= at.plan, 1.0, self.drafted_at_plan))

    def weighed(self, at: Combination, weight: float) -> Floats:
        """(n,) w·cost + (1 − w)·latency of each request, both over always-large's mean; lower is better."""
        accepted, drafted, arms = self.accepted(at), self.drafted(at), self.rows.arms
        cost = self.rows.costs(accepted, drafted) / arms.large_cost.mean()
        if weight == 1.0:
            return np.asarray(cost)
        time = self.rows.latencies(accepted, drafted) / np.nanmean(arms.large_latency)
        return np.asarray(weight * cost + (1.0 - weight) * time)


def tune_stages(
    cases: Sequence[Case],
    rows_of: Callable[[Sequence[Case]], TuningRows],
    request_judge: Judge,
    plan_judge: Judge,
    *,
    alpha: float,
    delta: float,
    cost_weight: float,
    seed: int = 0,
) -> StagedTuning:
    """Choose all thresholds together.

    Args:
        rows_of: makes `TuningRows` of some cases.
        alpha: of the harm.
        cost_weight: w, in [0, 1]; below 1 both traces must have latencies.

    Raises:
        ReplayError: a part is empty, no draft has signals, or latencies are missing.
    """
    parts = split(cases, SHARES, salt=SALT)
    learn, certify, holdout = (
        _Seen.of(rows_of(parts[part]), request_judge, plan_judge) for part in ("learn", "certify", "tell")
    )
    if cost_weight < 1.0:
        for seen in (learn, certify, holdout):
            arms = seen.rows.arms
            busy = seen.rows.latencies(np.ones(len(arms), dtype=bool))
            if np.isnan(arms.large_latency).any() or np.isnan(busy).any():
                raise ReplayError(
                    "a row has no latency: weigh cost alone (--cost-weight 1), or give it (--large-latency-s)"
                )
    combinations, half = _combinations(learn), delta / 2
    staged, staged_certificate = _walked(_front(learn, combinations, cost_weight), certify, alpha, half)
    alone = [one for one in combinations if not one.gated]
    single, single_certificate = _walked(_front(learn, alone, cost_weight), certify, alpha, half)
    return StagedTuning(
        staged,
        single,
        staged_certificate,
        single_certificate,
        _operating(holdout, staged),
        _operating(holdout, single),
        _saved(holdout, single, staged, cost_weight, seed),
        certify.rows,
        holdout.rows,
    )


def _combinations(learn: _Seen) -> list[Combination]:
    draftable = learn.rows.arms.draftable
    served = learn.rows.scores[np.isfinite(learn.rows.scores)]
    requests, plans = (_levels(values[draftable], GATE_QUANTILES) for values in (learn.request, learn.plan))
    drafts = np.unique(np.quantile(served, THRESHOLD_QUANTILES))
    return [Combination(*map(float, one)) for one in product((NONE, *requests), (NONE, *plans), drafts)]


def _levels(values: Floats, quantiles: Sequence[float]) -> list[float]:
    finite = values[np.isfinite(values)]
    if len(finite) < 2 or finite.min() == finite.max():
        return []
    levels = np.unique(np.quantile(finite, quantiles, method="higher"))
    return [float(level) for level in levels if level > finite.min()]


def _front(learn: _Seen, combinations: Sequence[Combination], weight: float) -> list[Combination]:
    """Those that no other beats at once in harm and in what is weighed, from the least harm on."""
    found = []
    for one in combinations:
        accepted = learn.accepted(one)
        harm = float((accepted & learn.rows.harmed_if_accepted).mean())
        found.append((harm, float(learn.weighed(one, weight).mean()), one))
    found.sort(key=lambda each: each[:2])
    front: list[Combination] = []
    best = np.inf
    for _, weighed, one in found:
        if weighed < best:
            best = weighed
            front.append(one)
    return front


def _walked(
    front: Sequence[Combination], certify: _Seen, alpha: float, delta: float
) -> tuple[Combination | None, Certificate | None]:
    """The last of the order that is certified."""
    rows, each = certify.rows, certify.rows.one_each
    accepted = [certify.accepted(one)[each] for one in front]
    thresholds = [one.draft for one in front]
    found = certify_along(accepted, rows.harmed_if_accepted[each], thresholds, alpha=alpha, delta=delta)
    return (None, None) if found is None else (front[found[0]], found[1])


def _operating(holdout: _Seen, at: Combination | None) -> Operating | None:
    if at is None:
        return None
    return holdout.rows.operating(holdout.accepted(at), at.draft, holdout.drafted(at))


def _saved(
    holdout: _Seen, single: Combination | None, staged: Combination | None, weight: float, seed: int
) -> Estimate | None:
    """Return what the single threshold takes more than the stages: paired, whole clusters drawn."""
    if single is None or staged is None or single == staged:
        return None
    difference = holdout.weighed(single, weight) - holdout.weighed(staged, weight)
    rng = np.random.default_rng(seed)
    drawn = np.concatenate(
        [weighted_means(difference, weights) for weights in cluster_weights(holdout.rows.arms.clusters, DRAWS, rng)]
    )
    low, high = percentile_interval(drawn)
    return Estimate(float(difference.mean()), float(low), float(high))


def _share_at_plan(rows: TuningRows, index: int) -> float:
    """Prefill and the plan's chosen tokens, over the whole draft's work; 1 where that is not known."""
    row, signals = rows.arms.small_rows[index], rows.arms.drafts[index].signals
    busy = row.small_busy_s
    if signals is None or busy is None or not busy or row.small_prefill_s is None:
        return 1.0
    chosen = float((~signals.forced).sum())
    share = float((~signals.until_plan().forced).sum()) / chosen if chosen else 1.0
    return (row.small_prefill_s + share * (row.small_decode_s or 0.0)) / busy
