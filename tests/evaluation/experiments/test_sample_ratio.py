"""Sample-ratio mismatch: χ² against tea-tasting, the Bayes factor against enumeration and under peeking."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from evaluation.experiments.sample_ratio import LEVEL, log_bayes_factors, sample_ratio
from evaluation.metrics import MetricError


def test_chi_squared_is_that_of_tea_tasting() -> None:
    """tea-tasting 1.14.0, SampleRatio(1, method="norm", correction=False) on 329 and 271 units."""
    assert sample_ratio([329, 271], [0.5, 0.5]).p_value == pytest.approx(0.01789226761301928)


def test_the_bayes_factor_averages_to_one_over_all_outcomes_of_the_plan() -> None:
    shares = np.array([0.2, 0.5, 0.3])
    total = 0.0
    for k in product(range(8), repeat=3):
        if sum(k) == 7:
            ways = math.factorial(7) // math.prod(math.factorial(i) for i in k)
            total += ways * float(np.prod(shares**k)) * math.exp(float(log_bayes_factors(k, shares)))
    assert total == pytest.approx(1.0)


def test_a_true_plan_is_hardly_ever_doubted_however_often_one_looks_and_a_broken_one_is_found() -> None:
    rng = np.random.default_rng(1)

    def alarms(share: float, runs: int, units: int) -> int:
        treated = np.cumsum(rng.random((runs, units)) < share, axis=-1)
        counts = np.stack([np.arange(1, units + 1) - treated, treated], axis=-1)
        return int((log_bayes_factors(counts, [0.5, 0.5]).max(axis=-1) >= -math.log(LEVEL)).sum())

    assert sum(alarms(0.5, 200, 4000) for _ in range(10)) <= binom.ppf(0.999, 2000, LEVEL)
    assert alarms(0.53, 200, 12_000) >= 190


def test_the_alarm_names_a_mismatch_and_no_units_are_none() -> None:
    assert sample_ratio([5300, 4700], [1, 1]).mismatch
    assert not sample_ratio([5010, 4990], [1, 1]).mismatch
    assert not sample_ratio([9000, 1000], [9, 1]).mismatch
    assert sample_ratio([0, 0], [1, 1]).p_value == 1.0


@pytest.mark.parametrize(("counts", "weights"), [([1], [1]), ([1, 2], [1]), ([1, 2], [1, 0]), ([-1, 2], [1, 1])])
def test_counts_that_fit_no_plan_are_refused(counts: list[int], weights: list[float]) -> None:
    with pytest.raises(MetricError):
        sample_ratio(counts, weights)
