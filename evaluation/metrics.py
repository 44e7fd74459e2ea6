"""A policy's gains: cost/quality curves and their one-figure summaries; how well a score parts right from wrong.

Pure functions over arrays; nothing here reads a table or knows a model. A *sweep* orders n requests by a score and
moves a threshold from "escalate all" to "answer all small"; requests of equal score move together, since no threshold
can part them. A score of −inf marks a draft that may never be served (invalid, or no call): the finite thresholds are
what a gateway can be set to, the last point is the small model pinned.

Cost counts the small model on every request, and the large one on top where it is asked. Quantities found by looking
at the labels of the same rows (QNC, CPT, the best threshold) are optimistic for new traffic; no interval mends that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class MetricError(ValueError):
    """Input on which a metric is not defined."""


@dataclass(frozen=True, slots=True)
class Curve:
    """T operating points from "escalate all" (first) to "answer all small" (last).

    With weights of shape (B, n), `escalated`, `quality` and `cost` have shape (B, T), else (T,).
    """

    threshold: Floats
    """(T,) answered small iff score ≥ threshold; descending, the first is +inf."""
    escalated: Floats
    """Share of requests that the large model answers, in [0, 1]."""
    quality: Floats
    """Pass rate, in [0, 1]."""
    cost: Floats
    """Mean cost a request, in the unit of the costs given, the small model's on every request included."""

    def reachable(self) -> npt.NDArray[np.bool_]:
        """(T,) True where a gateway can be set to the point: its threshold is above −inf."""
        return np.asarray(self.threshold > -np.inf)


def sweep(
    scores: npt.ArrayLike,
    small_pass: npt.ArrayLike,
    large_pass: npt.ArrayLike,
    small_cost: npt.ArrayLike,
    large_cost: npt.ArrayLike,
    *,
    weights: npt.ArrayLike | None = None,
) -> Curve:
    """Every operating point of one score over n paired requests; all inputs have shape (n,).

    `weights`, of shape (n,) or (B, n), counts each request so often: with rows of bootstrap counts, each of the B
    curves is that of a whole new draw. Costs are in one unit. NaN anywhere is a `MetricError`.
    """
    score, small, large, cost_s, cost_l = (
        np.asarray(a, dtype=np.float64) for a in (scores, small_pass, large_pass, small_cost, large_cost)
    )
    n = len(score)
    if n == 0 or any(a.shape != (n,) for a in (score, small, large, cost_s, cost_l)):
        raise MetricError("a sweep needs arrays of one equal length over at least one request")
    if any(np.isnan(a).any() for a in (score, small, large, cost_s, cost_l)) or np.isposinf(score).any():
        raise MetricError("a sweep takes no NaN, and scores below +inf")
    w = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), n - 1)
    w = w[..., order]
    total = w.sum(axis=-1, keepdims=True)
    if (total <= 0).any():
        raise MetricError("weights must have a positive sum")

    def answered(values: Floats) -> Floats:
        """Σ w·values over the requests answered small, at every point."""
        sums = np.cumsum(w * values, axis=-1)[..., ends]
        return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)

    quality = ((w * large[order]).sum(axis=-1, keepdims=True) + answered((small - large)[order])) / total
    both = (w * (cost_s + cost_l)[order]).sum(axis=-1, keepdims=True)
    return Curve(
        threshold=np.concatenate([[np.inf], ordered[ends]]),
        escalated=1.0 - answered(np.ones(n)) / total,
        quality=quality,
        cost=(both - answered(cost_l[order])) / total,
    )


def pgr(quality: npt.ArrayLike, q_small: npt.ArrayLike, q_large: npt.ArrayLike) -> Floats:
    """Performance gap recovered, (q − q_S)/(q_L − q_S); NaN where the models are equal (RouteLLM, arXiv 2406.18665)."""
    q, qs, ql = (np.asarray(a, dtype=np.float64) for a in (quality, q_small, q_large))
    gap = np.asarray(ql - qs)
    return np.asarray(np.where(gap == 0, np.nan, (q - qs) / np.where(gap == 0, 1.0, gap)))


def apgr(curve: Curve) -> Floats:
    """∫ PGR dρ over the share escalated ρ in [0, 1] (RouteLLM, arXiv 2406.18665).

    Exact for the piecewise linear curve; RouteLLM averages ten equal steps of ρ. A straight line between two points is
    what a coin between their thresholds reaches. A random mix has 1/2.
    """
    value = pgr(curve.quality, curve.quality[..., -1:], curve.quality[..., :1])
    return np.asarray(np.trapezoid(value[..., ::-1], curve.escalated[..., ::-1], axis=-1))


