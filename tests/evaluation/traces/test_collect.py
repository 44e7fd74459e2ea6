"""Collecting a trace from a real HTTP server: rows, streams, retries, resumption, a kill in the middle."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from evaluation.cases.case import CallsGold, Case, GoldCall, NoCallGold, UnknownGold, data_hash
from evaluation.traces.client import ClientPrices, Endpoint, Timing
from evaluation.traces.collect import Progress, collect
from evaluation.traces.sharded import Executor, RayUnavailableError, collect_sharded, locally, with_ray
from evaluation.traces.table import (
    Trace,
    TraceError,
    TraceInfo,
    TraceRow,
    answer_of,
    draft_of,
    read_trace,
    request_of,
    write_trace,
)
from policies.types import HIDDEN_SIZE, DraftCall, Outcome, Span

Handler = Callable[[web.Request, dict[str, Any], int], Awaitable[web.StreamResponse]]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
GOLD = CallsGold([GoldCall("get_weather", {"city": ["Paris"]})])
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def _case(name: str, gold: Any = GOLD) -> Case:
    return Case(
        id=name,
        source="test",
        split="test",
        category="simple",
        messages=[{"role": "user", "content": name}],
        tools=[WEATHER],
        gold=gold,
    )


def _journal(out: Path) -> Path:
    return out.with_name(out.name + ".journal")


def _completion(city: str = "Paris", **extra: Any) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": city})}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}], "usage": USAGE, **extra}


class Upstream:
    """A server whose answers a test writes; counts requests by the user's text."""

    def __init__(self, handler: Handler) -> None:
        self.seen: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self._handler = handler
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        name = body["messages"][-1]["content"]
        self.seen[name] += 1
        response = await self._handler(request, body, self.seen[name])
        self.answered[name] += 1
        return response

    @property
    def url(self) -> str:
        return str(self.server.make_url("/v1"))


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[[Handler], Awaitable[Upstream]]]:
    running: list[Upstream] = []

    async def start(handler: Handler) -> Upstream:
        made = Upstream(handler)
        await made.server.start_server()
        running.append(made)
        return made

    yield start
    for made in running:
        await made.server.close()


Start = Callable[[Handler], Awaitable[Upstream]]


class Pauses:
    """A timing whose pauses are noted instead of waited for."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    @property
    def timing(self) -> Timing:
        return Timing(now=lambda: datetime(2026, 1, 1, tzinfo=UTC), sleep=self._sleep)


async def _by_name(_: web.Request, body: dict[str, Any], __: int) -> web.StreamResponse:
    name = body["messages"][-1]["content"]
    return web.json_response(_completion("Rome" if name == "wrong" else "Paris"))


async def test_rows_hold_what_was_answered_scored_and_priced(upstream: Start, tmp_path: Path) -> None:
    """One row a case in the cases' order; cost from usage and prices; the table read back is the one returned."""
    server = await upstream(_by_name)
    cases = [_case("right"), _case("wrong"), _case("unknown", UnknownGold()), _case("none", NoCallGold())]
    endpoint = Endpoint(
        server.url, "m", api_key="sk-secret", prices=ClientPrices(2.5, 10.0), options={"temperature": 0}
    )
    out = tmp_path / "t.parquet"
    trace = await collect(cases, endpoint, out, command="test", concurrency=3)
    assert [row.case_id for row in trace.rows] == ["right", "wrong", "unknown", "none"]
    assert [row.passed for row in trace.rows] == [True, False, None, False]
    assert [row.fail_reason for row in trace.rows] == [None, "wrong_value", None, "unexpected_call"]
    row = trace.rows[0]
    assert (row.status, row.outcome, row.attempts, row.finish_reason) == (200, "calls", 1, "tool_calls")
    assert row.cost_usd == pytest.approx((100 * 2.5 + 10 * 10) / 1e6)
    assert row.latency_s > 0
    assert row.ttft_s is None
    assert set(server.keys) == {"Bearer sk-secret"}
    assert all(body["temperature"] == 0 and "smallcall" not in body for body in server.bodies)
    again = read_trace(out)
    assert again == trace
    assert again.info.data_sha256 == data_hash(cases)
    assert not _journal(out).exists()


