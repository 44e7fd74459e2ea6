"""Fit a judge on drafts whose outcome is known: probe, tool records, classifier and calibration, all out of fold.

scikit-learn is imported here and nowhere else in `policies`, and only when something is fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from policies.classifier import Classifier
from policies.policy import BoolArray, FloatArray, Stage


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """n drafts; made by `evaluation.feature_table`."""

    vectors: FloatArray
    """Shape (n, F): `features` without a context."""
    hidden: FloatArray
    """Shape (n, H); NaN where missing."""
    offered: Sequence[tuple[str, ...]]
    """Hashes of the offered tools."""
    planned: Sequence[tuple[str, ...]]
    """Hashes of the planned tools."""
    passed: BoolArray
    """Shape (n,)."""
    conversations: Sequence[str]
    """Rows of one conversation are never parted."""
    components: Sequence[str]
    """Rows that share a conversation or a tool, directly or through others."""


def fit(table: FeatureTable, *, seed: int, stage: Stage = Stage.AFTER) -> Classifier:
    """A classifier of the signals that stand at `stage`. Raises FitError where the table cannot carry one."""
    raise NotImplementedError
