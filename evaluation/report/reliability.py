"""Calibration of a score: the reliability diagram and the risk–coverage curve, as numbers.

Both use only drafts that may be served. Probabilities are those of the score (`Score.probability`), fitted on other
rows than they are shown for.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from evaluation.intervals import wilson
from evaluation.replay.figures import Estimate
from evaluation.replay.plans import Score
from evaluation.replay.replay import Arms

BINS = 10
MAX_POINTS = 120


class ReliabilityBin(msgspec.Struct, frozen=True):
    """Drafts of neighbouring probability."""

    n: int
    probability: float
    """Mean of what the score says."""
    passed: Estimate
    """Share that passed, Wilson's interval."""


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """One score's probabilities beside what happened, in bins of equal mass."""

    key: str
    label: str
    bins: list[ReliabilityBin]


class RiskCoverage(msgspec.Struct, frozen=True, kw_only=True):
    """Share of failures among the requests answered small, over their share of all requests."""

    key: str
    label: str
    coverage: list[float]
    risk: list[float]


def reliability(arms: Arms, scores: Sequence[Score], *, bins: int = BINS) -> list[Reliability]:
    """One entry for each score that has probabilities; equal probabilities share a bin."""
    made = []
    for score in scores:
        if score.probability is None:
            continue
        known = np.isfinite(score.values) & ~np.isnan(score.probability)
        if not known.any():
            continue
        p, passed = score.probability[known], arms.small_pass[known]
        _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - counts / 2.0
        place = np.minimum((middle * bins / len(p)).astype(np.int64), bins - 1)[inverse]
        shown = []
        for index in np.unique(place).tolist():
            here = place == index
            n, right = int(here.sum()), int(passed[here].sum())
            shown.append(ReliabilityBin(n, float(p[here].mean()), Estimate(right / n, *wilson(right, n))))
        made.append(Reliability(key=score.key, label=score.label, bins=shown))
    return made


def risk_coverage(arms: Arms, scores: Sequence[Score]) -> list[RiskCoverage]:
    """One curve a score, from the first thresholds to all that may be served; requests of equal score move together."""
    made = []
    for score in scores:
        fit = np.isfinite(score.values)
        if not fit.any():
            continue
        order = np.argsort(-score.values[fit], kind="stable")
        values, wrong = score.values[fit][order], np.cumsum(~arms.small_pass[fit][order])
        ends = np.append(np.flatnonzero(values[1:] != values[:-1]), len(values) - 1)
        ends = ends[np.unique(np.linspace(0, len(ends) - 1, MAX_POINTS).round().astype(np.int64))]
        made.append(
            RiskCoverage(
                key=score.key,
                label=score.label,
                coverage=((ends + 1) / len(arms)).tolist(),
                risk=(wrong[ends] / (ends + 1)).tolist(),
            )
        )
    return made