async def test_no_secret_reaches_the_disk(upstream: Start, tmp_path: Path) -> None:
    """The key is in neither the table, its metadata nor a repr."""
    server = await upstream(_by_name)
    endpoint = Endpoint(server.url, "m", api_key="sk-secret")
    out = tmp_path / "t.parquet"
    trace = await collect([_case("right")], endpoint, out, command="test")
    assert "sk-secret" not in repr(endpoint) + repr(trace)
    assert b"sk-secret" not in out.read_bytes()


async def _stream(request: web.Request, events: list[Any], *, end: bytes = b"data: [DONE]\n\n") -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b": keep-alive\r\n\r\n")
    for event in events:
        raw = b"data: " + json.dumps(event).encode() + b"\r\n\r\n"
        await response.write(raw[:17])
        await response.write(raw[17:])
    await response.write(end)
    return response


def _delta(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


async def test_a_stream_is_put_together(upstream: Start, tmp_path: Path) -> None:
    """Interleaved parallel calls in pieces, keep-alives, usage and extras in a last chunk without choices."""

    async def handler(request: web.Request, body: dict[str, Any], _: int) -> web.StreamResponse:
        assert body["stream_options"] == {"include_usage": True}

        def piece(index: int, **function: str) -> dict[str, Any]:
            return _delta(tool_calls=[{"index": index, "function": function}])

        return await _stream(
            request,
            [
                _delta(role="assistant"),
                piece(1, name="get_time", arguments=""),
                piece(0, name="get_weather"),
                piece(0, arguments='{"city": '),
                piece(1, arguments="{}"),
                piece(0, arguments='"Paris"}'),
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
                {"choices": [], "usage": USAGE, "smallcall": {"side": "large", "cost_usd": 0.5}},
            ],
        )

    server = await upstream(handler)
    out = tmp_path / "t.parquet"
    trace = await collect([_case("a")], Endpoint(server.url, "m", stream=True), out, command="test")
    row = trace.rows[0]
    assert json.loads(row.calls or "") == [
        {"name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"name": "get_time", "arguments": "{}"},
    ]
    assert row.fail_reason == "wrong_count"
    assert (row.finish_reason, row.prompt_tokens, row.side, row.cost_usd) == ("tool_calls", 100, "large", 0.5)
    assert row.ttft_s is not None
    assert 0 < row.ttft_s <= row.latency_s


async def test_a_stream_that_fails_in_the_middle_is_no_answer(upstream: Start, tmp_path: Path) -> None:
    """Half a call is not scored; the error's word is kept."""

    async def handler(request: web.Request, _: dict[str, Any], __: int) -> web.StreamResponse:
        half = _delta(tool_calls=[{"index": 0, "function": {"name": "get_weather", "arguments": '{"ci'}}])
        return await _stream(request, [half, {"error": {"message": "gone", "code": "upstream_lost"}}])

    server = await upstream(handler)
    out = tmp_path / "t.parquet"
    trace = await collect([_case("a")], Endpoint(server.url, "m", stream=True), out, command="test")
    row = trace.rows[0]
    assert (row.error, row.error_detail, row.outcome, row.passed) == ("upstream_lost", "gone", None, None)


SIGNALS = {
    "logprob": [-0.1, -2.5],
    "margin": [0.9, 0.05],
    "entropy": [0.2, 1.5],
    "feasible_mass": [1.0, 0.5],
    "forced": [False, True],
    "span": [int(Span.PLAN), int(Span.VALUE)],
    "layer_agreement": [0.75, None],
}
HIDDEN = [[0.5] * HIDDEN_SIZE, None, [0.25] * HIDDEN_SIZE, None, [-1.0] * HIDDEN_SIZE]
SMALL = {
    "outcome": "calls",
    "plan": ["get_weather"],
    "calls": [{"name": "get_weather", "arguments": '{"city": 7}'}],
    "complete": True,
    "text": "Thought: get_weather\n",
    "prompt_tokens": 50,
    "completion_tokens": 2,
    "queue_s": 0.5,
    "prefill_s": 0.25,
    "decode_s": 0.75,
    "steps": 1,
    "signals": {**SIGNALS, "hidden": HIDDEN},
}
EXTRAS = {
    "decision_id": "d1",
    "side": "small",
    "reason": "invalid_call",
    "policy": "p",
    "stage": "after",
    "score": 0.25,
    "threshold": 0.5,
    "findings": ["$.city: not a string"],
    "cost_usd": 0.0,
    "latency_s": 1.0,
    "small": SMALL,
}


async def test_a_draft_comes_back_from_the_table_as_a_policy_sees_it(upstream: Start, tmp_path: Path) -> None:
    """The decision and every signal survive the table; an invalid pinned draft is an answer that failed."""

    async def handler(_: web.Request, body: dict[str, Any], __: int) -> web.StreamResponse:
        assert body["smallcall"] == {"include": ["decision", "signals"]}
        error = {"message": "no", "type": "invalid_request_error", "code": "small_draft_invalid"}
        return web.json_response({"error": error, "smallcall": EXTRAS}, status=422)

    server = await upstream(handler)
    endpoint = Endpoint(server.url, "smallcall/small", include_signals=True)
    case = _case("a")
    await collect([case], endpoint, tmp_path / "t.parquet", command="test")
    row = read_trace(tmp_path / "t.parquet").rows[0]
    assert (row.status, row.passed, row.fail_reason, row.outcome) == (422, False, "small_draft_invalid", None)
    assert (row.reason, row.stage, row.score, row.findings) == ("invalid_call", "after", 0.25, EXTRAS["findings"])
    assert row.small_busy_s == pytest.approx(1.0)
    draft = draft_of(row)
    assert (draft.outcome, draft.plan, draft.complete) == (Outcome.CALLS, ("get_weather",), True)
    assert draft.calls == (DraftCall("get_weather", '{"city": 7}'),)
    assert draft.signals is not None
    for name, values in SIGNALS.items():
        got = getattr(draft.signals, name)
        assert got == pytest.approx(np.asarray(values, dtype=got.dtype), nan_ok=True)
    assert draft.hidden is not None
    assert [place[0] for place in draft.hidden.tolist()] == pytest.approx(
        [0.5, np.nan, 0.25, np.nan, -1.0], nan_ok=True
    )
    request = request_of(case)
    assert [(tool.name, tool.parameters["required"]) for tool in request.tools] == [("get_weather", ["city"])]
    assert request.messages == case.messages


async def test_other_endpoints_answer_as_drafts_without_signals(upstream: Start, tmp_path: Path) -> None:
    """An answer becomes the draft; a request that failed becomes one that nobody would serve."""

    async def handler(request: web.Request, body: dict[str, Any], seen: int) -> web.StreamResponse:
        if body["messages"][-1]["content"] == "refused":
            return web.json_response({"error": {"message": "no", "code": None}}, status=400)
        return await _by_name(request, body, seen)

    server = await upstream(handler)
    cases = [_case("right"), _case("refused")]
    trace = await collect(cases, Endpoint(server.url, "m"), tmp_path / "t.parquet", command="test")
    draft, failed = (draft_of(row) for row in trace.rows)
    assert draft.calls == (DraftCall("get_weather", '{"city": "Paris"}'),)
    assert draft.signals is None
    assert (failed.outcome, failed.complete) == (Outcome.UNPARSABLE, False)
    assert answer_of(trace.rows[0]).calls[0].arguments == {"city": "Paris"}


async def test_what_may_pass_is_retried_and_retry_after_is_honoured(upstream: Start, tmp_path: Path) -> None:
    """429 and 503 are asked again, after the seconds or the date the server names, else after a doubling pause."""

    async def handler(request: web.Request, body: dict[str, Any], seen: int) -> web.StreamResponse:
        match seen:
            case 1:
                return web.Response(status=429, headers={"retry-after": "7"})
            case 2:
                return web.Response(status=503, headers={"retry-after": "Thu, 01 Jan 2026 00:00:09 GMT"})
            case 3:
                return web.Response(status=500, headers={"retry-after": "soon"})
            case _:
                return await _by_name(request, body, seen)

    server = await upstream(handler)
    pauses = Pauses()
    out = tmp_path / "t.parquet"
    trace = await collect([_case("a")], Endpoint(server.url, "m"), out, command="test", timing=pauses.timing)
    assert pauses.slept == [7.0, 9.0, 2.0]
    assert (trace.rows[0].attempts, trace.rows[0].passed) == (4, True)


async def test_failures_are_rows(upstream: Start, tmp_path: Path) -> None:
    """Each way to fail has its word; a 400 and a time-out are asked once, a lost connection again."""

    async def handler(request: web.Request, body: dict[str, Any], _: int) -> web.StreamResponse:
        match body["messages"][-1]["content"]:
            case "coded":
                return web.json_response({"error": {"message": "m", "code": "context_length"}}, status=400)
            case "bare":
                return web.Response(text="<html>", status=404)
            case "nonsense":
                return web.Response(text="<html>", content_type="application/json")
            case "empty":
                return web.json_response({"choices": []})
            case "mistyped":
                return web.json_response({"choices": [{"message": {"content": None, "tool_calls": [{"function": 1}]}}]})
            case "slow":
                await asyncio.sleep(30)
            case "lost":
                assert request.transport is not None
                request.transport.close()
            case "redirect":
                raise web.HTTPFound("http://127.0.0.1:1/")
        return web.Response()

    server = await upstream(handler)
    names = {
        "coded": "context_length",
        "bare": "http_404",
        "nonsense": "bad_response",
        "empty": "bad_response",
        "mistyped": "bad_response",
        "slow": "timeout",
        "lost": "connection",
        "redirect": "http_302",
    }
    trace = await collect(
        [_case(name) for name in names],
        Endpoint(server.url, "m"),
        tmp_path / "t.parquet",
        command="test",
        concurrency=len(names),
        timeout_s=0.7,
        retries=1,
        timing=Pauses().timing,
    )
    assert {row.case_id: row.error for row in trace.rows} == names
    assert all(row.passed is None and row.outcome is None for row in trace.rows)
    assert server.seen == Counter(dict.fromkeys(names, 1) | {"lost": 2})


async def test_a_second_run_asks_only_what_is_open(upstream: Start, tmp_path: Path) -> None:
    """Answered and refused rows stand; passing failures, changed requests and new cases are asked; old rows stay."""
    failing = {"flaky"}

    async def handler(request: web.Request, body: dict[str, Any], seen: int) -> web.StreamResponse:
        name = body["messages"][-1]["content"]
        if name == "refused":
            return web.json_response({"error": {"message": "no"}}, status=400)
        return web.Response(status=503) if name in failing else await _by_name(request, body, seen)

    server = await upstream(handler)
    out = tmp_path / "t.parquet"
    endpoint = Endpoint(server.url, "m")
    names = ["right", "refused", "flaky", "changed", "dropped"]
    await collect([_case(name) for name in names], endpoint, out, command="test", retries=0)
    failing.clear()
    server.seen.clear()
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "changed"}]
    changed = msgspec.structs.replace(_case("changed"), messages=asked)
    cases = [_case("new"), changed, _case("flaky"), _case("refused"), _case("right")]
    progress: list[Progress] = []
    trace = await collect(cases, endpoint, out, command="test", concurrency=1, on_progress=progress.append)
    assert server.seen == Counter(["flaky", "changed", "new"])
    assert [row.case_id for row in trace.rows] == ["new", "changed", "flaky", "refused", "right", "dropped"]
    assert progress[0] == Progress(total=5, done=2, resumed=2, failed=1, passed=1)
    assert progress[-1] == Progress(total=5, done=5, resumed=2, failed=1, passed=4)


