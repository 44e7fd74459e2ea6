"""Ten million decisions, a thousand thresholds: one pass, a sort, and the obvious loop over thresholds.

The loop is measured at ten of the thousand thresholds, which cost alike, and multiplied: that is said. Seconds are of
the process's own CPU time, since other work may share the machine. The three are held against each other.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from evaluation.metrics import Curve, Floats, sweep
from evaluation.sweep_at import sweep_at

LOOPED = 10
T = TypeVar("T")


def loop(columns: list[Floats], thresholds: Floats) -> Floats:
    """(T, 3): share escalated, pass rate and cost, each threshold by itself."""
    scores, small, large, small_cost, large_cost = columns
    points = []
    for threshold in thresholds:
        accepted = scores >= threshold
        cost = small_cost + np.where(accepted, 0.0, large_cost)
        points.append((1 - accepted.mean(), np.where(accepted, small, large).mean(), cost.mean()))
    return np.array(points)


def decisions(n: int, rng: np.random.Generator) -> list[Floats]:
    """Scores, who passes, and what it costs."""
    scores = rng.random(n)
    small = (rng.random(n) < scores).astype(np.float64)
    large = (rng.random(n) < 0.9).astype(np.float64)
    return [scores, small, large, np.full(n, 3e-5), rng.uniform(5e-4, 2e-3, n)]


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and its CPU seconds."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--thresholds", type=int, default=1000)
    given = parser.parse_args()
    columns = decisions(given.rows, np.random.default_rng(0))
    thresholds = np.linspace(0.001, 0.999, given.thresholds)
    one, one_s = timed(lambda: sweep_at(*columns, thresholds))
    looped = thresholds[:: max(1, len(thresholds) // LOOPED)][:LOOPED]
    points, some_s = timed(lambda: loop(columns, looped))
    loop_s = some_s / len(looped) * len(thresholds)
    agree(one, looped, points)
    every, sort_s = timed(lambda: sweep(*columns))
    print(f"{given.rows:,} decisions, {len(thresholds):,} thresholds; CPU seconds of one process")
    print(f"one pass at the thresholds   {one_s:9.2f} s")
    print(f"sort, every threshold        {sort_s:9.2f} s   ({len(every.threshold):,} points)")
    print(f"loop over thresholds         {loop_s:9.2f} s   ({len(looped)} measured in {some_s:.2f} s, times the rest)")
    print(f"the loop costs {loop_s / one_s:.0f} times the pass, {loop_s / sort_s:.0f} times the sort")


def agree(curve: Curve, thresholds: Floats, points: Floats) -> None:
    """Raises AssertionError where the pass and the loop differ."""
    at = np.searchsorted(-curve.threshold, -thresholds)
    ours = np.stack([curve.escalated[at], curve.quality[at], curve.cost[at]], axis=1)
    np.testing.assert_allclose(ours, points, rtol=1e-9)


if __name__ == "__main__":
    main()
