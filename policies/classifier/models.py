"""Fitted models as plain arrays: boosted trees and a linear model, scored by numpy alone.

What scikit-learn computed, this computes (tests hold them equal). Both give log-odds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MAX_DEPTH = 64


class Model(Protocol):
    """The interface of a model that a classifier is built around."""

    def log_odds(self, vectors: Floats) -> Floats:
        """Return the log-odds of each row, shape (n, K) to (n,); NaN in `vectors` means missing."""


@dataclass(frozen=True, slots=True)
class Trees:
    """Boosted regression trees; node arrays have shape (N,), those of all trees one after another.

    A leaf's children are the leaf itself, so that all trees can be walked for equally many steps.
    """

    roots: Ints
    """Shape (T,)."""
    feature: Ints
    threshold: Floats
    """A value goes left where it is at most this."""
    missing_left: Bools
    left: Ints
    right: Ints
    value: Floats
    """Log-odds that a leaf adds; 0 for inner nodes."""
    baseline: float
    depth: int
    """Steps from a root to its deepest leaf."""

    def log_odds(self, vectors: Floats) -> Floats:
        """Implements `Model.log_odds`: return the log-odds of each row, shape (n, K) to (n,)."""
        at = np.repeat(self.roots[None, :], len(vectors), axis=0)
        rows = np.arange(len(vectors))[:, None]
        missing = np.isnan(vectors)
        with np.errstate(invalid="ignore"):
            for _ in range(self.depth):
                column = self.feature[at]
                goes_left = vectors[rows, column] <= self.threshold[at]
                goes_left = np.where(missing[rows, column], self.missing_left[at], goes_left)
                at = np.where(goes_left, self.left[at], self.right[at])
        return np.asarray(self.value[at].sum(axis=1) + self.baseline)

    def problem(self, columns: int) -> str | None:
        """Why these arrays are no trees over so many columns, or None."""
        nodes = len(self.feature)
        if {len(a) for a in (self.threshold, self.missing_left, self.left, self.right, self.value)} != {nodes}:
            return "node arrays differ in length"
        if not 0 <= self.depth <= MAX_DEPTH:
            return f"depth is not in 0 … {MAX_DEPTH}"
        places = (self.roots, self.left, self.right)
        if not nodes or any(len(a) and (a.min() < 0 or a.max() >= nodes) for a in places):
            return "a node that is not there"
        if self.feature.min() < 0 or self.feature.max() >= columns:
            return "a column that is not there"
        if not (np.isfinite(self.value).all() and np.isfinite(self.baseline)) or np.isnan(self.threshold).any():
            return "a value that is no number"
        return None


@dataclass(frozen=True, slots=True)
class Linear:
    """Logistic regression on standardised columns; a missing value counts as the training rows' median, and for some
    columns being missing is a column of its own. Arrays have shape (K,), those of `indicator` and its kin (M,)."""

    median: Floats
    mean: Floats
    scale: Floats
    weight: Floats
    indicator: Ints
    """Columns whose absence is a column."""
    indicator_mean: Floats
    indicator_scale: Floats
    indicator_weight: Floats
    intercept: float

    def log_odds(self, vectors: Floats) -> Floats:
        """Implements `Model.log_odds`: return the log-odds of each row, shape (n, K) to (n,)."""
        missing = np.isnan(vectors)
        there = (np.where(missing, self.median, vectors) - self.mean) / self.scale
        absent = (missing[:, self.indicator] - self.indicator_mean) / self.indicator_scale
        return np.asarray(there @ self.weight + absent @ self.indicator_weight + self.intercept)

    def problem(self, columns: int) -> str | None:
        """Why these arrays are no model over so many columns, or None."""
        if {len(a) for a in (self.median, self.mean, self.scale, self.weight)} != {columns}:
            return "not one number a column"
        indicators = (self.indicator, self.indicator_mean, self.indicator_scale, self.indicator_weight)
        if len({len(a) for a in indicators}) != 1:
            return "indicator arrays differ in length"
        if len(self.indicator) and (self.indicator.min() < 0 or self.indicator.max() >= columns):
            return "a column that is not there"
        numbers = (self.median, self.mean, self.scale, self.weight, *indicators[1:], np.array([self.intercept]))
        if (
            not all(np.isfinite(a).all() for a in numbers)
            or (self.scale <= 0).any()
            or (self.indicator_scale <= 0).any()
        ):
            return "a value that is no number, or a scale that is not positive"
        return None