async def test_concurrency_is_bounded(upstream: Start, tmp_path: Path) -> None:
    """Never more requests at once than asked for, and no fewer while there is work."""
    now, most = 0, 0

    async def handler(request: web.Request, body: dict[str, Any], seen: int) -> web.StreamResponse:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return await _by_name(request, body, seen)

    server = await upstream(handler)
    cases = [_case(str(i)) for i in range(20)]
    await collect(cases, Endpoint(server.url, "m"), tmp_path / "t.parquet", command="test", concurrency=3)
    assert most == 3


async def test_two_runs_do_not_write_one_table(upstream: Start, tmp_path: Path) -> None:
    """The second is told so; a table or a journal of another arm is refused too."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request, body: dict[str, Any], seen: int) -> web.StreamResponse:
        entered.set()
        await leave.wait()
        return await _by_name(request, body, seen)

    server = await upstream(handler)
    out = tmp_path / "t.parquet"
    first = asyncio.create_task(collect([_case("a")], Endpoint(server.url, "m"), out, command="test"))
    await entered.wait()
    with pytest.raises(TraceError, match="another run writes it"):
        await collect([_case("a")], Endpoint(server.url, "m"), out, command="test")
    leave.set()
    await first
    with pytest.raises(TraceError, match="holds 'm', not 'other'"):
        await collect([_case("a")], Endpoint(server.url, "other"), out, command="test")


RUN = """
import asyncio, sys
from pathlib import Path
import msgspec
from evaluation.cases.case import Case
from evaluation.traces.client import Endpoint
from evaluation.traces.collect import collect

