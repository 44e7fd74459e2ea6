"""Traces of the small model as a table that a judge can be fitted on: one row a draft whose outcome is known.

A row is right if its answer passed. Left out, and counted: rows without a label, and requests that no policy would let
be drafted. Drafts that are no valid answer stay in: the judge may see them, though none is ever served.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.cases.case import Case
from evaluation.cases.splits import components
from evaluation.traces.table import Trace, TraceError, TraceRow, draft_of, request_of
from policies.classifier.dataset import FeatureTable
from policies.features.catalog import COLUMN, FEATURES
from policies.features.requests import tool_hashes
from policies.features.vector import features
from policies.rules.single import before_draft
from policies.types import HIDDEN_SIZE, Action, BoolArray, Draft, HiddenPlace, Outcome, Request, TokenSignals

SINGLE, PARALLEL, NO_CALL, ASK, UNPARSABLE = "single call", "parallel calls", "no call", "ask back", "unparsable"
KINDS = (SINGLE, PARALLEL, NO_CALL, ASK, UNPARSABLE)


@dataclass(frozen=True, slots=True)
class Labelled:
    """n drafts with their outcome, and what they were drawn from."""

    table: FeatureTable
    cases: Sequence[Case]
    kinds: Sequence[str]
    """The kind of each draft, one of KINDS."""
    valid: BoolArray
    """Drafts without a finding: only these are ever served."""
    signals: Sequence[TokenSignals | None]
    without_label: int
    """Rows of the traces that failed, or whose case has no gold."""
    not_drafted: int
    """Requests that escalate before a draft is begun."""


def label(cases: Iterable[Case], traces: Sequence[Trace]) -> Labelled:
    """The labelled drafts of some traces.

    Raises:
        TraceError: a case stands in two traces, or one trace's cases are not among `cases`.
    """
    case_of = {case.id: case for case in cases}
    rows: dict[str, TraceRow] = {}
    for trace in traces:
        for row in trace.rows:
            if row.case_id not in case_of:
                raise TraceError(f"{trace.info.arm}: case {row.case_id!r} is in none of the named sets")
            if row.case_id in rows:
                raise TraceError(f"case {row.case_id!r} stands in two traces")
            rows[row.case_id] = row
    known = [row for row in rows.values() if row.passed is not None]
    seen = [(row, request_of(case_of[row.case_id])) for row in known]
    drafted = [(row, request) for row, request in seen if before_draft(request).action is Action.CONTINUE]
    drafts = [draft_of(row) for row, _ in drafted]
    requests = [request for _, request in drafted]
    chosen = [case_of[row.case_id] for row, _ in drafted]
    table = feature_table(chosen, requests, drafts, [row.passed is True for row, _ in drafted])
    findings = [COLUMN[name] for name in FEATURES if name.startswith("findings_")]
    return Labelled(
        table=table,
        cases=chosen,
        kinds=[kind_of(draft) for draft in drafts],
        valid=np.asarray(table.vectors[:, findings].sum(axis=1) == 0),
        signals=[draft.signals for draft in drafts],
        without_label=len(rows) - len(known),
        not_drafted=len(known) - len(drafted),
    )


def feature_table(
    cases: Sequence[Case], requests: Sequence[Request], drafts: Sequence[Draft], passed: Sequence[bool]
) -> FeatureTable:
    """The table of n drafts; what belongs together is read from the cases (conversation, tools that the gold calls)."""
    component = components(cases)
    hashes = [tool_hashes(request, draft) for request, draft in zip(requests, drafts, strict=True)]
    nowhere = np.full((len(HiddenPlace), HIDDEN_SIZE), np.nan, dtype=np.float32)
    vectors = [features(request, draft) for request, draft in zip(requests, drafts, strict=True)]
    return FeatureTable(
        vectors=np.array(vectors, dtype=np.float32).reshape(len(cases), len(FEATURES)),
        hidden=np.array([nowhere if draft.hidden is None else draft.hidden for draft in drafts]).reshape(
            len(cases), *nowhere.shape
        ),
        offered=[offered for offered, _ in hashes],
        planned=[planned for _, planned in hashes],
        passed=np.array(passed, dtype=np.bool_),
        conversations=[case.conversation for case in cases],
        components=[component[case.id] for case in cases],
    )


def kind_of(draft: Draft) -> str:
    """Which of KINDS a draft is."""
    if draft.outcome is Outcome.CALLS:
        return SINGLE if len(draft.calls) <= 1 else PARALLEL
    return {Outcome.NO_CALL: NO_CALL, Outcome.ASK: ASK}.get(draft.outcome, UNPARSABLE)
