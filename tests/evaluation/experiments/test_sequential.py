"""The confidence sequence: its formula from the martingale, its error under continuous peeking, its planned power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from evaluation.experiments.comparison import path
from evaluation.experiments.sequential import half_width, optimal_rho, planned_for_rates
from evaluation.metrics import MetricError
from tests.evaluation.experiments.simulation import simulate

RUNS = 2000
ALPHA = 0.05


@pytest.mark.parametrize(("n", "rho", "alpha"), [(100, 0.1, 0.05), (7, 1.3, 0.01), (50_000, 0.004, 0.2)])
def test_on_the_edge_of_the_interval_the_mixture_martingale_is_one_over_alpha(n: int, rho: float, alpha: float) -> None:
    total = n * float(half_width(1.0 / math.sqrt(n), n, rho=rho, alpha=alpha))
    martingale = math.exp(rho**2 * total**2 / (2 * (1 + n * rho**2))) / math.sqrt(1 + n * rho**2)
    assert martingale == pytest.approx(1 / alpha)


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
def test_the_optimal_rho_is_where_the_interval_is_narrowest(alpha: float) -> None:
    found = minimize_scalar(
        lambda rho: float(half_width(1.0, 3000, rho=rho, alpha=alpha)), bounds=(1e-4, 1.0), options={"xatol": 1e-9}
    )
    assert optimal_rho(3000, alpha) == pytest.approx(found.x, rel=1e-4)


def test_the_closed_form_in_print_is_close_to_the_optimum_but_below_it() -> None:
    printed = math.sqrt((-2 * math.log(ALPHA) + math.log(1 - 2 * math.log(ALPHA))) / 3000)
    best = optimal_rho(3000, ALPHA)
    assert 0.95 * best < printed < best
    widths = [float(half_width(1.0, 3000, rho=rho, alpha=ALPHA)) for rho in (printed, best)]
    assert 1.0 < widths[0] / widths[1] < 1.001


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.97])
def test_two_equal_arms_looked_at_after_every_unit_are_told_apart_at_most_alpha_of_the_time(rate: float) -> None:
    """Up to twice the planned size."""
    rng = np.random.default_rng(7)
    found = simulate(rate, rate, units=4000, planned=2000, runs=RUNS, alpha=ALPHA, rng=rng)
    assert found.told <= binom.ppf(0.999, RUNS, ALPHA)


def test_a_fixed_interval_looked_at_after_every_unit_errs_far_more_often() -> None:
    """The simulation can fail: the usual 95 % interval does not survive it."""
    rng = np.random.default_rng(7)
    treated = rng.random((400, 4000)) < 0.5
    value = rng.random((400, 4000)) < 0.8
    ones = np.ones_like(value)
    control, treatment = path(value, ones, ~treated), path(value, ones, treated)
    error = np.sqrt(control.squared_error + treatment.squared_error)[:, 200:]
    outside = np.abs(treatment.ratio - control.ratio)[:, 200:] > 1.96 * error
    assert outside.any(axis=-1).mean() > 3 * ALPHA


def test_an_experiment_of_the_planned_size_has_the_planned_power() -> None:
    power = 0.8
    units = planned_for_rates(0.80, 0.86, alpha=ALPHA, power=power)
    told = {
        size: simulate(0.80, 0.86, units=size, planned=size, runs=RUNS, alpha=ALPHA, rng=np.random.default_rng(11)).told
        for size in (units, units // 2)
    }
    assert told[units] >= binom.ppf(0.001, RUNS, power)
    assert told[units // 2] < binom.ppf(0.001, RUNS, power)


def test_uneven_arms_need_more_units_and_equal_rates_no_number() -> None:
    even = planned_for_rates(0.80, 0.86, alpha=ALPHA, power=0.8)
    assert planned_for_rates(0.80, 0.86, share=0.1, alpha=ALPHA, power=0.8) > 2 * even
    with pytest.raises(MetricError):
        planned_for_rates(0.8, 0.8, alpha=ALPHA, power=0.8)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_a_level_outside_zero_to_one_is_refused(alpha: float) -> None:
    with pytest.raises(MetricError, match="alpha"):
        optimal_rho(100, alpha)
