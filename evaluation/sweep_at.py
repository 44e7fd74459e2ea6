"""Many decisions at a few given thresholds: one pass over the rows in bounded memory, no sort.

`evaluation.metrics.sweep` sorts and tells every threshold there is; for ten million logged decisions a thousand
thresholds are enough. A row falls between two of them (a binary search), its figures are added up there, and sums from
the strictest threshold on give every point: O(n log T) time, O(T) memory besides the rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Curve, Floats, MetricError

CHUNK_ROWS = 1_000_000


def sweep_at(
    scores: npt.ArrayLike,
    small_pass: npt.ArrayLike,
    large_pass: npt.ArrayLike,
    small_cost: npt.ArrayLike,
    large_cost: npt.ArrayLike,
    thresholds: npt.ArrayLike,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> Curve:
    """The operating points of `score ≥ threshold` at "escalate all" and at T given thresholds; shape (T + 1,).

    Args:
        scores: (n,), like the next four, in any number type; −inf marks a draft that may never be served.
        thresholds: (T,) finite, in any order; told from the strictest to the loosest, each once.

    Raises:
        MetricError: no row, arrays of different lengths, NaN in scores or costs, or thresholds that are not finite.
    """
    columns = [np.asarray(column) for column in (scores, small_pass, large_pass, small_cost, large_cost)]
    n = len(columns[0])
    if n == 0 or any(column.shape != (n,) for column in columns):
        raise MetricError("a sweep needs arrays of one equal length over at least one request")
    levels = np.unique(np.asarray(thresholds, dtype=np.float64))[::-1]
    if not len(levels) or not np.isfinite(levels).all():
        raise MetricError("thresholds must be finite, and at least one")
    sums = np.zeros((5, len(levels) + 1))  # of the last place: rows below every threshold
    for start in range(0, n, chunk_rows):
        sums += _summed([column[start : start + chunk_rows] for column in columns], levels)
    if np.isnan(sums).any():
        raise MetricError("a sweep takes no NaN")
    total, answered = sums.sum(axis=1), np.cumsum(sums, axis=1)[:, :-1]
    count, small, large, _, large_usd = np.concatenate([np.zeros((5, 1)), answered], axis=1)
    return Curve(
        threshold=np.concatenate([[np.inf], levels]),
        escalated=1.0 - count / n,
        quality=(total[2] + small - large) / n,
        cost=(total[3] + total[4] - large_usd) / n,
    )


def _summed(columns: list[npt.NDArray[np.generic]], levels: Floats) -> Floats:
    """(5, T + 1): rows, small passes, large passes, small and large costs, by the strictest threshold they reach."""
    score, small, large, small_cost, large_cost = (column.astype(np.float64) for column in columns)
    if np.isnan(score).any():
        raise MetricError("a sweep takes no NaN")
    place = np.searchsorted(-levels, -score, side="left")
    weights = (None, small, large, small_cost, large_cost)
    return np.stack([np.bincount(place, weights=w, minlength=len(levels) + 1) for w in weights])
