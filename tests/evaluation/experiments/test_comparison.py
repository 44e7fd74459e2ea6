"""Ratios by the delta method, CUPED, paths: against tea-tasting's figures, against brute force, by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from evaluation.experiments.comparison import Sample, compare, difference_path, level_path, path
from evaluation.experiments.sequential import MIN_UNITS, half_width, optimal_rho
from evaluation.metrics import MetricError
from tests.evaluation.experiments.oracle_units import unit_table

RHO = optimal_rho(600, 0.05)
TEA_TASTING = {
    # (numerator, denominator, covariate): (effect, standard error of the effect)
    # tea-tasting 1.14.0, use_t=False, on unit_table(): Mean and RatioOfMeans(passes, requests), alone and with the
    # covariate `size`. Its error is the half-width of its 95 % interval over 1.959964.
    ("cost", None, None): (-1.3984808686217165, 0.2854931731229797),
    ("cost", None, "size"): (-1.5846808698195427, 0.16448162030651947),
    ("passes", "requests", None): (-0.02616426910781755, 0.018265473806880313),
    ("passes", "requests", "size"): (-0.019734040834146094, 0.01653838888231275),
}


def _arms(numerator: str, denominator: str | None, covariate: str | None) -> tuple[Sample, Sample]:
    table = unit_table()
    den = table[denominator] if denominator else np.ones(600)
    arms = [table["variant"] == 0, table["variant"] == 1]
    control, treatment = (
        Sample(table[numerator][arm], den[arm], table[covariate][arm][:, None] if covariate else None) for arm in arms
    )
    return control, treatment


@pytest.mark.parametrize("metric", TEA_TASTING)
def test_effects_and_errors_are_those_of_tea_tasting(metric: tuple[str, str | None, str | None]) -> None:
    found = compare(*_arms(*metric), rho=RHO, alpha=0.05)
    assert found is not None
    effect, error = TEA_TASTING[metric]
    assert found.difference == pytest.approx(effect, rel=1e-9)
    assert found.standard_error == pytest.approx(error, rel=1e-6)
    width = float(half_width(found.standard_error, 600, rho=RHO, alpha=0.05))
    assert (found.lower, found.upper) == pytest.approx((effect - width, effect + width))


def test_cuped_says_how_much_variance_it_left() -> None:
    plain = compare(*_arms("cost", None, None), rho=RHO, alpha=0.05)
    adjusted = compare(*_arms("cost", None, "size"), rho=RHO, alpha=0.05)
    assert plain is not None
    assert adjusted is not None
    assert plain.variance_kept == 1.0
    assert adjusted.variance_kept == pytest.approx((adjusted.standard_error / plain.standard_error) ** 2)
    assert adjusted.variance_kept < 0.5


def test_the_delta_method_counts_units_not_requests() -> None:
    """Ten identical requests in each unit tell no more than one."""
    rng = np.random.default_rng(3)
    passed = (rng.random(400) < 0.7).astype(np.float64)
    one = (Sample(passed[:200], np.ones(200)), Sample(passed[200:], np.ones(200)))
    ten = (Sample(10 * passed[:200], np.full(200, 10.0)), Sample(10 * passed[200:], np.full(200, 10.0)))
    errors = [found.standard_error for arms in (one, ten) if (found := compare(*arms, rho=RHO, alpha=0.05))]
    assert errors[0] == pytest.approx(errors[1])


def test_the_path_ends_where_the_comparison_stands_and_prefixes_are_comparisons_of_prefixes() -> None:
    table = unit_table()
    treated = table["variant"] == 1
    lower, upper = difference_path(
        path(table["passes"], table["requests"], ~treated),
        path(table["passes"], table["requests"], treated),
        rho=RHO,
        alpha=0.05,
    )
    for end in (350, 600):
        num, den, arm = table["passes"][:end], table["requests"][:end], treated[:end]
        found = compare(Sample(num[~arm], den[~arm]), Sample(num[arm], den[arm]), rho=RHO, alpha=0.05)
        assert found is not None
        assert (lower[end - 1], upper[end - 1]) == pytest.approx((found.lower, found.upper))
    assert np.isinf(lower[: 2 * MIN_UNITS - 1]).all()


def test_one_arms_own_interval_covers_its_level() -> None:
    rng = np.random.default_rng(5)
    slow = rng.random((500, 1500)) < 0.05
    ones = np.ones_like(slow)
    lower, upper = level_path(path(slow, ones, ones), rho=optimal_rho(1500, 0.05), alpha=0.05)
    missed = ((lower > 0.05) | (upper < 0.05)).any(axis=-1).sum()
    assert missed <= binom.ppf(0.999, 500, 0.05)


def test_cuped_keeps_the_error_rate_under_peeking_and_sees_more() -> None:
    """Arms equal: at most alpha. Arms apart: more found with the covariate than without."""
    runs, looks = 300, range(200, 1201, 50)
    rho = optimal_rho(1200, 0.05)
    hits = {(effect, adjust): 0 for effect in (0.0, 0.2) for adjust in (False, True)}
    rng = np.random.default_rng(13)
    for _ in range(runs):
        x = rng.normal(size=1200)
        treated = rng.random(1200) < 0.5
        noise = x + 0.6 * rng.normal(size=1200)
        for effect, adjust in hits:
            y = noise + effect * treated
            for end in looks:
                arms = [
                    Sample(y[:end][arm], np.ones(int(arm.sum())), x[:end][arm][:, None] if adjust else None)
                    for arm in (~treated[:end], treated[:end])
                ]
                found = compare(*arms, rho=rho, alpha=0.05)
                if found and (found.lower > 0 or found.upper < 0):
                    hits[effect, adjust] += 1
                    break
    assert max(hits[0.0, False], hits[0.0, True]) <= binom.ppf(0.999, runs, 0.05)
    assert hits[0.2, True] > hits[0.2, False] + 30


def test_before_the_first_look_the_interval_is_infinite_and_without_data_there_is_none() -> None:
    few = Sample(np.ones(MIN_UNITS - 1), np.ones(MIN_UNITS - 1))
    many = Sample(np.zeros(MIN_UNITS), np.ones(MIN_UNITS))
    found = compare(few, many, rho=RHO, alpha=0.05)
    assert found is not None
    assert (found.lower, found.upper) == (-np.inf, np.inf)
    sparse = Sample(np.zeros(500), np.repeat([1.0, 0.0], [MIN_UNITS - 1, 501 - MIN_UNITS]))
    unjudged = compare(sparse, many, rho=RHO, alpha=0.05)
    assert unjudged is not None
    assert unjudged.lower == -np.inf
    assert compare(Sample(np.zeros(5), np.zeros(5)), many, rho=RHO, alpha=0.05) is None


@pytest.mark.parametrize(
    ("numerator", "denominator", "covariates"),
    [
        (np.ones(3), np.ones(2), None),
        (np.ones(3), -np.ones(3), None),
        (np.full(3, np.nan), np.ones(3), None),
        (np.ones(3), np.ones(3), np.ones(3)),
        (np.ones(3), np.ones(3), np.full((3, 1), np.inf)),
    ],
)
def test_samples_of_other_shapes_or_values_are_refused(
    numerator: np.ndarray, denominator: np.ndarray, covariates: np.ndarray | None
) -> None:
    with pytest.raises(MetricError):
        Sample(numerator, denominator, covariates)
