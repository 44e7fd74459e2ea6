"""Drafts whose outcome is known, as arrays: what a judge is fitted on, and its folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.features.catalog import FEATURES
from policies.types import HIDDEN_SIZE, BoolArray, FloatArray, HiddenPlace

Ints = npt.NDArray[np.int64]

FOLDS = 5


class FitError(ValueError):
    """A table that cannot carry a judge."""


@dataclass(frozen=True, slots=True)
class FeatureTable:
    """n drafts; made by `evaluation.replay.feature_table`."""

    vectors: FloatArray
    """Shape (n, F): `features` without a context."""
    hidden: FloatArray
    """Shape (n, places, HIDDEN_SIZE); NaN where missing."""
    offered: Sequence[tuple[str, ...]]
    """Hashes of the offered tools (`tool_hashes`)."""
    planned: Sequence[tuple[str, ...]]
    """Hashes of the planned tools."""
    passed: BoolArray
    """Shape (n,)."""
    conversations: Sequence[str]
    """Rows of one conversation are never parted."""
    components: Sequence[str]
    """Rows that share a conversation or a tool, directly or through others."""

    def __post_init__(self) -> None:
        n = len(self.passed)
        parts = (self.vectors, self.hidden, self.offered, self.planned, self.conversations, self.components)
        if any(len(part) != n for part in parts):
            raise ValueError("the table's columns differ in length")
        if self.vectors.shape != (n, len(FEATURES)) or self.hidden.shape != (n, len(HiddenPlace), HIDDEN_SIZE):
            raise ValueError("vectors or hidden: wrong shape")

    def __len__(self) -> int:
        return len(self.passed)

    def rows(self, chosen: npt.NDArray[Any]) -> FeatureTable:
        """Some of its rows: places or a mask."""
        places = np.arange(len(self))[chosen]
        return FeatureTable(
            vectors=self.vectors[places],
            hidden=self.hidden[places],
            offered=[self.offered[place] for place in places],
            planned=[self.planned[place] for place in places],
            passed=self.passed[places],
            conversations=[self.conversations[place] for place in places],
            components=[self.components[place] for place in places],
        )


def folds(groups: Sequence[str]) -> Iterator[Ints]:
    """Places of each fold's rows, at most FOLDS folds of about equal size."""
    from sklearn.model_selection import GroupKFold

    count = min(FOLDS, len(set(groups)))
    if count < 2:
        raise FitError("all rows are of one group: nothing can be held out")
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    for _, held_out in GroupKFold(n_splits=count).split(codes, groups=codes):
        yield held_out
