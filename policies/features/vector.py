"""A draft as a vector of named signals: `features(request, draft, context)`, shape (F,), NaN where a signal is missing.

What each signal means stands in `policies.features.catalog`. Pure arithmetic over a bounded part of what came in;
nothing is fetched and nothing is kept but words and hashes of tools, in bounded caches.
"""

from __future__ import annotations

import numpy as np

from policies.features.calls import call_features
from policies.features.catalog import COLUMN, FEATURE_LIST, FEATURES, FEATURES_VERSION, LEARNED, Feature, standing_at
from policies.features.requests import (
    NOTHING_KNOWN,
    Context,
    ToolRecord,
    record_features,
    request_features,
    tool_hashes,
)
from policies.features.tokens import token_features
from policies.types import Draft, FloatArray, Request

__all__ = [
    "COLUMN", "FEATURES", "FEATURES_VERSION", "FEATURE_LIST", "LEARNED", "NOTHING_KNOWN", "Context", "Feature",
    "ToolRecord", "features", "standing_at",
]  # fmt: skip


def features(request: Request, draft: Draft, context: Context = NOTHING_KNOWN) -> FloatArray:
    """The draft's signals, shape (F,), float32, in the order of `FEATURES`; NaN where one is missing.

    Also of a draft that was given up when its plan stood: signals of the stages before are then those of the whole one.
    """
    made = token_features(draft.signals) | call_features(request, draft) | request_features(request, draft)
    if context.known_tools:
        made |= record_features(*tool_hashes(request, draft), context)
    if context.probe is not None and draft.hidden is not None:
        made["probe"], made["state_distance"] = context.probe.read(draft.hidden)
    vector = np.full(len(FEATURES), np.nan, dtype=np.float32)
    for name, value in made.items():
        vector[COLUMN[name]] = value
    return vector
