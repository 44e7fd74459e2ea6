"""Intervals against published values, against coverage by simulation, and against plain resampling."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from evaluation.intervals import cluster_weights, percentile_interval, weighted_means, wilson
from evaluation.metrics import MetricError


def _weights(clusters: Sequence[Hashable], draws: int, rng: np.random.Generator) -> np.ndarray:
    blocks = list(cluster_weights(clusters, draws, rng, max_cells=100))
    assert all(block.size <= 100 or len(block) == 1 for block in blocks)
    return np.concatenate(blocks)


def test_wilson_by_hand() -> None:
    """1 of 10 at 95 %: centre (.1 + z²/20)/(1 + z²/10), with z = 1.959964."""
    assert wilson(1, 10) == pytest.approx((0.017876, 0.404150), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.277533), abs=1e-5)
    assert wilson(10, 10)[1] == pytest.approx(1)
    assert wilson(0, 0) == (0, 1)
    with pytest.raises(MetricError):
        wilson(3, 2)


def test_a_draw_takes_whole_clusters_as_many_as_there_are() -> None:
    """Rows of one cluster count alike, and the counts of clusters sum to their number."""
    clusters = ["a", "b", "a", "c", "c"]
    weights = _weights(clusters, 200, np.random.default_rng(0))
    assert weights.shape == (200, 5)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert len({tuple(w) for w in weights}) > 5


def test_the_same_generator_gives_the_same_draws() -> None:
    """Reports are deterministic."""
    first, second = (_weights(range(9), 20, np.random.default_rng(7)) for _ in range(2))
    assert (first == second).all()


def test_weighted_means_are_those_of_the_repeated_rows() -> None:
    """One vector or several columns at once."""
    values = np.array([[0.0, 1.0], [1.0, 5.0], [1.0, 9.0]])
    weights = np.array([[2, 1, 0], [1, 1, 1]])
    assert weighted_means(values, weights) == pytest.approx(np.array([[1 / 3, 7 / 3], [2 / 3, 5.0]]))
    assert weighted_means(values[:, 0], weights) == pytest.approx([1 / 3, 2 / 3])


def test_clustered_intervals_cover_where_row_intervals_do_not() -> None:
    """40 clusters of 10 equal rows: the 95 % interval holds the truth about as often as it says, rows' own seldom."""
    rng = np.random.default_rng(3)
    hits = {"clusters": 0, "rows": 0}
    trials = 150
    for _ in range(trials):
        values = np.repeat(rng.random(40) < 0.5, 10).astype(float)
        for name, clusters in (("clusters", np.repeat(np.arange(40), 10)), ("rows", np.arange(400))):
            low, high = percentile_interval(weighted_means(values, _weights(clusters.tolist(), 200, rng)))
            hits[name] += int(low <= 0.5 <= high)
    assert hits["clusters"] / trials > 0.88
    assert hits["rows"] / trials < 0.7


def test_undefined_draws_are_left_out_unless_all_are() -> None:
    """A draw in which both models are equal has no gap to recover."""
    low, high = percentile_interval([0.1, np.nan, 0.3])
    assert (low, high) == (0.1, 0.3)
    assert percentile_interval([np.inf, 0.5, 0.5])[1] == np.inf
    with pytest.raises(MetricError):
        percentile_interval([np.nan, np.nan])
