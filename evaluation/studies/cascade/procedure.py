"""The effect of a threshold on rows that did not choose it: the claim is about the procedure, not about one threshold.

One part of the rows chooses, another reports. In each bootstrap draw both parts are drawn anew, by whole clusters and
independently, and the threshold is chosen again, so that the interval holds the luck of the choice too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from evaluation.intervals import cluster_weights, percentile_interval
from evaluation.metrics import Curve, Floats
from evaluation.replay.figures import Estimate, finite, sweep_of
from evaluation.replay.plans import Score
from evaluation.replay.scorers import Part
from policies.rules.certificate import certify_harm, one_of_each
from policies.types import BoolArray

Ints = npt.NDArray[np.int64]


class OperatingPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one chosen threshold on the holdout part."""

    threshold: float | None
    """None: everything goes to the large model, and nothing is drafted."""
    passed: Estimate
    cost: Estimate
    """Over the large model's own."""
    escalated: float
    harmed: float
    """Answered small and wrong where the large model is right, over all requests."""
    loss: Estimate
    """Pass rate of the large model minus this one's."""
    certified: str = ""
    """The certificate as text; empty where the choice has none."""


def neutral(
    selection: Part, selection_score: Score, holdout: Part, holdout_score: Score, *, draws: int, seed: int
) -> OperatingPoint:
    """The cheapest threshold that reaches the large model's pass rate on the selection part, reported on the other."""
    rng = np.random.default_rng(seed)
    chosen = _cheapest(sweep_of(selection.arms, selection_score, np.ones((1, len(selection)))))
    point = _operate(holdout, holdout_score, np.ones((1, len(holdout))), chosen)
    values = []
    pairs = zip(_blocks(selection.arms.clusters, draws, rng), _blocks(holdout.arms.clusters, draws, rng), strict=True)
    for w_choose, w_tell in pairs:
        values.append(
            _operate(
                holdout,
                holdout_score,
                w_tell,
                _cheapest(sweep_of(selection.arms, selection_score, w_choose.astype(np.float64))),
            )
        )
    drawn = np.concatenate(values, axis=1)
    return _operating_point(holdout, holdout_score, float(chosen[0]), point[:, 0], drawn)


def certified(
    certifying: Part,
    certification_score: Score,
    holdout: Part,
    holdout_score: Score,
    *,
    alpha: float,
    delta: float,
    draws: int,
    seed: int,
) -> OperatingPoint:
    """The loosest threshold whose harm is certified to be at most `alpha` with confidence 1 − `delta`.

    One row a conversation certifies. The interval is that of the holdout part at this one threshold: a certificate is
    given once.
    """
    rng = np.random.default_rng(seed)
    rows = one_of_each([case.conversation for case in certifying.arms.cases], rng)
    made = certify_harm(
        certification_score.values[rows],
        certifying.arms.small_pass[rows],
        certifying.arms.large_pass[rows],
        alpha=alpha,
        delta=delta,
    )
    threshold = np.array([np.inf if made is None else made.threshold])
    point = _operate(holdout, holdout_score, np.ones((1, len(holdout))), threshold)
    blocks = [
        _operate(holdout, holdout_score, w, np.repeat(threshold, len(w)))
        for w in _blocks(holdout.arms.clusters, draws, rng)
    ]
    said = f"none on {len(rows)} rows" if made is None else f"{made.errors} of {made.rows}, bound {made.bound:.2%}"
    return msgspec.structs.replace(
        _operating_point(holdout, holdout_score, float(threshold[0]), point[:, 0], np.concatenate(blocks, axis=1)),
        certified=said,
    )


_BLOCK = 100


def _blocks(clusters: Sequence[Hashable], draws: int, rng: np.random.Generator) -> list[Ints]:
    """Weights in blocks of equal numbers of draws for any number of rows."""
    return list(cluster_weights(clusters, draws, rng, max_cells=_BLOCK * len(clusters)))


def _cheapest(curve: Curve) -> Floats:
    """(B,) thresholds: the cheapest that a gateway can be set to and that loses nothing; +inf for the large alone."""
    hit = curve.reachable() & (curve.quality >= curve.quality[..., :1] - 1e-12)
    return np.asarray(curve.threshold[np.where(hit, curve.cost, np.inf).argmin(axis=-1)])


def _operate(part: Part, score: Score, weights: npt.ArrayLike, thresholds: Floats) -> Floats:
    """(3, B): pass rate, cost over the large model's, loss of pass rate, at one threshold a draw."""
    w = np.asarray(weights, dtype=np.float64)
    curve = sweep_of(part.arms, score, w)
    # Thresholds descend: the last point whose threshold is not below the chosen one answers the same requests.
    at = np.searchsorted(-curve.threshold, -thresholds, side="right") - 1
    draw = np.arange(len(w))
    large = (w @ part.arms.large_cost) / w.sum(axis=1)
    quality, cost = curve.quality[draw, at], curve.cost[draw, at] / large
    cost = np.where(at == 0, 1.0, cost)  # all goes large: nothing is drafted
    return np.stack([quality, cost, curve.quality[:, 0] - quality])


def _operating_point(part: Part, score: Score, threshold: float, point: Floats, drawn: Floats) -> OperatingPoint:
    small: BoolArray = score.values >= threshold
    low, high = percentile_interval(drawn.T)
    passed, cost, loss = (
        Estimate(finite(float(v)), float(a), float(b)) for v, a, b in zip(point, low, high, strict=True)
    )
    return OperatingPoint(
        threshold=finite(threshold),
        passed=passed,
        cost=cost,
        escalated=float(1.0 - small.mean()),
        harmed=float((small & ~part.arms.small_pass & part.arms.large_pass).mean()),
        loss=loss,
    )
