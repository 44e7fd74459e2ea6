"""A trace: what one arm answered to each case, one row a case, as a Parquet table.

The columns are the fields of `TraceRow`, the provenance is JSON in the Parquet schema's metadata. A table of another
schema version is refused, not guessed at. `draft_of` and `request_of` give back what a live policy would have seen, so
that policies run over a table unchanged. A row holds its answer's text: traces are as private as the prompts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.cases.answers import Answer, Call
from evaluation.cases.case import Case
from evaluation.traces.small_side import Serving
from evaluation.traces.wire import TextCall
from policies.types import (
    HIDDEN_SIZE,
    Draft,
    DraftCall,
    FloatArray,
    HiddenPlace,
    Outcome,
    Request,
    TokenSignals,
    Tool,
)

TRACE_VERSION = 1
_INFO_KEY = b"smallcall.trace"

_TEXT, _FLOAT, _INT, _BOOL = pa.string(), pa.float64(), pa.int64(), pa.bool_()
_SIGNAL = pa.list_(pa.float32())

TRACE_SCHEMA = pa.schema(
    [
        pa.field("case_id", _TEXT, nullable=False),
        pa.field("source", _TEXT, nullable=False),
        pa.field("category", _TEXT, nullable=False),
        pa.field("arm", _TEXT, nullable=False),
        pa.field("request_sha256", _TEXT),
        pa.field("started_at", pa.timestamp("us", tz="UTC")),
        pa.field("attempts", _INT, nullable=False),
        pa.field("latency_s", _FLOAT),
        pa.field("ttft_s", _FLOAT),
        pa.field("status", _INT),
        pa.field("error", _TEXT),
        pa.field("error_detail", _TEXT),
        pa.field("outcome", _TEXT),
        pa.field("calls", _TEXT),
        pa.field("text", _TEXT),
        pa.field("finish_reason", _TEXT),
        pa.field("prompt_tokens", _INT),
        pa.field("completion_tokens", _INT),
        pa.field("cost_usd", _FLOAT),
        pa.field("passed", _BOOL),
        pa.field("fail_reason", _TEXT),
        pa.field("decision_id", _TEXT),
        pa.field("side", _TEXT),
        pa.field("reason", _TEXT),
        pa.field("policy", _TEXT),
        pa.field("stage", _TEXT),
        pa.field("score", _FLOAT),
        pa.field("threshold", _FLOAT),
        pa.field("findings", pa.list_(_TEXT)),
        pa.field("small_outcome", _TEXT),
        pa.field("small_plan", pa.list_(_TEXT)),
        pa.field("small_calls", _TEXT),
        pa.field("small_complete", _BOOL),
        pa.field("small_text", _TEXT),
        pa.field("small_prompt_tokens", _INT),
        pa.field("small_completion_tokens", _INT),
        pa.field("small_queue_s", _FLOAT),
        pa.field("small_prefill_s", _FLOAT),
        pa.field("small_decode_s", _FLOAT),
        pa.field("small_steps", _INT),
        pa.field("logprob", _SIGNAL),
        pa.field("margin", _SIGNAL),
        pa.field("entropy", _SIGNAL),
        pa.field("feasible_mass", _SIGNAL),
        pa.field("forced", pa.list_(_BOOL)),
        pa.field("span", pa.list_(pa.uint8())),
        pa.field("layer_agreement", _SIGNAL),
        pa.field("hidden", pa.list_(_SIGNAL)),
    ]
)


class TraceError(ValueError):
    """A trace that cannot be read or written."""


class TraceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request of one arm and what came of it. Units stand in the names; the journal holds the same rows as JSON."""

    case_id: str
    source: str
    category: str
    arm: str
    """The model asked for."""
    request_sha256: str | None = None
    """Over the canonical JSON of the body that was sent; None in a trace made of a recording."""
    started_at: datetime | None = None
    attempts: int = 1
    latency_s: float | None = None
    """Wall-clock seconds of the last attempt, from sending to the last byte."""
    ttft_s: float | None = None
    """Seconds to the first text or call of a stream."""
    status: int | None = None
    """HTTP status of the last attempt; None where there was no response."""
    error: str | None = None
    """A stable word: `connection`, `timeout`, `bad_response`, `http_<status>`, or the error code of the response."""
    error_detail: str | None = None
    outcome: str | None = None
    """`calls` or `no_call` as answered; None where nothing was."""
    calls: str | None = None
    """JSON text `[{"name", "arguments"}]` of the answer."""
    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    """As the gateway says, else usage times the endpoint's prices, else None: unknown is not free."""
    passed: bool | None = None
    """None where there is nothing to score: no answer, or no gold. An invalid draft of a pinned small side failed."""
    fail_reason: str | None = None
    decision_id: str | None = None
    side: str | None = None
    reason: str | None = None
    policy: str | None = None
    stage: str | None = None
    score: float | None = None
    threshold: float | None = None
    findings: list[str] | None = None
    small_outcome: str | None = None
    """The rest is the small model's draft; None where the endpoint reports none."""
    small_plan: list[str] | None = None
    small_calls: str | None = None
    small_complete: bool | None = None
    small_text: str | None = None
    small_prompt_tokens: int | None = None
    small_completion_tokens: int | None = None
    small_queue_s: float | None = None
    small_prefill_s: float | None = None
    small_decode_s: float | None = None
    small_steps: int | None = None
    logprob: list[float] | None = None
    margin: list[float] | None = None
    entropy: list[float] | None = None
    feasible_mass: list[float] | None = None
    forced: list[bool] | None = None
    span: list[int] | None = None
    layer_agreement: list[float | None] | None = None
    hidden: list[list[float] | None] | None = None
    """Rows of `policies.types.HiddenPlace`; None for a place that the draft does not have."""

    @property
    def small_busy_s(self) -> float | None:
        """Seconds in which the small model worked on this request, waiting left out; None where not measured.

        Of a draft that a running gateway cut short only the prefill is measured.
        """
        if self.small_prefill_s is None:
            return None
        return self.small_prefill_s + (self.small_decode_s or 0.0)


class TraceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where a trace comes from. Holds no secret: see `evaluation.traces.client.Endpoint.public`."""

    schema_version: int = TRACE_VERSION
    arm: str
    command: str
    data_sha256: str
    """`evaluation.cases.case.data_hash` over the cases that the last run was given."""
    endpoint: dict[str, Any] = {}
    serving: Serving | None = None
    """The models and settings that all drafts were made with; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A table and its provenance. Case ids are unique."""

    info: TraceInfo
    rows: Sequence[TraceRow]


def write_trace(path: Path, trace: Trace) -> None:
    """Write a whole table; whoever reads `path` meanwhile sees the old one or the new one, and so after a power cut."""
    schema = TRACE_SCHEMA.with_metadata({_INFO_KEY: msgspec.json.encode(trace.info)})
    table = pa.Table.from_pylist([msgspec.structs.asdict(row) for row in trace.rows], schema=schema)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_trace(path: Path) -> Trace:
    """Read a table. Raises TraceError for another format, version or columns, OSError if unreadable."""
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise TraceError(f"{path}: not a Parquet table: {error}") from error
    raw = (table.schema.metadata or {}).get(_INFO_KEY)
    if raw is None:
        raise TraceError(f"{path}: not a trace: its metadata has no {_INFO_KEY.decode()}")
    try:
        info = msgspec.json.decode(raw, type=TraceInfo)
        if info.schema_version != TRACE_VERSION:
            raise TraceError(f"{path}: trace version {info.schema_version}; this program reads {TRACE_VERSION}")
        rows = msgspec.convert(table.to_pylist(), list[TraceRow])
    except msgspec.ValidationError as error:
        raise TraceError(f"{path}: {error}") from error
    if len({row.case_id for row in rows}) != len(rows):
        raise TraceError(f"{path}: a case id occurs twice")
    return Trace(info, rows)


def calls_text(calls: Iterable[TextCall]) -> str:
    """Calls as the JSON text of a column."""
    return msgspec.json.encode(list(calls)).decode()


def calls_of(text: str | None) -> list[TextCall]:
    """The calls of a column; none for None. Raises TraceError for other JSON."""
    if text is None:
        return []
    try:
        return msgspec.json.decode(text, type=list[TextCall])
    except msgspec.DecodeError as error:
        raise TraceError(f"calls column: {error}") from error


def answer_of(row: TraceRow) -> Answer:
    """The answer as it is scored."""
    return Answer(tuple(Call.from_text(call.name, call.arguments) for call in calls_of(row.calls)), row.text)


def draft_of(row: TraceRow) -> Draft:
    """The draft that a policy judges.

    Where the endpoint reported a draft, that one; else the answer itself is taken as the draft, without signals. A
    request that failed gives an incomplete, unparsable draft, as the gateway has when its worker fails.
    """
    if row.small_outcome is not None:
        return Draft(
            outcome=Outcome(row.small_outcome),
            calls=tuple(DraftCall(call.name, call.arguments) for call in calls_of(row.small_calls)),
            text=row.small_text or "",
            complete=row.small_complete is not False,
            signals=signals_of(row),
            plan=tuple(row.small_plan or ()),
            hidden=hidden_of(row),
        )
    if row.outcome is None:
        return Draft(outcome=Outcome.UNPARSABLE, complete=False)
    calls = tuple(DraftCall(call.name, call.arguments) for call in calls_of(row.calls))
    return Draft(
        outcome=Outcome(row.outcome),
        calls=calls,
        text=row.text or "",
        complete=row.finish_reason != "length",
        plan=tuple(call.name for call in calls),
    )


def signals_of(row: TraceRow) -> TokenSignals | None:
    """The token signals of a draft, None where they were not recorded. Raises TraceError where they do not fit."""
    columns = (row.logprob, row.margin, row.entropy, row.feasible_mass, row.forced, row.span)
    if any(column is None for column in columns):
        return None
    try:
        return TokenSignals(
            logprob=np.asarray(row.logprob, dtype=np.float32),
            margin=np.asarray(row.margin, dtype=np.float32),
            entropy=np.asarray(row.entropy, dtype=np.float32),
            feasible_mass=np.asarray(row.feasible_mass, dtype=np.float32),
            forced=np.asarray(row.forced, dtype=np.bool_),
            span=np.asarray(row.span, dtype=np.uint8),
            layer_agreement=None if row.layer_agreement is None else np.asarray(row.layer_agreement, dtype=np.float32),
        )
    except ValueError as error:
        raise TraceError(f"{row.case_id}: {error}") from error


def hidden_of(row: TraceRow) -> FloatArray | None:
    """The draft's hidden states, None where they were not recorded. Raises TraceError for another shape."""
    if row.hidden is None:
        return None
    made = np.full((len(HiddenPlace), HIDDEN_SIZE), np.nan, dtype=np.float32)
    if len(row.hidden) != len(made) or any(len(place) != HIDDEN_SIZE for place in row.hidden if place is not None):
        raise TraceError(f"{row.case_id}: hidden: not {len(made)} rows of {HIDDEN_SIZE} numbers")
    for place, numbers in enumerate(row.hidden):
        if numbers is not None:
            made[place] = numbers
    return made


def request_of(case: Case) -> Request:
    """The request as a policy sees it. Cases ask with `tool_choice: auto`."""
    tools = []
    for definition in case.tools:
        function = definition["function"]
        tools.append(Tool(function["name"], function.get("description") or "", function.get("parameters") or {}))
    return Request(messages=case.messages, tools=tuple(tools))
