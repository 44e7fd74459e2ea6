"""A linear probe on a draft's hidden states, and how far they lie from those that it was fitted on.

Hidden states at the places where a draft decides tell right drafts from wrong ones up to a point, and carry over badly
to other data (arXiv 2601.05214): so the probe is one signal among others, fitted out of fold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.policy import FloatArray

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Probe:
    """Arrays of shape (H,), H = len(HiddenPlace) · HIDDEN_SIZE: places in order."""

    mean: Floats
    """Of the training rows, by number; missing numbers are taken as it."""
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
        z = (hidden.astype(np.float64).ravel() - self.mean) / self.deviation
        present = np.isfinite(z)
        if not present.any():
            return float("nan"), float("nan")
        there = np.where(present, z, 0.0)
        return float(there @ self.weights + self.intercept), float(np.sqrt((there @ there) / present.sum()))
