"""Run one arm over cases: ask an OpenAI-compatible endpoint, score what it answers, keep one row a case.

A run can be stopped at any moment and started again with the same arguments: rows whose very request has been answered
are not asked again, and a changed request (other tools, options, model) is. Every case gets a row, failures too; a
failure that may pass (no response, time-out, a key or a budget that was refused, 429, 5xx) is asked again by the next
run. Answers of a live model differ from run to run; a table says what was answered once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from msgspec.structs import replace

from evaluation.cases.case import Case, canonical_json, data_hash
from evaluation.cases.scoring import score
from evaluation.traces.client import ChatClient, ClientReply, Endpoint, Timing
from evaluation.traces.journal import Journal
from evaluation.traces.small_side import Serving, serving_of
from evaluation.traces.table import (
    Trace,
    TraceError,
    TraceInfo,
    TraceRow,
    answer_of,
    calls_text,
    read_trace,
    write_trace,
)
from evaluation.traces.wire import Extras, SmallDraft, WireSignals

INVALID_DRAFT = "small_draft_invalid"
"""The gateway's error code for a pinned small model whose draft is no valid answer: an answer that failed."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run; all are counts of cases."""

    total: int
    done: int
    """Rows that stand, those of earlier runs included."""
    resumed: int
    """Rows of earlier runs."""
    failed: int
    """Requests without an answer."""
    passed: int


Keep = Callable[[TraceRow], None]
"""Takes a row in; once it returns the row outlives the process."""
Ask = Callable[[Sequence[Case], Keep], Awaitable[None]]


async def collect(
    cases: Sequence[Case],
    endpoint: Endpoint | Sequence[Endpoint],
    out: Path,
    *,
    command: str,
    concurrency: int = 4,
    timeout_s: float = 120.0,
    retries: int = 3,
    on_progress: Callable[[Progress], None] | None = None,
    timing: Timing | None = None,
) -> Trace:
    """Ask `endpoint`, or several that serve one model, for every case and write the table `out`; return it.

    `concurrency` requests are under way at each endpoint.

    `command` says how the run was started and goes into the table: no secrets. Until all rows stand they are kept in
    `out` + `.journal`. Rows of cases that are not asked for stay in the table. Raises TraceError if `out` or the
    journal belong to another arm or version, or to drafts that were made with something else, if another run writes
    them, or if they cannot be written.
    """
    if concurrency < 1:
        raise ValueError("concurrency must be at least 1")

    endpoints = [endpoint] if isinstance(endpoint, Endpoint) else list(endpoint)
    first = _one_model(endpoints)

    async def ask(todo: Sequence[Case], keep: Keep) -> None:
        limit = concurrency * len(endpoints)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit)) as session:
            clients = [
                (each, ChatClient(session, each, timeout_s=timeout_s, retries=retries, timing=timing or Timing()))
                for each in endpoints
            ]
            await ask_all(todo, clients, concurrency, lambda case, reply: keep(row_of(case, first, reply)))

    serving = await served_by(endpoints)
    return await collect_by(ask, cases, endpoints, out, command=command, serving=serving, on_progress=on_progress)