cases = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=list[Case])
asyncio.run(collect(cases, Endpoint(sys.argv[1], "m"), Path(sys.argv[3]), command="test", concurrency=4))
"""


async def test_a_kill_loses_at_most_the_requests_in_flight(upstream: Start, tmp_path: Path) -> None:
    """After kill -9 and a torn last line, the next run asks again no more than the four that were in flight."""
    enough = asyncio.Event()

    async def handler(request: web.Request, body: dict[str, Any], seen: int) -> web.StreamResponse:
        if server.answered.total() >= 21:
            enough.set()
        await asyncio.sleep(0.01)
        return await _by_name(request, body, seen)

    server = await upstream(handler)
    cases = [_case(str(i)) for i in range(60)]
    (tmp_path / "cases.json").write_bytes(msgspec.json.encode(cases))
    out = tmp_path / "t.parquet"
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, server.url, str(tmp_path / "cases.json"), str(out)
    )
    await asyncio.wait_for(enough.wait(), 30)
    run.send_signal(signal.SIGKILL)
    assert await run.wait() == -signal.SIGKILL
    assert not out.exists()
    journal = _journal(out)
    with journal.open("ab") as file:
        file.write(b'{"case_id": "torn')
    trace = await collect(cases, Endpoint(server.url, "m"), out, command="test")
    assert [row.case_id for row in trace.rows] == [case.id for case in cases]
    assert all(row.passed for row in trace.rows)
    assert sum(count > 1 for count in server.seen.values()) <= 4
    assert max(server.seen.values()) <= 2
    assert not journal.exists()


def _row(**fields: Any) -> TraceRow:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    given = dict(case_id="a", source="s", category="c", arm="m", request_sha256="0", started_at=now)
    return TraceRow(**{**given, "attempts": 1, "latency_s": 0.5, **fields})


def test_tables_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    """No Parquet, no metadata, another version, a case twice: each an error that names the file."""
    path = tmp_path / "t.parquet"
    path.write_bytes(b"hello")
    with pytest.raises(TraceError, match="not a Parquet table"):
        read_trace(path)
    info = TraceInfo(arm="m", command="c", data_sha256="0")
    write_trace(path, Trace(info, [_row()]))
    bare = pq.read_table(path).replace_schema_metadata({})
    pq.write_table(bare, path)
    with pytest.raises(TraceError, match="not a trace"):
        read_trace(path)
    write_trace(path, Trace(msgspec.structs.replace(info, schema_version=99), [_row()]))
    with pytest.raises(TraceError, match="trace version 99"):
        read_trace(path)
    write_trace(path, Trace(info, [_row(), _row()]))
    with pytest.raises(TraceError, match="twice"):
        read_trace(path)


def test_signals_that_differ_in_length_are_an_error() -> None:
    """A damaged row is refused, not padded."""
    row = _row(small_outcome="calls", **{**SIGNALS, "margin": [0.5]})
    with pytest.raises(TraceError, match="differ in length"):
        draft_of(row)
    for hidden in ([[0.5] * HIDDEN_SIZE], [[0.5]] * 5):
        with pytest.raises(TraceError, match="hidden: not 5 rows"):
            draft_of(_row(small_outcome="calls", hidden=hidden))


@pytest.mark.parametrize(
    "url", ["localhost:8080/v1", "ftp://host/v1", "", "http://u:hunter2@h/v1", "https://h/v1?key=hunter2"]
)
def test_an_endpoint_needs_a_plain_http_url(url: str) -> None:
    """Said before the first request is sent, without repeating a secret."""
    with pytest.raises(ValueError, match="base_url must") as refused:
        Endpoint(url, "m")
    assert "hunter2" not in str(refused.value)


async def test_several_endpoints_share_the_work(upstream: Start, tmp_path: Path) -> None:
    """Each case is asked once, of one of them; both get work, and the table names both."""
    servers = [await upstream(_slowly), await upstream(_slowly)]
    endpoints = [Endpoint(server.url, "m") for server in servers]
    cases = [_case(str(i)) for i in range(24)]
    trace = await collect(cases, endpoints, tmp_path / "t.parquet", command="test", concurrency=2)
    assert servers[0].seen + servers[1].seen == Counter(case.id for case in cases)
    assert min(sum(server.seen.values()) for server in servers) >= 6
    assert [row.case_id for row in trace.rows] == [case.id for case in cases]
    assert trace.info.endpoint["base_urls"] == [server.url for server in servers]


async def test_an_endpoint_that_cannot_be_reached_costs_no_row(upstream: Start, tmp_path: Path) -> None:
    """Its cases go to the other one; where none can be reached, failures are rows."""
    server = await upstream(_slowly)
    gone = Endpoint("http://127.0.0.1:9/v1", "m")
    cases = [_case(str(i)) for i in range(12)]
    both = [gone, Endpoint(server.url, "m")]
    trace = await collect(cases, both, tmp_path / "a.parquet", command="test", concurrency=2, retries=0)
    assert [row.error for row in trace.rows] == [None] * 12
    trace = await collect(cases, [gone, gone], tmp_path / "b.parquet", command="test", concurrency=2, retries=0)
    assert [row.error for row in trace.rows] == ["connection"] * 12


async def test_endpoints_that_would_be_asked_something_else_are_refused(tmp_path: Path) -> None:
    """A table holds one model's answers."""
    two = [Endpoint("http://127.0.0.1:9/v1", "m"), Endpoint("http://127.0.0.1:9/v1", "n")]
    for endpoints in (two, []):
        with pytest.raises(ValueError, match="endpoint"):
            await collect([_case("a")], endpoints, tmp_path / "t.parquet", command="test")


