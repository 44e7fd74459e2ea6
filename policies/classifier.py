"""P(a draft is right) from its signals: a fitted classifier in plain arrays, without scikit-learn.

`policies.fitting.fit` makes one. The raw score orders drafts and is what thresholds are set on; the calibrated
probability is for reckoning money only (isotonic calibration has ties). Not guaranteed: that either holds for another
model, adapter, pattern or precision than the training rows were drafted with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from policies.features import Context
from policies.policy import Draft, FloatArray, Request


class ClassifierError(ValueError):
    """A classifier that cannot be read, or does not fit this program."""


class Classifier:
    """A fitted judge; immutable and safe to share."""

    @property
    def context(self) -> Context:
        """What `features` needs of the training rows."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """The signals that it reads: all, or those that stand at its stage."""
        raise NotImplementedError

    def vector(self, request: Request, draft: Draft) -> FloatArray:
        """`features` with this classifier's context, shape (F,)."""
        raise NotImplementedError

    def score(self, vector: FloatArray) -> float:
        """The raw score in [0, 1], higher is safer. `vector` has shape (F,)."""
        raise NotImplementedError

    def scores(self, vectors: FloatArray) -> FloatArray:
        """Raw scores of many drafts: shape (n, F) to (n,), float64."""
        raise NotImplementedError

    def probability(self, raw: float) -> float:
        """Calibrated P(right) of a raw score; never falls as the score rises."""
        raise NotImplementedError

    def interval(self, raw: float) -> tuple[float, float]:
        """Venn–Abers bounds of that probability."""
        raise NotImplementedError

    def explain(self, vector: FloatArray) -> tuple[tuple[str, float], ...]:
        """The three signals that spoke most: name, and log-odds gained over the training rows' median of the signal."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the files of a classifier into a folder."""
        raise NotImplementedError

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read them back. Raises ClassifierError for files that are too large, of another version or wrong."""
        raise NotImplementedError
