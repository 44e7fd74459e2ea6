"""A linear probe on a draft's hidden states, and how far they lie from those that it was fitted on.

Hidden states at the places where a draft decides separate right drafts from wrong ones up to a point, and carry over
badly to other data (arXiv 2601.05214): so the probe is one signal among others, fitted out of fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.types import FloatArray

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Probe:
    """Arrays of shape (H,), H = len(HiddenPlace) · HIDDEN_SIZE: places in order."""

    mean: Floats
    """Means over the training rows, by number; missing numbers are replaced by them."""
    deviation: Floats
    """Standard deviations; positive."""
    weights: Floats
    """Log-odds a standard deviation."""
    intercept: float

    def read(self, hidden: FloatArray) -> tuple[float, float]:
        """Log-odds of being right, and the root mean square distance from the training rows in standard deviations.

        Args:
            hidden: shape (len(HiddenPlace), HIDDEN_SIZE); NaN for places that the draft does not have.
        """
        odds, distance = self.read_all(hidden[None])
        return float(odds[0]), float(distance[0])

    def read_all(self, hidden: FloatArray) -> tuple[Floats, Floats]:
        """The same of n drafts, shape (n, places, HIDDEN_SIZE) to (n,) each; NaN for drafts without any state."""
        z = (hidden.reshape(len(hidden), -1).astype(np.float64) - self.mean) / self.deviation
        present = np.isfinite(z)
        count = present.sum(axis=1)
        there = np.where(present, z, 0.0)
        known = count > 0
        odds = np.where(known, there @ self.weights + self.intercept, np.nan)
        return odds, np.where(known, np.sqrt((there**2).sum(axis=1) / np.maximum(count, 1)), np.nan)