def cpt(curve: Curve, x: float) -> Floats:
    """Least share escalated at which PGR ≥ x: the call-performance threshold (RouteLLM, arXiv 2406.18665).

    The first crossing of the running maximum over points that a gateway can be set to. Not interpolated: on a curve
    that falls and rises, interpolating quality → share picks an arbitrary branch. inf where never reached.
    """
    value = pgr(curve.quality, curve.quality[..., -1:], curve.quality[..., :1])
    hit = curve.reachable() & (value >= x - 1e-12)
    return np.asarray(np.where(hit, curve.escalated, np.inf).min(axis=-1))


def qnc(curve: Curve, large_cost: npt.ArrayLike) -> Floats:
    """Quality-neutral cost: least cost with q ≥ q_L, over the large model's own mean cost c_L; inf if never reached.

    The first point of a sweep escalates all and so has q = q_L at 1 + c_S/c_L: the value is at most that.
    """
    hit = curve.reachable() & (curve.quality >= curve.quality[..., :1] - 1e-12)
    cheapest = np.where(hit, curve.cost, np.inf).min(axis=-1)
    return np.asarray(cheapest / np.asarray(large_cost, dtype=np.float64))


def cost_at(curve: Curve, x: float, large_cost: npt.ArrayLike) -> Floats:
    """Least cost with PGR ≥ x, over the large model's own mean cost; inf if never reached. At x = 1 it is `qnc`."""
    value = pgr(curve.quality, curve.quality[..., -1:], curve.quality[..., :1])
    hit = curve.reachable() & (value >= x - 1e-12)
    return np.asarray(np.where(hit, curve.cost, np.inf).min(axis=-1) / np.asarray(large_cost, dtype=np.float64))


def audc(curve: Curve) -> Floats:
    """∫ q dc' over the cost c' between the curve's own ends, scaled to [0, 1]: the area under the deferral curve.

    0 is the small model pinned, 1 is "escalate all". No hull: what a threshold does, dents included. NaN where both
    ends cost the same.
    """
    low, high = curve.cost[..., -1:], curve.cost[..., :1]
    span = high - low
    scaled = np.where(span > 0, (curve.cost - low) / np.where(span > 0, span, 1.0), np.nan)
    return np.asarray(np.trapezoid(curve.quality[..., ::-1], scaled[..., ::-1], axis=-1))


def hull(cost: npt.ArrayLike, quality: npt.ArrayLike) -> tuple[Floats, Floats]:
    """The non-decreasing convex hull of points (T,), cheapest first (RouterBench, arXiv 2403.12031).

    Linear between two points, since a coin between two policies reaches it; never falling, since money need not be
    spent. The returned vertices rise strictly in both coordinates.
    """
    c, q = np.asarray(cost, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    if c.shape != q.shape or c.ndim != 1 or not len(c) or not (np.isfinite(c).all() and np.isfinite(q).all()):
        raise MetricError("a hull needs finite costs and qualities, as many of the one as of the other")
    order = np.lexsort((-q, c))
    c, q = c[order], q[order]
    rises = q > np.concatenate([[-np.inf], np.maximum.accumulate(q)[:-1]])
    stack: list[int] = []
    for i in np.flatnonzero(rises).tolist():
        while len(stack) > 1 and _turns_left(c, q, stack[-2], stack[-1], i):
            stack.pop()
        stack.append(i)
    return c[stack], q[stack]


def _turns_left(c: Floats, q: Floats, a: int, b: int, d: int) -> bool:
    """True where b lies on or below the line from a to d."""
    return bool((c[b] - c[a]) * (q[d] - q[a]) >= (q[b] - q[a]) * (c[d] - c[a]))


def aiq(cost: npt.ArrayLike, quality: npt.ArrayLike, c_min: float, c_max: float) -> float:
    """∫ non-decreasing convex hull of q over c in [c_min, c_max], over c_max − c_min (RouterBench, arXiv 2403.12031).

    The mean quality of a budget drawn evenly between the two costs. Policies are comparable only over one common
    range: pass the two models' own costs, and both models' points among the points. The hull must start at c_min or
    below (`MetricError` else); beyond its last vertex it stays level.
    """
    c, q = hull(cost, quality)
    if not c_min < c_max or c[0] > c_min:
        raise MetricError("AIQ needs c_min < c_max and a point at c_min or cheaper")
    inner = c[(c > c_min) & (c < c_max)]
    at = np.concatenate([[c_min], inner, [c_max]])
    return float(np.trapezoid(np.interp(at, c, q), at) / (c_max - c_min))


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Floats:
    """P(score of a pass > score of a failure) + ½·P(equal); NaN where one class is empty (Mann and Whitney 1947).

    `weights`, of shape (n,) or (B, n), counts each row so often; the result has shape () or (B,).
    """
    s, y = _scored(scores, labels)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(s, kind="stable")
    _, starts = np.unique(s[order], return_index=True)
    passes, fails = (np.add.reduceat((w * mask)[..., order], starts, axis=-1) for mask in (y, ~y))
    below = np.cumsum(fails, axis=-1) - fails
    pairs = passes.sum(axis=-1) * fails.sum(axis=-1)
    won = (passes * (below + 0.5 * fails)).sum(axis=-1)
    return np.asarray(np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1.0), np.nan))


