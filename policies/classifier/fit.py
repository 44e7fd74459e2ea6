"""Fit a judge on drafts whose outcome is known: classifier and calibration, and how good they are out of fold.

scikit-learn is imported here, in `policies.classifier.context` and in `policies.classifier.estimator`, only when
something is fitted, and on one thread: more would sum in another order, and spin where the machine is busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from policies.classifier.calibration import GRID, Calibration, Isotonic, Sigmoid, VennAbers
from policies.classifier.classifier import Classifier
from policies.classifier.context import learn_context, learned_out_of_fold, with_context
from policies.classifier.dataset import FeatureTable, FitError, folds
from policies.classifier.estimator import FEW_ROWS, exported, fresh
from policies.features.catalog import COLUMN, standing_at
from policies.types import BoolArray, FloatArray, Stage

__all__ = [
    "FeatureTable", "FitError", "Fitted", "FoldFit", "OutOfFold", "calibrate", "cross_validate", "fit", "fit_and_check",
    "venn_abers",
]  # fmt: skip

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_ROWS = 50
MIN_OF_EACH = 10
"""Passed and failed rows that a table needs."""


@dataclass(frozen=True, slots=True)
class FoldFit:
    """One fold: what was fitted on the others, and its own rows as that saw them."""

    held_out: Ints
    """Places in the table."""
    estimator: Any
    """scikit-learn's."""
    names: tuple[str, ...]
    """The estimator's columns."""
    vectors: Floats
    """Feature vectors of the held-out rows, these columns only."""


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Scores of rows by classifiers that saw neither the row nor its group; arrays of shape (n,)."""

    raw: Floats
    probability: Floats
    """By a calibrator that was fitted on the other folds' raw scores."""
    fold: Ints
    folds: Sequence[FoldFit]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A judge, and what it was made of."""

    classifier: Classifier
    estimator: Any
    """scikit-learn's model, of which the classifier holds the numbers."""
    unseen_tools: OutOfFold | None
    """Folds that share no tool and no conversation; None where all rows hang together."""
    known_tools: OutOfFold
    """Folds that share no conversation."""


def fit(table: FeatureTable, *, seed: int, stage: Stage = Stage.AFTER) -> Classifier:
    """A classifier of the signals that stand at `stage`. Raises FitError where the table cannot carry one."""
    return fit_and_check(table, seed=seed, stage=stage).classifier


def fit_and_check(table: FeatureTable, *, seed: int, stage: Stage = Stage.AFTER) -> Fitted:
    """Fit on all rows, calibrate on out-of-fold scores, those of unseen tools where there are such folds.

    Raises:
        FitError: under MIN_ROWS rows, MIN_OF_EACH passed or failed ones, or two conversations.
    """
    passed = int(table.passed.sum())
    if len(table) < MIN_ROWS or min(passed, len(table) - passed) < MIN_OF_EACH:
        raise FitError(
            f"{len(table)} rows, {passed} passed: a judge needs {MIN_ROWS}, and {MIN_OF_EACH} of either outcome"
        )
    known = cross_validate(table, table.conversations, seed=seed, stage=stage)
    unseen = None
    if len(set(table.components)) >= 2:
        unseen = cross_validate(table, table.components, seed=seed, stage=stage)
    with threadpool_limits(1):
        context = learn_context(table)
        vectors = learned_out_of_fold(table, seed=seed)
        names, estimator = _fit_estimator(vectors, table.passed, stage, seed)
    honest = unseen or known
    classifier = Classifier(
        model=exported(estimator),
        calibration=calibrate(honest.raw, table.passed),
        bounds=venn_abers(honest.raw, table.passed),
        context=context,
        names=names,
        medians=_medians(_columns(vectors, names)),
        stage=stage,
        rows=len(table),
    )
    return Fitted(classifier, estimator, unseen, known)


def cross_validate(table: FeatureTable, groups: Sequence[str], *, seed: int, stage: Stage = Stage.AFTER) -> OutOfFold:
    """Scores of all rows out of fold; rows of one group are in one fold. Raises FitError below two groups."""
    with threadpool_limits(1):
        return _cross_validate(table, groups, seed, stage)


