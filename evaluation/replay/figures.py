"""The figures of a report: every policy as a point or a curve of pass rate over cost, with intervals.

All figures of one study share their bootstrap draws (whole clusters, `evaluation.intervals`), and a curve's figures are
found anew in each draw, as one who chose the threshold on that draw would have. Costs are relative to the large model
asked alone. QNC and CPT look at the labels and say what was possible, not what to expect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from evaluation import metrics
from evaluation.intervals import cluster_weights, percentile_interval, weighted_means
from evaluation.metrics import Curve, Floats, MetricError
from evaluation.replay.plans import Plan, Score
from evaluation.replay.replay import Arms

GRID_POINTS = 61
"""Costs at which a curve's band is given."""
MAX_CURVE_POINTS = 300
CURVE_FIGURES = (
    "apgr", "cpt50", "cpt80", "cpt95", "cpt100", "cost95", "qnc", "aiq", "audc", "auroc", "aurc", "e_aurc",
)  # fmt: skip
"""Names of the figures of a curve that come with intervals."""


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval. None: not defined here."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One way to answer all requests."""

    key: str
    label: str
    threshold: float | None = None
    """Answered small iff score ≥ threshold; None where there is no score."""
    escalated: float
    quality: Estimate
    """Pass rate, in [0, 1]."""
    cost: Estimate
    """Over the large model's own cost."""
    cost_usd_per_1000: float
    pgr: float | None
    """Share of the gap between the models' pass rates that is recovered."""
    latency_p50_s: float | None
    """Median of draft plus, where escalated, answer; None where a trace lacks times."""


class CurveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One score's whole sweep, from "escalate all" to "answer all small"; at most MAX_CURVE_POINTS points of it."""

    key: str
    label: str
    thresholds: list[float | None]
    """None at both ends."""
    escalated: list[float]
    quality: list[float]
    cost: list[float]
    low: list[float]
    """95 % interval of the pass rate at this cost; `high` is its other end."""
    high: list[float]
    harmed: list[float]
    """Share of all requests that are answered small and wrong where the large model is right."""
    reachable: list[bool]
    """False where drafts would be answered that may not be served."""
    grid_cost: list[float]
    band_low: list[float]
    band_high: list[float]
    apgr: Estimate
    cpt50: Estimate
    cpt80: Estimate
    cpt95: Estimate
    cpt100: Estimate
    cost95: Estimate
    """Least cost at which 95 % of the gap is recovered, over the large model's own."""
    qnc: Estimate
    aiq: Estimate
    audc: Estimate
    auroc: Estimate
    """Among the drafts that may be served: does the score part right from wrong."""
    aurc: Estimate
    e_aurc: Estimate
    ece: float | None
    """Expected calibration error of the score's probability among the same drafts; None where the score is no
    probability. The same holds for `brier`."""
    brier: float | None


def study(
    arms: Arms, plans: Sequence[Plan], scores: Sequence[Score], *, draws: int, seed: int
) -> tuple[list[Point], list[CurveFigures]]:
    """All figures, with intervals from `draws` bootstrap draws; the same inputs give the same figures."""
    if arms.large_cost.sum() <= 0:
        raise MetricError("the large model cost nothing: there is no cost to compare with")
    point, drawn = figures_drawn(arms, plans, scores, draws=draws, seed=seed)
    estimates = {name: _estimates(value, drawn[name]) for name, value in point.items()}
    return [_point(arms, plan, estimates) for plan in plans], [_curve(arms, score, estimates) for score in scores]