def in_processes(function: Callable[[bytes], bytes], shards: Sequence[bytes]) -> Iterator[bytes]:
    """As a cluster does it: function and shards cross to other processes, which know nothing of this one."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, shards)


@pytest.mark.parametrize("executor", [locally, in_processes])
async def test_shards_give_the_table_of_one_run_and_go_on_where_they_stopped(
    upstream: Start, tmp_path: Path, executor: Executor
) -> None:
    """Rows equal those of a plain run but for their times; a second run asks only what has no row."""
    server = await upstream(_by_name)
    cases = [_case(name) for name in ("right", "wrong", "c", "d", "e")]
    endpoint = Endpoint(server.url, "m", api_key="secret-key")
    plain = await collect(cases, endpoint, tmp_path / "plain.parquet", command="test")
    out = tmp_path / "sharded.parquet"

    def sharded(given: list[Case]) -> Trace:
        return collect_sharded(given, [endpoint], out, command="test", shard_size=2, executor=executor)

    await asyncio.to_thread(sharded, cases[:3])
    server.seen.clear()
    trace = await asyncio.to_thread(sharded, cases)
    assert server.seen == Counter(["d", "e"])
    assert [_timeless(row) for row in trace.rows] == [_timeless(row) for row in plain.rows]
    assert read_trace(out) == trace
    assert b"secret-key" not in out.read_bytes()


def test_without_ray_the_message_says_how_to_get_it() -> None:
    """Ray is an extra; nothing of it is imported before it is asked for."""
    assert "ray" not in sys.modules
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(RayUnavailableError, match=r"smallcall\[ray\]"):
            with_ray(bytes, [b"shard"])


async def _slowly(request: web.Request, body: dict[str, Any], seen: int) -> web.StreamResponse:
    await asyncio.sleep(0.01)
    return await _by_name(request, body, seen)


def _timeless(row: TraceRow) -> TraceRow:
    return msgspec.structs.replace(row, started_at=None, latency_s=None)
