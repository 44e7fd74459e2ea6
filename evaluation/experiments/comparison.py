"""Two arms of an experiment compared on one metric, unit by unit.

A metric is a ratio Σ numerator / Σ denominator over units (pass rate: passes over judged requests; cost a request:
dollars over requests). Units are independent, requests of one unit are not, so variances are taken over units by the
delta method (Deng, Knoblich and Lu 2018, arXiv 1803.06336): the influence of unit i on R is (Nᵢ − R·Dᵢ)/mean(D).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluation.experiments.sequential import MIN_UNITS, half_width
from evaluation.metrics import Floats, MetricError


@dataclass(frozen=True, slots=True)
class Sample:
    """One metric over the n units of one arm."""

    numerator: Floats
    """(n,)"""
    denominator: Floats
    """(n,) not negative; a unit without any (no judged request) holds 0."""
    covariates: Floats | None = None
    """(n, k) what was known of each unit before its arm could act on it; any unit of measure."""

    def __post_init__(self) -> None:
        n = len(self.numerator)
        if self.numerator.shape != (n,) or self.denominator.shape != (n,) or (self.denominator < 0).any():
            raise MetricError("a sample needs one numerator and one denominator of at least 0 for each unit")
        if not (np.isfinite(self.numerator).all() and np.isfinite(self.denominator).all()):
            raise MetricError("a sample takes finite values only")
        if self.covariates is not None and (
            self.covariates.ndim != 2 or len(self.covariates) != n or not np.isfinite(self.covariates).all()
        ):
            raise MetricError("covariates must be finite and of shape (units, k)")

    @property
    def defined(self) -> bool:
        """True if the ratio and its error can be computed."""
        return len(self.numerator) > 1 and bool(self.denominator.sum() > 0)

    @property
    def informed(self) -> int:
        """Number of units that count for the metric: their denominator is not 0."""
        return int((self.denominator > 0).sum())

    @property
    def ratio(self) -> float:
        """Σ numerator / Σ denominator."""
        return float(self.numerator.sum() / self.denominator.sum())


@dataclass(frozen=True, slots=True)
class Difference:
    """Treatment minus control on one metric."""

    control: float
    treatment: float
    difference: float
    """Adjusted by the covariates where there are any."""
    standard_error: float
    lower: float
    upper: float
    """The confidence sequence's interval; infinite before both arms have `MIN_UNITS` units with the metric."""
    units: int
    variance_kept: float
    """Variance with the covariates over the variance without; 1 where there are none."""


def compare(control: Sample, treatment: Sample, *, rho: float, alpha: float) -> Difference | None:
    """The difference of two arms and its interval at level 1 − alpha; None where a ratio is not defined.

    CUPED (Deng, Xu, Kohavi and Walker 2013): the adjusted difference is ΔR − θ·ΔX̄ with θ the regression of the
    unit's influence on its covariates over both arms. Unbiased for any θ, since the arm cannot move X.
    """
    if not (control.defined and treatment.defined):
        return None
    theta = _theta(control, treatment)
    plain = treatment.ratio - control.ratio
    shift = 0.0
    if theta is not None and control.covariates is not None and treatment.covariates is not None:
        shift = float((treatment.covariates.mean(axis=0) - control.covariates.mean(axis=0)) @ theta)
    squared = _squared_error(control, theta) + _squared_error(treatment, theta)
    unadjusted = _squared_error(control, None) + _squared_error(treatment, None)
    error = float(np.sqrt(squared))
    n_control, n_treatment = len(control.numerator), len(treatment.numerator)
    width = float(half_width(error, n_control + n_treatment, rho=rho, alpha=alpha))
    if min(control.informed, treatment.informed) < MIN_UNITS:
        width = float("inf")
    return Difference(
        control=control.ratio,
        treatment=treatment.ratio,
        difference=plain - shift,
        standard_error=error,
        lower=plain - shift - width,
        upper=plain - shift + width,
        units=n_control + n_treatment,
        variance_kept=squared / unadjusted if unadjusted > 0 else 1.0,
    )