def figures_drawn(
    arms: Arms, plans: Sequence[Plan], scores: Sequence[Score], *, draws: int, seed: int
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Every figure by `key/name`, on the rows themselves (a number, or (K,)) and in each draw ((B,) or (B, K)).

    The draws are the same for all figures: differences and ratios of two are to be taken draw by draw.
    """
    figures = _Figures(arms, plans, scores)
    point = figures.under(np.ones((1, len(arms))))
    blocks = [figures.under(w) for w in cluster_weights(arms.clusters, draws, np.random.default_rng(seed))]
    return (
        {name: value[0] for name, value in point.items()},
        {name: np.concatenate([block[name] for block in blocks]) for name in point},
    )


def sweep_of(arms: Arms, score: Score, weights: Floats | None = None) -> Curve:
    """The score's curve; costs in USD a request."""
    if score.routes:  # the large model's cost takes the place of the draft's
        instead = arms.large_cost - arms.small_cost
        return metrics.sweep(score.values, arms.small_pass, arms.large_pass, arms.small_cost, instead, weights=weights)
    drafting = arms.small_cost * arms.draftable
    return metrics.sweep(score.values, arms.small_pass, arms.large_pass, drafting, arms.large_cost, weights=weights)


class _Figures:
    """Every figure as a function of how often each request is counted."""

    def __init__(self, arms: Arms, plans: Sequence[Plan], scores: Sequence[Score]) -> None:
        self._arms = arms
        self._plans = plans
        self._scores = scores
        self._grids = [_grid(arms, score) for score in scores]

    def under(self, weights: npt.ArrayLike) -> dict[str, Floats]:
        """Figure → (B,) or (B, K), for weights (B, n)."""
        arms, w = self._arms, np.asarray(weights, dtype=np.float64)
        large = weighted_means(arms.large_cost, w)
        figures: dict[str, Floats] = {}
        for plan in self._plans:
            figures[f"{plan.key}/quality"] = weighted_means(plan.passes, w)
            figures[f"{plan.key}/cost"] = weighted_means(plan.cost_usd, w) / large
        for score, grid in zip(self._scores, self._grids, strict=True):
            curve = sweep_of(arms, score, w)
            figures |= {f"{score.key}/{name}": value for name, value in _summary(curve, large, grid).items()}
            fit = np.isfinite(score.values)
            values, passed, counts = score.values[fit], arms.small_pass[fit], w[:, fit]
            figures[f"{score.key}/auroc"] = metrics.auroc(values, passed, weights=counts)
            figures[f"{score.key}/aurc"] = metrics.aurc(values, passed, weights=counts)
            figures[f"{score.key}/e_aurc"] = metrics.e_aurc(values, passed, weights=counts)
        return figures


def _summary(curve: Curve, large: Floats, grid: Floats) -> dict[str, Floats]:
    """The figures of curves (B, T); `large` is the large model's mean cost (B,)."""
    cost = curve.cost / large[:, None]
    # The large model asked alone is one more way that a mix can use, cheaper than a draft and then the large model.
    with_large = np.concatenate([cost, np.ones((len(cost), 1))], axis=1)
    quality = np.concatenate([curve.quality, curve.quality[:, :1]], axis=1)
    return {
        "apgr": metrics.apgr(curve),
        "cpt50": metrics.cpt(curve, 0.5),
        "cpt80": metrics.cpt(curve, 0.8),
        "cpt95": metrics.cpt(curve, 0.95),
        "cpt100": metrics.cpt(curve, 1.0),
        "cost95": metrics.cost_at(curve, 0.95, large),
        "audc": metrics.audc(curve),
        "qnc": metrics.qnc(curve, large),
        "aiq": np.array([_aiq(c, q) for c, q in zip(with_large, quality, strict=True)]),
        "band": np.stack([np.interp(grid, c[::-1], q[::-1]) for c, q in zip(cost, curve.quality, strict=True)]),
    }


def _aiq(cost: Floats, quality: Floats) -> float:
    """AIQ between the two models' own costs; NaN where the small model is not the cheaper one."""
    return metrics.aiq(cost, quality, float(cost[-2]), 1.0) if cost[-2] < 1.0 else float("nan")


def _grid(arms: Arms, score: Score) -> Floats:
    cost = sweep_of(arms, score).cost / arms.large_cost.mean()
    return np.linspace(cost[-1], cost[0], GRID_POINTS)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A figure, or K of them, with the ends of its interval."""

    value: Floats
    low: Floats
    high: Floats

    def estimate(self) -> Estimate:
        value, low, high = (float(v) for v in (self.value, self.low, self.high))
        return Estimate(finite(value), finite(low), finite(high))


def _estimates(value: Floats, drawn: Floats) -> _Drawn:
    if np.isnan(drawn).all(axis=0).any():
        nothing = np.full(np.shape(value), np.nan)
        return _Drawn(np.asarray(value), nothing, nothing)
    return _Drawn(np.asarray(value), *percentile_interval(drawn))


def finite(value: float) -> float | None:
    """None for NaN and infinities, which JSON has not."""
    return value if np.isfinite(value) else None


def _point(arms: Arms, plan: Plan, estimates: Mapping[str, _Drawn]) -> Point:
    quality, cost = estimates[f"{plan.key}/quality"], estimates[f"{plan.key}/cost"]
    gap = metrics.pgr(quality.value, arms.small_pass.mean(), arms.large_pass.mean())
    return Point(
        key=plan.key,
        label=plan.label,
        threshold=plan.threshold,
        escalated=float(plan.escalated.mean()),
        quality=quality.estimate(),
        cost=cost.estimate(),
        cost_usd_per_1000=1000.0 * float(plan.cost_usd.mean()),
        pgr=finite(float(gap)),
        latency_p50_s=finite(float(np.median(plan.latency_s))),
    )


def _curve(arms: Arms, score: Score, estimates: Mapping[str, _Drawn]) -> CurveFigures:
    curve = sweep_of(arms, score)
    shown = np.unique(np.linspace(0, len(curve.threshold) - 1, MAX_CURVE_POINTS).round().astype(np.int64))
    band = estimates[f"{score.key}/band"]
    grid, cost = _grid(arms, score), curve.cost[shown] / arms.large_cost.mean()
    nothing = np.zeros(len(arms))
    harm = metrics.sweep(score.values, ~arms.small_pass & arms.large_pass, nothing, nothing, nothing)
    named = {name: estimates[f"{score.key}/{name}"].estimate() for name in CURVE_FIGURES}
    ece, brier = calibration(arms, score)
    return CurveFigures(
        key=score.key,
        label=score.label,
        thresholds=[finite(t) for t in curve.threshold[shown].tolist()],
        escalated=curve.escalated[shown].tolist(),
        quality=curve.quality[shown].tolist(),
        cost=cost.tolist(),
        low=np.interp(cost, grid, band.low).tolist(),
        high=np.interp(cost, grid, band.high).tolist(),
        harmed=harm.quality[shown].tolist(),
        reachable=curve.reachable()[shown].tolist(),
        grid_cost=grid.tolist(),
        band_low=band.low.tolist(),
        band_high=band.high.tolist(),
        ece=ece,
        brier=brier,
        **named,
    )


def calibration(arms: Arms, score: Score) -> tuple[float | None, float | None]:
    """ECE and Brier score of the score's probability, over the drafts that may be served; None without one."""
    if score.probability is None:
        return None, None
    known = np.isfinite(score.values) & ~np.isnan(score.probability)
    if not known.any():
        return None, None
    p, passed = score.probability[known], arms.small_pass[known]
    return metrics.ece(p, passed), metrics.brier(p, passed)
