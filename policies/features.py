"""A draft as a vector of named signals: `features(request, draft, context)`, shape (F,), NaN where a signal is missing.

What each signal means stands in `policies.feature_list`. Pure arithmetic over a bounded part of what came in; nothing
is fetched and nothing is kept but word lists of tools, in a bounded cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies.feature_list import COLUMN, FEATURE_LIST, FEATURES, FEATURES_VERSION, LEARNED, Feature, standing_at
from policies.policy import Draft, FloatArray, Request
from policies.probe import Probe

__all__ = [
    "COLUMN", "FEATURES", "FEATURES_VERSION", "FEATURE_LIST", "LEARNED", "Context", "Feature", "ToolRecord", "features",
    "standing_at",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolRecord:
    """How drafts of one tool did in the training rows."""

    rate: float
    """Pass rate, smoothed towards that of all rows; in [0, 1]."""
    rows: int


@dataclass(frozen=True, slots=True)
class Context:
    """What the judge knows beyond the request; belongs to a fitted classifier (`Classifier.context`)."""

    known_tools: frozenset[str] = frozenset()
    """`policies.tools.tool_sha256` of the tools that training rows offered."""
    tool_records: Mapping[str, ToolRecord] = field(default_factory=dict)
    """By the same hash, of the tools that drafts of training rows planned."""
    probe: Probe | None = None


NOTHING_KNOWN = Context()


def features(request: Request, draft: Draft, context: Context = NOTHING_KNOWN) -> FloatArray:
    """The draft's signals, shape (F,), float32, in the order of `FEATURES`; NaN where one is missing.

    Also of a draft that was given up when its plan stood: signals of the stages before are then those of the whole one.
    """
    raise NotImplementedError
