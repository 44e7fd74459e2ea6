"""The scikit-learn models behind a classifier: made, turned into plain arrays, kept without pickle.

Boosted trees with monotonic constraints where the rows suffice, logistic regression else. A kept model is for study
and comparison; serving reads the plain arrays. `skops` builds only the types named here and refuses a file with others.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.classifier.models import Linear, Trees
from policies.features.catalog import COLUMN, FEATURE_LIST

FEW_ROWS = 1_000
"""Below, logistic regression and sigmoid calibration."""
FILE = "estimator.skops"
MAX_BYTES = 64 * 1024 * 1024
"""Size limit of the file in bytes, and of what it unpacks to."""
MAX_MEMBERS = 20_000

TREES: dict[str, Any] = {
    "max_iter": 150,
    "learning_rate": 0.06,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "max_features": 0.3,
    "early_stopping": False,
}
"""Few leaves and a third of the signals a split: many signals say nearly the same."""
INVERSE_PENALTY = 0.05
"""Inverse penalty of the logistic regression, on standardised columns."""
TRUSTED = ("numpy.dtype", "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor")
"""Types that `skops` does not know itself and that our two models hold."""
LARGEST = 1e308
"""Stands for an infinite threshold: JSON has none."""


def fresh(rows: int, names: Sequence[str], seed: int) -> Any:
    """An unfitted model for so many rows of these signals."""
    if rows < FEW_ROWS:
        from sklearn.impute import SimpleImputer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
            StandardScaler(),
            LogisticRegression(C=INVERSE_PENALTY, max_iter=2000),
        )
    from sklearn.ensemble import HistGradientBoostingClassifier

    directions = [FEATURE_LIST[COLUMN[name]].direction for name in names]
    return HistGradientBoostingClassifier(**TREES, monotonic_cst=directions, random_state=seed)


def exported(estimator: Any) -> Trees | Linear:
    """The numbers of a fitted model of `fresh`."""
    return _linear(estimator) if hasattr(estimator, "steps") else _trees(estimator)


def _trees(estimator: Any) -> Trees:
    parts = [trees[0].nodes for trees in estimator._predictors]  # Not public: a test holds the scores equal.
    starts = np.cumsum([0, *(len(part) for part in parts)])[:-1]
    nodes = np.concatenate(parts)
    offset = np.repeat(starts, [len(part) for part in parts])
    leaf = nodes["is_leaf"].astype(bool)
    own = np.arange(len(nodes), dtype=np.int64)
    return Trees(
        roots=starts.astype(np.int64),
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
        threshold=np.clip(np.where(leaf, 0.0, nodes["num_threshold"]), -LARGEST, LARGEST),
        missing_left=nodes["missing_go_to_left"].astype(bool),
        left=np.where(leaf, own, nodes["left"].astype(np.int64) + offset),
        right=np.where(leaf, own, nodes["right"].astype(np.int64) + offset),
        value=np.where(leaf, nodes["value"], 0.0),
        baseline=float(estimator._baseline_prediction.ravel()[0]),
        depth=int(nodes["depth"].max()),
    )


def _linear(estimator: Any) -> Linear:
    imputer, scaler, model = (step for _, step in estimator.steps)
    columns = len(imputer.statistics_)
    indicator = np.asarray(imputer.indicator_.features_, dtype=np.int64)
    scale, weight = (np.asarray(a, dtype=np.float64) for a in (scaler.scale_, model.coef_[0]))
    return Linear(
        median=np.asarray(imputer.statistics_, dtype=np.float64),
        mean=scaler.mean_[:columns],
        scale=scale[:columns],
        weight=weight[:columns],
        indicator=indicator,
        indicator_mean=scaler.mean_[columns:],
        indicator_scale=scale[columns:],
        indicator_weight=weight[columns:],
        intercept=float(model.intercept_[0]),
    )


class EstimatorError(ValueError):
    """A kept model that is refused."""


def save_estimator(estimator: Any, folder: Path) -> Path:
    """Keep a fitted model of `fresh` in a folder; the file's path."""
    import skops.io

    path = folder / FILE
    skops.io.dump(estimator, path)
    return path


def load_estimator(folder: Path) -> Any:
    """Read a kept model back.

    Raises:
        EstimatorError: it is missing, too large, no `skops` file, or holds a type that none of our models has.
    """
    import skops.io

    path = folder / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise EstimatorError(f"{path}: more than {MAX_BYTES} bytes")
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
        if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
            raise EstimatorError(f"{path}: unpacks to more than {MAX_MEMBERS} parts or {MAX_BYTES} bytes")
        unknown = set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED)
        if unknown:
            raise EstimatorError(f"{path}: holds a {min(unknown)}")
        return skops.io.load(path, trusted=list(TRUSTED))
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, EstimatorError):
            raise
        raise EstimatorError(f"{path}: cannot be read: {type(error).__name__}") from error
