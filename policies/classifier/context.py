"""Context that a judge learns from its training rows beyond the classifier: known tools, their records, a probe.

Such a signal would look better on the training rows than it is: the probe has seen their outcomes, the records count
them. So each training row gets it from rows of other folds, and for half of the tools from a part without the tool, as
it will be for a tool that nobody has seen. A held-out row gets it from all training rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policies.classifier.dataset import FeatureTable, folds
from policies.features.catalog import COLUMN
from policies.features.probe import Probe
from policies.features.requests import Context, ToolRecord, record_features
from policies.types import BoolArray, FloatArray

MIN_PROBE_ROWS = 50
SMOOTHING = 10.0
"""Rows that a tool's pass rate starts with, at the rate of all."""
WITHHELD = 0.5
"""Share of the components whose rows are trained on as if their tools were unknown."""


def learn_context(table: FeatureTable) -> Context:
    """Known tools, their records, and a probe where the table has hidden states enough."""
    rate = float(table.passed.mean()) if len(table) else 0.5
    counts: dict[str, list[int]] = {}
    for tools, passed in zip(table.planned, table.passed.tolist(), strict=True):
        for tool in set(tools):
            count = counts.setdefault(tool, [0, 0])
            count[0] += int(passed)
            count[1] += 1
    records = {
        tool: ToolRecord((passes + SMOOTHING * rate) / (rows + SMOOTHING), rows)
        for tool, (passes, rows) in counts.items()
    }
    known = frozenset(tool for tools in table.offered for tool in tools)
    return Context(known, records, _fit_probe(table.hidden, table.passed))


def with_context(table: FeatureTable, context: Context) -> FloatArray:
    """The table's vectors with the signals that `context` gives; shape (n, F)."""
    vectors = table.vectors.copy()
    for row in range(len(table)):
        for name, value in record_features(table.offered[row], table.planned[row], context).items():
            vectors[row, COLUMN[name]] = value
    if context.probe is not None:
        vectors[:, COLUMN["probe"]], vectors[:, COLUMN["state_distance"]] = context.probe.read_all(table.hidden)
    return vectors


def learned_out_of_fold(table: FeatureTable, *, seed: int) -> FloatArray:
    """The table's vectors, learned signals of each row from rows of other folds; shape (n, F).

    Probe: folds of components. Records: folds of conversations, but of components for `WITHHELD` of the components, so
    that their tools are unknown: a judge must have met both.
    """
    conversations = _filled(table, table.conversations)
    if len(set(table.components)) < 2:
        return conversations
    components = _filled(table, table.components)
    drawn = sorted(set(table.components))
    withheld = dict(zip(drawn, np.random.default_rng(seed).random(len(drawn)) < WITHHELD, strict=True))
    probe = [COLUMN["probe"], COLUMN["state_distance"]]
    made = conversations.copy()
    made[:, probe] = components[:, probe]
    whole = np.array([withheld[component] for component in table.components])
    made[whole] = components[whole]
    return made


def _filled(table: FeatureTable, groups: Sequence[str]) -> FloatArray:
    made = table.vectors.copy()
    if len(set(groups)) < 2:
        return made
    for held_out in folds(groups):
        others = table.rows(np.setdiff1d(np.arange(len(table)), held_out))
        made[held_out] = with_context(table.rows(held_out), learn_context(others))
    return made


def _fit_probe(hidden: FloatArray, passed: BoolArray) -> Probe | None:
    flat = hidden.reshape(len(hidden), -1).astype(np.float64)
    there = np.isfinite(flat).any(axis=1)
    labels = passed[there]
    if there.sum() < MIN_PROBE_ROWS or labels.all() or not labels.any():
        return None
    flat = flat[there]
    counts = np.isfinite(flat).sum(axis=0)
    known = np.where(np.isfinite(flat), flat, 0.0)
    mean = known.sum(axis=0) / np.maximum(counts, 1)
    centred = np.where(np.isfinite(flat), flat - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / np.maximum(counts, 1))
    deviation = np.where(deviation > 1e-6, deviation, 1.0)

    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=0.01, max_iter=1000).fit(centred / deviation, labels)
    return Probe(mean, deviation, model.coef_[0].astype(np.float64), float(model.intercept_[0]))