def _theta(control: Sample, treatment: Sample) -> Floats | None:
    """(k,) least-squares coefficients; None without covariates."""
    if control.covariates is None or treatment.covariates is None:
        return None
    numerator = np.concatenate([control.numerator, treatment.numerator])
    denominator = np.concatenate([control.denominator, treatment.denominator])
    x = np.concatenate([control.covariates, treatment.covariates])
    influence = (numerator - numerator.sum() / denominator.sum() * denominator) / denominator.mean()
    spread = x - x.mean(axis=0)
    return np.asarray(np.linalg.lstsq(spread, influence - influence.mean(), rcond=None)[0])


def _squared_error(sample: Sample, theta: Floats | None) -> float:
    """Squared standard error of one arm's (adjusted) ratio."""
    influence = (sample.numerator - sample.ratio * sample.denominator) / sample.denominator.mean()
    if theta is not None and sample.covariates is not None:
        influence = influence - sample.covariates @ theta
    return float(influence.var(ddof=1) / len(influence))


@dataclass(frozen=True, slots=True)
class Path:
    """A ratio at every prefix of the units in their order of exposure; arrays of shape (..., n)."""

    units: Floats
    """Units of the arm so far."""
    informed: Floats
    """Those among them whose denominator is not 0."""
    ratio: Floats
    """NaN before there is one."""
    squared_error: Floats


def path(numerator: npt.ArrayLike, denominator: npt.ArrayLike, member: npt.ArrayLike) -> Path:
    """One arm's ratio and its squared standard error as units arrive, by running sums along the last axis.

    Args:
        numerator, denominator: (..., n) of all units, whichever arm.
        member: (..., n) whether the unit is in this arm.
    """
    m = np.asarray(member, dtype=np.float64)
    num, den = np.asarray(numerator, dtype=np.float64) * m, np.asarray(denominator, dtype=np.float64) * m
    units = np.cumsum(m, axis=-1)
    sn, sd = np.cumsum(num, axis=-1), np.cumsum(den, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sn / sd
        squares = np.cumsum(num * num, axis=-1) - 2 * ratio * np.cumsum(num * den, axis=-1)
        squares = np.maximum(squares + ratio**2 * np.cumsum(den * den, axis=-1), 0.0)
        squared_error = squares / (units - 1.0) / units / (sd / units) ** 2
    informed = np.cumsum(den > 0, axis=-1, dtype=np.float64)
    return Path(units, informed, ratio, np.where(units > 1, squared_error, np.nan))


def difference_path(control: Path, treatment: Path, *, rho: float, alpha: float) -> tuple[Floats, Floats]:
    """Lower and upper ends of the difference's interval at every prefix; infinite before `MIN_UNITS` in both arms."""
    units = control.units + treatment.units
    error = np.sqrt(control.squared_error + treatment.squared_error)
    ready = (np.minimum(control.informed, treatment.informed) >= MIN_UNITS) & np.isfinite(error)
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.where(ready, half_width(error, units, rho=rho, alpha=alpha), np.inf)
    middle = np.where(ready, treatment.ratio - control.ratio, 0.0)
    return middle - width, middle + width


def level_path(arm: Path, *, rho: float, alpha: float) -> tuple[Floats, Floats]:
    """Lower and upper ends of one arm's own interval at every prefix; infinite before `MIN_UNITS`."""
    ready = (arm.informed >= MIN_UNITS) & np.isfinite(arm.squared_error)
    with np.errstate(divide="ignore", invalid="ignore"):
        width = half_width(np.sqrt(arm.squared_error), arm.units, rho=rho, alpha=alpha)
    width = np.where(ready, width, np.inf)
    middle = np.where(ready, arm.ratio, 0.0)
    return middle - width, middle + width