async def collect_by(
    ask: Ask,
    cases: Sequence[Case],
    endpoints: Sequence[Endpoint],
    out: Path,
    *,
    command: str,
    serving: Serving | None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Trace:
    """`collect`, however the answers are had: `ask` is given the cases that are open and what keeps their rows.
    `serving` is what they are drafted with, None for answers of which that is not known."""
    if len({case.id for case in cases}) != len(cases):
        raise ValueError("case ids must be unique")
    endpoint = _one_model(endpoints)
    with Journal(out.with_name(out.name + ".journal"), endpoint.model, serving) as journal:
        rows = {row.case_id: row for row in (*_table_rows(out, endpoint.model, serving), *journal.rows)}
        todo = [case for case in cases if not _stands(rows.get(case.id), _request_hash(case, endpoint))]
        asked_again = {case.id for case in todo}
        tally = _Tally(len(cases), [rows[case.id] for case in cases if case.id not in asked_again], on_progress)

        def keep(row: TraceRow) -> None:
            journal.append(row)
            rows[row.case_id] = row
            tally.count(row)

        await ask(todo, keep)
        info = TraceInfo(
            arm=endpoint.model,
            command=command,
            data_sha256=data_hash(cases),
            endpoint=told_of(endpoints),
            serving=serving,
        )
        asked = [rows.pop(case.id) for case in cases]
        trace = Trace(info, [*asked, *(rows[case_id] for case_id in sorted(rows))])
        write_trace(out, trace)
        journal.remove()
    return trace


async def served_by(endpoints: Sequence[Endpoint]) -> Serving | None:
    """Return what the gateways draft with; None where signals are not asked for, or none of them is a gateway of ours.

    Raises TraceError where they draft with different things: their rows would not be one model's.
    """
    asked = [each for each in endpoints if each.include_signals]
    if not asked:
        return None
    async with aiohttp.ClientSession() as session:
        servings = [await serving_of(session, each.base_url, each.api_key) for each in asked]
    if any(each != servings[0] for each in servings):
        raise TraceError("the endpoints draft with other weights, another adapter or other settings than one another")
    return servings[0]


def standing_rows(cases: Sequence[Case], endpoint: Endpoint, out: Path, serving: Serving | None) -> dict[str, TraceRow]:
    """Case id → the row of the table `out` that another attempt would not better; none where there is no table."""
    found = {row.case_id: row for row in _table_rows(out, endpoint.model, serving)}
    return {case.id: found[case.id] for case in cases if _stands(found.get(case.id), _request_hash(case, endpoint))}


def row_of(case: Case, endpoint: Endpoint, reply: ClientReply) -> TraceRow:
    """The table's row of a reply, scored."""
    extras, usage = reply.extras or Extras(), reply.usage
    cost_usd = extras.cost_usd
    if cost_usd is None and usage is not None and endpoint.prices is not None:
        cost_usd = endpoint.prices.cost_usd(usage.prompt_tokens, usage.completion_tokens)
    row = TraceRow(
        case_id=case.id,
        source=case.source,
        category=case.category,
        arm=endpoint.model,
        request_sha256=_request_hash(case, endpoint),
        started_at=reply.started_at,
        attempts=reply.attempts,
        latency_s=reply.latency_s,
        ttft_s=reply.ttft_s,
        status=reply.status,
        error=reply.error,
        error_detail=reply.error_detail,
        outcome=("calls" if reply.calls else "no_call") if reply.answered else None,
        calls=calls_text(reply.calls) if reply.answered else None,
        text=reply.text,
        finish_reason=reply.finish_reason,
        prompt_tokens=None if usage is None else usage.prompt_tokens,
        completion_tokens=None if usage is None else usage.completion_tokens,
        cost_usd=cost_usd,
        decision_id=extras.decision_id,
        side=extras.side,
        reason=extras.reason,
        policy=extras.policy,
        stage=extras.stage,
        score=extras.score,
        threshold=extras.threshold,
        findings=extras.findings,
    )
    return scored(case, _with_draft(row, extras.small))


def scored(case: Case, row: TraceRow) -> TraceRow:
    """The row with `passed` and `fail_reason` by today's rules."""
    if not case.scorable or (row.outcome is None and row.error != INVALID_DRAFT):
        return replace(row, passed=None, fail_reason=None)
    if row.outcome is None:
        return replace(row, passed=False, fail_reason=INVALID_DRAFT)
    verdict = score(case, answer_of(row))
    return replace(row, passed=verdict.passed, fail_reason=None if verdict.passed else verdict.reason.value)


def _with_draft(row: TraceRow, draft: SmallDraft | None) -> TraceRow:
    if draft is None:
        return row
    row = replace(
        row,
        small_outcome=draft.outcome,
        small_plan=draft.plan,
        small_calls=calls_text(draft.calls),
        small_complete=draft.complete,
        small_text=draft.text,
        small_prompt_tokens=draft.prompt_tokens,
        small_completion_tokens=draft.completion_tokens,
        small_queue_s=draft.queue_s,
        small_prefill_s=draft.prefill_s,
        small_decode_s=draft.decode_s,
        small_steps=draft.steps,
    )
    if draft.signals is None:
        return row
    return replace(row, **{name: getattr(draft.signals, name) for name in WireSignals.__struct_fields__})


def _request_hash(case: Case, endpoint: Endpoint) -> str:
    return hashlib.sha256(canonical_json(endpoint.body(case.messages, case.tools))).hexdigest()


_OF_THE_CALLER = {401, 402, 403, 429}
"""Failures that another key, a new budget or a later minute may better."""


def _stands(row: TraceRow | None, request_sha256: str) -> bool:
    """Return True if the very request has a row that another attempt would not better."""
    if row is None or row.request_sha256 != request_sha256:
        return False
    if row.error is None:
        return True
    unanswered = row.status is None or row.status in _OF_THE_CALLER or row.status >= 500
    return not (unanswered or row.error in {"timeout", "connection"})


def _table_rows(path: Path, arm: str, serving: Serving | None) -> Sequence[TraceRow]:
    if not path.exists():
        return ()
    trace = read_trace(path)
    if trace.info.arm != arm:
        raise TraceError(f"{path}: holds {trace.info.arm!r}, not {arm!r}")
    if trace.info.serving != serving:
        raise TraceError(
            f"{path}: its drafts were made with other weights, another adapter or other settings than the gateway's "
            "now, or it does not say with which: write to another file"
        )
    return trace.rows


def told_of(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Return what a table records about the endpoints it asked; no key."""
    return endpoints[0].public() | {"base_urls": [each.base_url for each in endpoints]}


def _one_model(endpoints: Sequence[Endpoint]) -> Endpoint:
    """The first endpoint. Raises ValueError where there is none, or where another would be asked something else."""
    if not endpoints:
        raise ValueError("no endpoint to ask")
    first = endpoints[0]
    if any(each.body([], []) != first.body([], []) or each.prices != first.prices for each in endpoints):
        raise ValueError("all endpoints must be asked the same: one model, one set of options")
    return first


class _Tally:
    """Counts rows and reports each."""

    def __init__(self, total: int, resumed: Sequence[TraceRow], on_progress: Callable[[Progress], None] | None) -> None:
        self._now = Progress(total, len(resumed), len(resumed), _failures(resumed), _passes(resumed))
        self._tell = on_progress or (lambda _: None)
        self._tell(self._now)

    def count(self, row: TraceRow) -> None:
        now = self._now
        self._now = dataclasses.replace(
            now, done=now.done + 1, failed=now.failed + _failures([row]), passed=now.passed + _passes([row])
        )
        self._tell(self._now)


def _failures(rows: Sequence[TraceRow]) -> int:
    return sum(row.outcome is None and row.error != INVALID_DRAFT for row in rows)


def _passes(rows: Sequence[TraceRow]) -> int:
    return sum(row.passed is True for row in rows)


GIVE_UP_AFTER = 3
"""Requests in a row that found no endpoint (each with its own retries), after which it is left alone."""


async def ask_all(
    cases: Sequence[Case],
    clients: Sequence[tuple[Endpoint, ChatClient]],
    concurrency: int,
    keep: Callable[[Case, ClientReply], None],
) -> None:
    """Ask every case once; `keep` is called with each reply, in no set order. Raises what `keep` or a client raises."""
    waiting = deque(cases)
    unreached = [0] * len(clients)

    def deserted(place: int) -> bool:
        alive = sum(count < GIVE_UP_AFTER for count in unreached)
        return unreached[place] >= GIVE_UP_AFTER and alive > 0

    async def work(place: int) -> None:
        endpoint, client = clients[place]
        while waiting and not deserted(place):
            case = waiting.popleft()
            reply = await client.ask(endpoint.body(case.messages, case.tools))
            unreached[place] = unreached[place] + 1 if reply.error == "connection" else 0
            others = any(count < GIVE_UP_AFTER for other, count in enumerate(unreached) if other != place)
            if reply.error == "connection" and others:
                waiting.append(case)  # another endpoint may be reached
            else:
                keep(case, reply)

    while waiting:  # a case that was put back may find no worker left: ask on with those that can be reached
        try:
            async with asyncio.TaskGroup() as tasks:
                for place in range(len(clients)):
                    if not deserted(place):
                        for _ in range(min(concurrency, len(cases))):
                            tasks.create_task(work(place))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
