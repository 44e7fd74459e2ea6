"""Rows that a threshold is chosen, certified or reported on, with the judge's score of each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from evaluation.cases.case import Case
from evaluation.intervals import wilson
from evaluation.metrics import Floats
from evaluation.replay.figures import Estimate
from evaluation.replay.replay import Arms, ReplayError, join, servable_drafts
from evaluation.traces.table import Trace
from policies.bundle.manifest import ServingPrices
from policies.rules.certificate import one_of_each
from policies.rules.judge import Judge
from policies.rules.price_aware import LargePrices, kind_of
from policies.rules.single import OnOther
from policies.rules.thresholds import NOT_DRAFTED
from policies.types import BoolArray

Ints = npt.NDArray[np.int64]
MAX_KNOTS = 64
PRIOR_ROWS = 10.0
"""A pass rate by kind of draft is drawn towards that of all rows by so many rows of them."""


@dataclass(frozen=True, slots=True)
class Operating:
    """Figures of a policy on rows that had no part in choosing it."""

    threshold: float | None
    """None: everything goes large, or there is more than one."""
    share_small: float
    passed: Estimate
    large_passed: float
    cost: float
    """Over always-large, drafts included."""
    harmed: Estimate
    """Answered small and wrong where the large model is right, over all requests."""
    latency_s: float | None
    """Mean: of the draft's work, and of the large model's answer where it is asked; None where no trace has one that
    counts."""
    large_latency_s: float | None
    harmed_one_each: tuple[int, int]
    """Harmed, and rows, among one row of each conversation: what a bound on the harm is made of."""


@dataclass(frozen=True, slots=True)
class AsDecided:
    """In place of a judge: the score that a gateway gave when it decided, which stands in the small arm's rows."""

    name: str


Scoring = Judge | AsDecided


@dataclass(frozen=True, slots=True)
class TuningRows:
    """n cases of one part, judged."""

    arms: Arms
    scores: Floats
    """(n,) −inf where the draft may not be served, or has no score."""
    one_each: Ints
    """Indices of one row of each conversation."""

    @classmethod
    def of(
        cls,
        cases: Sequence[Case],
        small: Trace,
        large: Trace,
        judge: Scoring,
        *,
        on_no_call: OnOther,
        on_ask: OnOther,
        small_usd_per_hour: float,
        seed: int,
    ) -> TuningRows:
        """Join and judge. Raises ReplayError where no draft has a score."""
        arms = join(cases, small, large, small_usd_per_hour=small_usd_per_hour)
        servable = servable_drafts(arms, on_no_call, on_ask)
        scores = np.full(len(arms), -np.inf)
        for index in map(int, np.flatnonzero(servable)):
            if isinstance(judge, AsDecided):
                score = arms.small_rows[index].score
            else:
                score = judge.score(arms.requests[index], arms.drafts[index])
            scores[index] = -np.inf if score is None else score
        if not np.isfinite(scores).any():
            raise ReplayError("no draft that may be served has signals: collect with signals")
        one_each = one_of_each([case.conversation for case in arms.cases], np.random.default_rng(seed))
        return cls(arms, scores, one_each)

    def __len__(self) -> int:
        return len(self.arms)

    @property
    def harmed_if_accepted(self) -> BoolArray:
        """(n,) the small model is wrong and the large one right."""
        return np.asarray(~self.arms.small_pass & self.arms.large_pass)

    def accepted(self, threshold: float | None) -> BoolArray:
        """(n,) answered small at `score ≥ threshold`; None: nothing is."""
        return self.scores >= threshold if threshold is not None else np.zeros(len(self.scores), dtype=bool)

    def costs(self, accepted: BoolArray, drafted: Floats | None = None) -> Floats:
        """(n,) USD of each request. Where everything goes large nothing is drafted.

        Args:
            drafted: (n,) share of each draft that was made, in [0, 1]; None: all of every draft that can be begun.
        """
        arms = self.arms
        if not accepted.any():
            return arms.large_cost
        made = arms.draftable.astype(np.float64) if drafted is None else drafted
        return np.asarray(arms.small_cost * made + np.where(accepted, 0.0, arms.large_cost))

    def latencies(self, accepted: BoolArray, drafted: Floats | None = None) -> Floats:
        """(n,) seconds of each request: the small model's work, and the large one's answer where it is asked; NaN where
        not measured."""
        arms = self.arms
        busy = np.array([np.nan if row.small_busy_s is None else row.small_busy_s for row in arms.small_rows])
        busy = np.where(np.isnan(busy), arms.small_latency, busy)
        if not accepted.any():
            return arms.large_latency
        made = arms.draftable.astype(np.float64) if drafted is None else drafted
        return np.asarray(np.where(made > 0, busy * made, 0.0) + np.where(accepted, 0.0, arms.large_latency))

    def operating(
        self,
        accepted: BoolArray,
        threshold: float | None,
        drafted: Floats | None = None,
        within: BoolArray | None = None,
    ) -> Operating:
        """Return the figures of answering these requests small; of the requests `within` alone, where that is given."""
        arms, harmed = self.arms, accepted & self.harmed_if_accepted
        here = np.ones(len(arms), dtype=bool) if within is None else within
        each = self.one_each[here[self.one_each]]
        large_latency_s = _mean(arms.large_latency[here])
        known = large_latency_s is not None or bool(accepted[here].all())
        return Operating(
            threshold=threshold,
            share_small=float(accepted[here].mean()),
            passed=rate(np.where(accepted, arms.small_pass, arms.large_pass)[here]),
            large_passed=float(arms.large_pass[here].mean()),
            cost=float(self.costs(accepted, drafted)[here].sum() / arms.large_cost[here].sum()),
            harmed=rate(harmed[here]),
            latency_s=_mean(self.latencies(accepted, drafted)[here]) if known else None,
            large_latency_s=large_latency_s,
            harmed_one_each=(int(harmed[each].sum()), len(each)),
        )

    def stage_scores(self, judge: Judge, stage: str) -> Floats:
        """(n,) an early stage's scores, of the request or of the plan; +inf where there is none: it lets pass."""
        values = []
        for request, draft in zip(self.arms.requests, self.arms.drafts, strict=True):
            seen = NOT_DRAFTED if stage == "request" else draft.at_plan()
            score = judge.score(request, seen)
            values.append(np.inf if score is None else score)
        return np.array(values)

    def data_sha256(self, chosen: Ints | None = None) -> str:
        """Over case ids, both models' passes and the scores of some rows, those of `one_each` by default."""
        digest = hashlib.sha256()
        for index in self.one_each if chosen is None else chosen:
            passed = f"{int(self.arms.small_pass[index])}{int(self.arms.large_pass[index])}"
            digest.update(f"{self.arms.cases[index].id}\0{passed}\0{float(self.scores[index])!r}\n".encode())
        return digest.hexdigest()


