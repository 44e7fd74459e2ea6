"""Intervals that stay valid however often one looks: the asymptotic confidence sequence of a mean-like estimate.

For Gaussian sums S_n = Σ(x − μ)/σ and a normal mixture N(0, ρ²) over drifts,
M_n = (1 + nρ²)^(−1/2)·exp(ρ²S_n²/(2(1 + nρ²))) is a martingale (Robbins 1970). Ville's inequality gives
P(∃n: M_n ≥ 1/α) ≤ α, and M_n < 1/α solved for μ is x̄ ± σ·√[2(nρ² + 1)/(n²ρ²)·ln(√(nρ² + 1)/α)]. Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas (Annals of Statistics 2024, arXiv 2103.06476) show that it holds asymptotically for values of
any distribution with finite variance, σ estimated. With the standard error SE = σ̂/√n and x = nρ²:

    half-width = SE·√[(x + 1)/x·ln((x + 1)/α²)]

Asymptotic: nothing is promised for the first few dozen units, where σ̂ may be zero. Callers look from `MIN_UNITS` on.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import lambertw, ndtri

from evaluation.metrics import Floats, MetricError

MIN_UNITS = 100
"""Units in an arm before its interval means anything."""


def _check_alpha(alpha: float) -> None:
    if not 0.0 < alpha < 1.0:
        raise MetricError(f"alpha: {alpha} does not lie between 0 and 1")


def _best_x(alpha: float) -> float:
    """The x = nρ² of the least half-width.

    d/dx of (x + 1)/x·ln((x + 1)/α²) is zero where x = ln(1 + x) − 2 ln α, so x = −W₋₁(−α²/e) − 1 with Lambert's W. One
    step of that fixed point from x = −2 ln α is the closed form −2 ln α + ln(1 − 2 ln α) that is often printed; it is
    a few per cent low in ρ and costs less than 0.1 % in width.
    """
    return float(-lambertw(-(alpha**2) / math.e, k=-1).real - 1.0)


def optimal_rho(planned_units: float, alpha: float) -> float:
    """The mixture's ρ that makes the interval narrowest after `planned_units` units."""
    _check_alpha(alpha)
    if not planned_units > 0:
        raise MetricError(f"planned_units: {planned_units} is not positive")
    return math.sqrt(_best_x(alpha) / planned_units)


def half_width(standard_error: npt.ArrayLike, units: npt.ArrayLike, *, rho: float, alpha: float) -> Floats:
    """Half the width of the interval after `units` units, in the unit of `standard_error`; elementwise.

    Any asymptotically linear estimate may be used: `standard_error`·√units is the deviation of one unit's influence.
    """
    _check_alpha(alpha)
    x = np.asarray(units, dtype=np.float64) * rho**2
    return np.asarray(np.asarray(standard_error) * np.sqrt((x + 1.0) / x * (np.log1p(x) - 2.0 * math.log(alpha))))


def planned_units(effect: float, unit_deviation: float, *, alpha: float, power: float) -> int:
    """Units after which an effect of this size is seen with probability `power` or more.

    At the planned size the half-width is c·σ/√n with c = √[(x + 1)/x·ln((x + 1)/α²)] at the best x, whatever n is; the
    estimate is beyond it with probability Φ(effect·√n/σ − c), so n = (σ(c + z_power)/effect)². Looking earlier can only
    add to that.

    Args:
        effect: the difference to be seen; same unit as `unit_deviation`.
        unit_deviation: standard error of the estimate times √n, e.g. √(s₁²/w₁ + s₀²/w₀) for a difference of two arms
            with shares w₁ and w₀ of all n units.
    """
    _check_alpha(alpha)
    if not 0.0 < power < 1.0 or not unit_deviation > 0.0 or effect == 0.0:
        raise MetricError("planned_units needs power in (0, 1), a positive unit_deviation and an effect other than 0")
    x = _best_x(alpha)
    c = math.sqrt((x + 1.0) / x * (math.log1p(x) - 2.0 * math.log(alpha)))
    return math.ceil((unit_deviation * (c + float(ndtri(power))) / effect) ** 2)


def planned_for_rates(control: float, treatment: float, *, share: float = 0.5, alpha: float, power: float) -> int:
    """Units in both arms together that distinguish the two pass rates with probability `power` or more.

    One judged request a unit is assumed; `share` of the units get the treatment.
    """
    if not (0.0 < control < 1.0 and 0.0 < treatment < 1.0 and 0.0 < share < 1.0) or control == treatment:
        raise MetricError("rates and share must lie between 0 and 1, and the rates must differ")
    variance = control * (1 - control) / (1 - share) + treatment * (1 - treatment) / share
    return planned_units(treatment - control, math.sqrt(variance), alpha=alpha, power=power)
