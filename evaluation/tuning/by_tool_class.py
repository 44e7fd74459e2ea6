"""Thresholds by tool class, each certified on its own rows.

A class's rows are those of the selection part, one a conversation, whose drafts belong to it; its harm is counted over
them. With m classes each walk is tested at δ/m (Bonferroni), so that all hold together with confidence 1 − δ. A class
with too few rows gets no threshold: its drafts go large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.tuning.rows import Operating, TuningRows
from policies.rules.certificate import Certificate, certify_classes
from policies.rules.tool_classes import ToolClass, check_classes, class_of, strictest_first


@dataclass(frozen=True, slots=True)
class ClassChoice:
    """One class."""

    pattern: str
    alpha: float
    delta: float
    """Its share."""
    certificate: Certificate | None
    rows: int
    """Certifying rows of the class."""
    operating: Operating | None
    """On its rows of the holdout part; None where there are none."""


@dataclass(frozen=True, slots=True)
class ClassTuning:
    """All classes, and what they do together."""

    classes: Sequence[ClassChoice]
    together: Operating

    def by_pattern(self) -> Mapping[str, Certificate | None]:
        """The certificate of each class."""
        return {one.pattern: one.certificate for one in self.classes}


def tune_classes(
    selection: TuningRows, holdout: TuningRows, alphas: Mapping[str, float], *, delta: float
) -> ClassTuning:
    """Thresholds for classes by the rate of harm that each may have at most; `alphas` names the class `REST` too.

    Raises:
        ValueError: a pattern or rate that cannot be.
    """
    classes = tuple(ToolClass(pattern, alpha, None) for pattern, alpha in alphas.items())
    check_classes(classes)
    of_selection, of_holdout = _classes_of(selection, classes), _classes_of(holdout, classes)
    each, arms = selection.one_each, selection.arms
    certificates = certify_classes(
        selection.scores[each],
        arms.small_pass[each],
        arms.large_pass[each],
        list(of_selection[each]),
        alphas,
        delta=delta,
    )
    accepted = np.zeros(len(holdout), dtype=bool)
    for pattern, certificate in certificates.items():
        if certificate is not None:
            accepted |= holdout.accepted(certificate.threshold) & (of_holdout == pattern)
    made = []
    for pattern in strictest_first(alphas.items()):
        within, certificate = of_holdout == pattern, certificates[pattern]
        threshold = certificate.threshold if certificate else None
        operating = holdout.operating(accepted, threshold, within=within) if within.any() else None
        rows = int((of_selection[each] == pattern).sum())
        made.append(ClassChoice(pattern, alphas[pattern], delta / len(alphas), certificate, rows, operating))
    return ClassTuning(made, holdout.operating(accepted, None))


def _classes_of(rows: TuningRows, classes: Sequence[ToolClass]) -> np.ndarray:
    drafts = rows.arms.drafts
    return np.array([class_of(classes, [call.name for call in draft.calls]).pattern for draft in drafts])
