"""Raw scores to probabilities: sigmoid or isotonic, and Venn–Abers bounds. Serving needs numpy only.

A calibrator never falls as the score rises. It holds for drafts like those that it was fitted on: a probability moves
with the share of hard requests, the raw score's order does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

GRID = 512
"""Places at which Venn–Abers bounds are kept; between two of them they are widened, never narrowed."""


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """p = 1/(1 + exp(−(slope · log-odds of the raw score + offset))) (Platt 1999)."""

    slope: float
    """At least 0."""
    offset: float

    def probabilities(self, raw: Floats) -> Floats:
        """Return the calibrated probabilities of raw scores in [0, 1]; any shape."""
        p = np.clip(raw, 1e-12, 1 - 1e-12)
        return np.asarray(1 / (1 + np.exp(-(self.slope * np.log(p / (1 - p)) + self.offset))))

    def problem(self) -> str | None:
        """Why this is no calibrator, or None."""
        fits = math.isfinite(self.slope) and math.isfinite(self.offset) and self.slope >= 0
        return None if fits else "slope or offset"


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Linear between points, level beyond them (Zadrozny and Elkan 2002). Shapes (P,), `score` ascending."""

    score: Floats
    probability: Floats

    def probabilities(self, raw: Floats) -> Floats:
        """Return the calibrated probabilities of raw scores; any shape."""
        return np.asarray(np.interp(raw, self.score, self.probability))

    def problem(self) -> str | None:
        """Why this is no calibrator, or None."""
        if not 0 < len(self.score) == len(self.probability):
            return "points"
        steps = (np.diff(self.score) < 0).any() or (np.diff(self.probability) < 0).any()
        out = not (np.isfinite(self.score).all() and ((self.probability >= 0) & (self.probability <= 1)).all())
        return "points that fall or lie outside" if steps or out else None


@dataclass(frozen=True, slots=True)
class VennAbers:
    """Bounds between which one of two calibrated probabilities is exact for exchangeable rows (Vovk and Petej 2014,
    arXiv 1211.0025). Shapes (G,), `score` ascending."""

    score: Floats
    low: Floats
    high: Floats

    def bounds(self, raw: float) -> tuple[float, float]:
        """Return (low, high) for one raw score; at least as wide as the exact bounds."""
        at = int(np.searchsorted(self.score, raw, side="right")) - 1
        low = float(self.low[at]) if at >= 0 else 0.0
        above = int(np.searchsorted(self.score, raw, side="left"))
        return low, float(self.high[above]) if above < len(self.score) else 1.0

    def problem(self) -> str | None:
        """Why these are no bounds, or None."""
        if not 0 < len(self.score) == len(self.low) == len(self.high):
            return "points"
        inside = all(((a >= 0) & (a <= 1)).all() for a in (self.low, self.high))
        rising = not any((np.diff(a) < 0).any() for a in (self.score, self.low, self.high))
        return None if inside and rising and (self.low <= self.high).all() else "bounds that fall or lie outside"


Calibration = Sigmoid | Isotonic
