"""Did every arm get its share of units? A sample-ratio mismatch voids an experiment, whatever its figures say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import chisquare

from evaluation.metrics import Floats, MetricError

LEVEL = 0.001
CONCENTRATION = 1000.0
"""Concentration of the alternative's Dirichlet prior around the planned shares: at two equal arms a deviation of 1.6
points, the size of a real bug, not of one lost unit."""


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """The result of testing the observed counts against the planned shares."""

    p_value: float
    """χ² test; holds for one look, at a time fixed beforehand."""
    log_bayes_factor: float
    """Natural log of the Bayes factor of "other shares" over "the planned shares"; holds at every look."""

    @property
    def mismatch(self) -> bool:
        """True if the factor has reached 1/0.001: by Ville's inequality a true plan does that at any look, ever, with
        probability 0.001 at most."""
        return self.log_bayes_factor >= -math.log(LEVEL)


def sample_ratio(counts: Sequence[int], weights: Sequence[float]) -> SampleRatio:
    """Test units per arm against the planned weights (which need not sum to one)."""
    k, w = np.asarray(counts, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if k.shape != w.shape or len(k) < 2 or (k < 0).any() or not (w > 0).all():
        raise MetricError("a sample ratio needs two arms or more, counts of at least 0 and positive weights")
    shares = w / w.sum()
    p_value = float(chisquare(k, shares * k.sum()).pvalue) if k.sum() > 0 else 1.0
    return SampleRatio(p_value, float(log_bayes_factors(k, shares)))


def log_bayes_factors(counts: npt.ArrayLike, shares: npt.ArrayLike) -> Floats:
    """ln of the Dirichlet-multinomial's probability of the counts over the multinomial's.

    Lindon and Malek 2022 (arXiv 2011.03567): prior Dirichlet(CONCENTRATION·shares) against the point `shares`. Starts
    at 0 and is, exponentiated, a martingale of mean 1 under the planned shares.

    Args:
        counts: (..., arms). shares: (arms,), positive, of sum 1. Returns (...).
    """
    k, p = np.asarray(counts, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    prior = CONCENTRATION * p
    total = gammaln(CONCENTRATION) - gammaln(CONCENTRATION + k.sum(axis=-1))
    return np.asarray(total + (gammaln(prior + k) - gammaln(prior) - k * np.log(p)).sum(axis=-1))