def aurc(scores: npt.ArrayLike, labels: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Floats:
    """Mean over k = 1…n of the failure rate among the k best-scored (Geifman et al. 2019, arXiv 1805.08206).

    Rows of equal score count as in random order: the expectation, not the luck of a sort. `weights`, whole numbers of
    shape (n,) or (B, n), count each row so often; the result has shape () or (B,), NaN where a draw is empty.
    """
    s, y = _scored(scores, labels)
    w = np.ones(len(s)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.argsort(-s, kind="stable")
    _, starts = np.unique(-s[order], return_index=True)
    counts, wrong = (np.add.reduceat((w * mask)[..., order], starts, axis=-1) for mask in (np.ones(len(s)), ~y))
    total = counts.sum(axis=-1)
    after = np.cumsum(counts, axis=-1)
    rate = wrong / np.where(counts > 0, counts, 1.0)
    # Within a group of ties the k-th answer has failed `before + (k − start)·rate` times in expectation; Σ 1/k is a
    # difference of harmonic numbers.
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(total.max(initial=0)) + 1))])
    inverse_k = harmonic[after.astype(np.int64)] - harmonic[(after - counts).astype(np.int64)]
    before = np.cumsum(wrong, axis=-1) - wrong
    summed = ((before - (after - counts) * rate) * inverse_k + rate * counts).sum(axis=-1)
    return np.asarray(np.where(total > 0, summed / np.where(total > 0, total, 1.0), np.nan))


def e_aurc(scores: npt.ArrayLike, labels: npt.ArrayLike, *, weights: npt.ArrayLike | None = None) -> Floats:
    """AURC above that of a score that puts every pass before every failure (Geifman et al. 2019, arXiv 1805.08206)."""
    s, y = _scored(scores, labels)
    return np.asarray(aurc(s, y, weights=weights) - aurc(y.astype(np.float64), y, weights=weights))


def brier(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean squared distance of P(pass) from the outcome (Brier 1950)."""
    p, y = _scored(probabilities, labels, probability=True)
    return float(((p - y) ** 2).mean())


def ece(probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 15) -> float:
    """Expected calibration error over bins of equal mass: Σ n_b/n·|mean label − mean probability|.

    ECE as Naeini et al. 2015 and Guo et al. 2017 (arXiv 1706.04599), bins by rank as Nguyen and O'Connor 2015
    (arXiv 1508.05154). Rows of equal probability stay in one bin, so bins can be fewer and unequal where ties are many.
    """
    p, y = _scored(probabilities, labels, probability=True)
    values, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2.0
    bin_of_value = np.minimum((middle * bins / len(p)).astype(np.int64), bins - 1)
    of_row = bin_of_value[inverse]
    gap = np.bincount(of_row, weights=y - values[inverse], minlength=bins)
    return float(np.abs(gap).sum() / len(p))


def _scored(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, probability: bool = False
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Scores and labels as arrays (n,), checked."""
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(np.bool_)
    if s.ndim != 1 or s.shape != y.shape or not len(s) or np.isnan(s).any():
        raise MetricError("scores and labels must be of one length, at least one, and hold no NaN")
    if probability and ((s < 0) | (s > 1)).any():
        raise MetricError("probabilities must lie in [0, 1]")
    return s, y