def _cross_validate(table: FeatureTable, groups: Sequence[str], seed: int, stage: Stage) -> OutOfFold:
    n, fold, made = len(table), np.full(len(table), -1, dtype=np.int64), []
    raw = np.full(n, np.nan)
    for number, held_out in enumerate(folds(groups)):
        training = table.rows(np.setdiff1d(np.arange(n), held_out))
        if training.passed.all() or not training.passed.any():
            raise FitError("the groups part passed from failed rows: collect more of them")
        names, estimator = _fit_estimator(learned_out_of_fold(training, seed=seed), training.passed, stage, seed)
        vectors = _columns(with_context(table.rows(held_out), learn_context(training)), names)
        raw[held_out] = estimator.predict_proba(vectors)[:, 1]
        fold[held_out] = number
        made.append(FoldFit(held_out, estimator, names, vectors))
    probability = np.full(n, np.nan)
    for number in range(len(made)):
        own = fold == number
        probability[own] = calibrate(raw[~own], table.passed[~own]).probabilities(raw[own])
    return OutOfFold(raw, probability, fold, made)


def calibrate(raw: Floats, passed: BoolArray) -> Calibration:
    """Sigmoid under FEW_ROWS rows, isotonic from there on (METHODS 3: isotonic overfits few rows)."""
    if len(raw) >= FEW_ROWS:
        from sklearn.isotonic import IsotonicRegression

        isotonic = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(raw, passed.astype(np.float64))
        return Isotonic(
            np.asarray(isotonic.X_thresholds_, dtype=np.float64), np.asarray(isotonic.y_thresholds_, dtype=np.float64)
        )
    from sklearn.linear_model import LogisticRegression

    if passed.all() or not passed.any():
        rate = (passed.sum() + 1) / (len(passed) + 2)
        return Sigmoid(0.0, float(np.log(rate / (1 - rate))))
    clipped = np.clip(raw, 1e-12, 1 - 1e-12)
    odds = np.log(clipped / (1 - clipped))[:, None]
    model = LogisticRegression(C=1e3, max_iter=1000).fit(odds, passed)
    slope = float(model.coef_[0, 0])
    if slope <= 0:  # Scores that order nothing carry no probability but the base rate.
        rate = float(passed.mean())
        return Sigmoid(0.0, float(np.log(rate / (1 - rate))))
    return Sigmoid(slope, float(model.intercept_[0]))


def venn_abers(raw: Floats, passed: BoolArray) -> VennAbers:
    """Bounds at up to GRID of the scores: isotonic fits with a row added at the place, once passed, once failed."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(raw, kind="stable")
    values, starts, counts = np.unique(raw[order], return_index=True, return_counts=True)
    means = np.add.reduceat(passed[order].astype(np.float64), starts) / counts
    places = np.unique(np.linspace(0, len(values) - 1, min(GRID, len(values))).round().astype(np.int64))
    bounds: list[list[float]] = [[], []]
    for place in places:
        for label, made in enumerate(bounds):
            added, weights = means.copy(), counts.astype(np.float64)
            weights[place] += 1
            added[place] += (label - added[place]) / weights[place]
            made.append(float(np.clip(isotonic_regression(added, weights=weights).x[place], 0.0, 1.0)))
    low, high = (np.maximum.accumulate(np.array(made)) for made in bounds)
    return VennAbers(values[places], np.minimum(low, high), high)


def _fit_estimator(vectors: FloatArray, passed: BoolArray, stage: Stage, seed: int) -> tuple[tuple[str, ...], Any]:
    """The signals that stand at a stage and vary among these rows, and a model that is fitted on them."""
    names = tuple(name for name in standing_at(stage) if _varies(vectors[:, COLUMN[name]]))
    if not names:
        raise FitError("no signal varies among the rows")
    return names, fresh(len(passed), names, seed).fit(_columns(vectors, names), passed)


def _varies(column: FloatArray) -> bool:
    there = column[~np.isnan(column)]
    return len(there) > 0 and bool((there != there[0]).any())


def _medians(vectors: Floats) -> Floats:
    there = [column[~np.isnan(column)] for column in vectors.T]
    return np.array([np.median(values) if len(values) else np.nan for values in there])


def _columns(vectors: FloatArray, names: Sequence[str]) -> Floats:
    return vectors[:, [COLUMN[name] for name in names]].astype(np.float64)
