"""P(a draft is right) from its signals: a fitted classifier in plain arrays, and a judge that scores by one.

`policies.classifier.fit.fit` makes one. The raw score orders drafts and is what thresholds are set on; the calibrated
probability is for weighing money only (isotonic calibration has ties). Not guaranteed: that either holds for another
model, adapter, pattern or precision than the training rows were drafted with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from policies.classifier.calibration import Calibration, Floats, VennAbers
from policies.classifier.models import Linear, Trees
from policies.classifier.storage import ClassifierError, read, write
from policies.features.catalog import COLUMN, FEATURES
from policies.features.vector import Context, features
from policies.rules.judge import Contribution
from policies.types import Draft, FloatArray, Request, Stage, TokenSignals

__all__ = ["Classifier", "ClassifierError", "ClassifierJudge", "load_judge"]

SPOKEN = 3
"""Signals that an explanation names."""
ROUNDING = 1e-9
"""Log-odds below it are an accident of summing."""


@dataclass(frozen=True)
class Classifier:
    """A fitted judge; immutable and safe to share."""

    model: Trees | Linear
    calibration: Calibration
    bounds: VennAbers
    context: Context
    """The part of the training rows that `features` needs."""
    names: tuple[str, ...]
    """The K signals that it reads, in the order of the model's columns: those that stand at its stage and had more than
    one value among the training rows."""
    medians: Floats
    """Medians of the signals over the training rows, shape (K,); NaN for a signal that no row had."""
    stage: Stage = Stage.AFTER
    rows: int = 0
    """Rows that it was fitted on."""

    @cached_property
    def _columns(self) -> np.ndarray:
        return np.array([COLUMN[name] for name in self.names], dtype=np.int64)

    def vector(self, request: Request, draft: Draft) -> FloatArray:
        """`features` with this classifier's context, shape (F,)."""
        return features(request, draft, self.context)

    def score(self, vector: FloatArray) -> float:
        """The raw score in [0, 1], higher is safer; `vector` has shape (F,). P(right) before calibration."""
        return float(self.scores(vector[None, :])[0])

    def scores(self, vectors: FloatArray) -> Floats:
        """Raw scores of many drafts, shape (n, F) to (n,)."""
        return np.asarray(1 / (1 + np.exp(-self._log_odds(vectors))))

    def probability(self, raw: float) -> float:
        """Calibrated P(right) of a raw score; never falls as the score rises."""
        return float(self.calibration.probabilities(np.array([raw]))[0])

    def interval(self, raw: float) -> tuple[float, float]:
        """Venn–Abers bounds of that probability."""
        return self.bounds.bounds(raw)

    def explain(self, vector: FloatArray) -> tuple[tuple[str, float], ...]:
        """The three signals that spoke most: name, and the log-odds that it adds over the training rows' median of it.

        Each signal is replaced by its median with the others as they are (occlusion). Where signals say the same
        thing, replacing one of them may change little though all of them spoke; the numbers do not sum to the score.
        A signal that was missing in all training rows says nothing.
        """
        known = np.isfinite(self.medians)
        replaced = np.repeat(vector[None, :], len(self.names) + 1, axis=0)
        for row, column in enumerate(self._columns):
            if known[row]:
                replaced[row, column] = self.medians[row]
        odds = self._log_odds(replaced)
        gained = odds[-1] - odds[:-1]
        most = sorted(range(len(self.names)), key=lambda row: -abs(gained[row]))[:SPOKEN]
        return tuple((self.names[row], float(gained[row])) for row in most if abs(gained[row]) > ROUNDING)

    def _log_odds(self, vectors: FloatArray) -> Floats:
        if vectors.ndim != 2 or vectors.shape[1] != len(FEATURES):
            raise ValueError(f"vectors: not of shape (n, {len(FEATURES)})")
        return self.model.log_odds(vectors[:, self._columns].astype(np.float64))

    def save(self, folder: Path) -> None:
        """Write `classifier.json` into a folder that exists; what stood there is replaced whole."""
        write(
            folder, model=self.model, calibration=self.calibration, bounds=self.bounds, context=self.context,
            names=self.names, medians=self.medians, stage=self.stage, rows=self.rows,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `classifier.json` back.

        Raises:
            ClassifierError: it is missing, too large, of another version of the signals, or not what it should be.
        """
        return cls(**read(folder))


@dataclass(frozen=True, slots=True)
class ClassifierJudge:
    """Scores a draft by its signals, those included that are missing: the classifier knows what that means."""

    classifier: Classifier

    @property
    def name(self) -> str:
        return "classifier"

    def score(self, request: Request, draft: Draft) -> float | None:
        return self.classifier.score(self.classifier.vector(request, draft))

    def at_most(self, plan_signals: TokenSignals) -> float:
        """Nothing is known: later signals may speak for the draft."""
        return float("inf")

    def probability(self, score: float) -> float | None:
        return self.classifier.probability(score)

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution]:
        return self.classifier.explain(self.classifier.vector(request, draft))


def load_judge(folder: Path, stage: Stage) -> ClassifierJudge:
    """A saved classifier of what stands at a stage. Raises `policies.classifier.classifier.ClassifierError`."""
    classifier = Classifier.load(folder)
    if classifier.stage is not stage:
        raise ClassifierError(f"{folder}: judges at stage {classifier.stage.value}, and not {stage.value}")
    return ClassifierJudge(classifier)