def rate(hits: npt.ArrayLike) -> Estimate:
    """A share with Wilson's interval."""
    found = np.asarray(hits, dtype=bool)
    return Estimate(float(found.mean()), *wilson(int(found.sum()), len(found)))


def calibration_of(rows: TuningRows) -> tuple[tuple[float, float], ...]:
    """Knots (score, P(right)) of an isotonic regression on the rows that may be served; at most `MAX_KNOTS`."""
    fit = np.isfinite(rows.scores)
    scores, passed = rows.scores[fit], rows.arms.small_pass[fit].astype(np.float64)
    levels, place = np.unique(scores, return_inverse=True)
    counts = np.bincount(place).astype(np.float64)
    fitted = isotonic_regression(np.bincount(place, passed) / counts, weights=counts).x
    keep = np.unique(np.linspace(0, len(levels) - 1, min(MAX_KNOTS, len(levels))).round().astype(int))
    risen = np.maximum.accumulate(np.clip(fitted[keep], 0.0, 1.0))
    return tuple((float(levels[i]), float(p)) for i, p in zip(keep, risen, strict=True))


def prices_of(rows: TuningRows, small_usd_per_hour: float) -> ServingPrices:
    """Return the large model's prices: a line through its costs by the requests' length, and its pass rates by kind
    of draft."""
    arms = rows.arms
    length = LargePrices(1.0, 0.0, 0.0)
    characters = np.array([length.usd(request) for request in arms.requests])
    spread = float(characters.var())
    slope = float(np.cov(characters, arms.large_cost, bias=True)[0, 1] / spread) if spread > 0 else 0.0
    slope = max(0.0, slope)
    mean = float(arms.large_cost.mean())
    return ServingPrices(
        usd_per_character=slope,
        usd_of_answer=max(0.0, mean - slope * float(characters.mean())),
        usd_a_request=mean,
        latency_s=_mean(arms.large_latency) or 0.0,
        small_usd_per_hour=small_usd_per_hour,
        large_passes=_large_passes(arms),  # type: ignore[arg-type]  # its keys are kinds
    )


def _large_passes(arms: Arms) -> Mapping[str, float]:
    kinds = np.array([kind_of(draft) for draft in arms.drafts])
    overall = float(arms.large_pass.mean())
    return {
        kind: float(
            (arms.large_pass[kinds == kind].sum() + PRIOR_ROWS * overall) / ((kinds == kind).sum() + PRIOR_ROWS)
        )
        for kind in ("single", "parallel", "no_call", "ask")
    }


def _mean(seconds: Floats) -> float | None:
    known = seconds[np.isfinite(seconds)]
    return float(known.mean()) if len(known) else None
