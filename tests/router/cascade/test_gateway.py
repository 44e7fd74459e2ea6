"""The gateway through HTTP: drafts, verdicts, escalation, errors, rows."""

import asyncio
import hashlib
import io
import json
import threading
import time
from typing import Any

import aiohttp
import openai
import orjson
import pytest
import structlog

from evaluation.demo.rows import load_demo
from evaluation.recorded.faults import Cut, Garbage, Status, always, in_turn
from evaluation.recorded.server import RecordedServer
from policies.rules.single import ValidAndSure
from policies.types import Verdict
from router.constants import Constants
from router.ledger.store import Ledger, LedgerUnavailableError
from router.settings import OFFLOAD_BYTES
from tests.router.conftest import Make, ScriptedSmall, away, served

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

ROWS = load_demo()
CALLING = next(row for row in ROWS if row.recorded.calls)
TALKING = next(row for row in ROWS if not row.recorded.calls)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": CITY}}
CALL = 'Thought: get_weather\nAction: get_weather\nAction Input: {"city": "Paris"}'
TWO = (
    CALL.replace("Thought: get_weather", "Thought: get_weather, get_weather")
    + '\nAction: get_weather\nAction Input: {"city": "Rome"}'
)


class Scripted:
    """A large model at the seam: answers with its chunks' text; `pause_s` before each chunk."""

    model, ready = "openai/gpt-4o", True

    def __init__(self, pause_s: float = 0.0, chunks: int = 3) -> None:
        self.pause_s, self.chunks = pause_s, chunks
        self.asked = 0
        self.cancelled = 0
        self.closed = 0

    async def complete(self, body: Any, tries: Any = None) -> dict[str, Any]:
        self.asked += 1
        try:
            await asyncio.sleep(self.pause_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        message = {"role": "assistant", "content": "word " * self.chunks}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "x", "object": "chat.completion", "choices": [choice]}

    async def stream(self, body: Any, tries: Any = None) -> Any:
        self.asked += 1
        return self

    async def __aiter__(self) -> Any:
        for index in range(self.chunks):
            await asyncio.sleep(self.pause_s)
            finish = "stop" if index == self.chunks - 1 else None
            yield {"id": "x", "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": finish}]}

    async def aclose(self) -> None:
        self.closed += 1

    def cost_usd(self, usage: Any) -> None:
        return None


def ask(**changes: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": "Paris?"}], "tools": [TOOL], **changes}


def recorded(**options: Any) -> RecordedServer:
    return RecordedServer([row.recorded for row in ROWS], [row.case for row in ROWS], **options)


def of(row: Any, **changes: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": row.case.messages, "tools": row.case.tools, **changes}


async def post(url: str, body: Any) -> tuple[int, dict[str, Any], Any]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/chat/completions", data=io.BytesIO(data)) as response,
    ):
        return response.status, dict(response.headers), await response.json()


async def stream(url: str, body: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Headers and decoded events of a stream that ends with `[DONE]`."""
    async with aiohttp.ClientSession() as session, session.post(url + "/chat/completions", json=body) as response:
        assert response.content_type == "text/event-stream"
        *events, done, rest = (await response.text()).split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        told = [event for event in events if not event.startswith(":")]  # keep-alives, on a busy machine
        return dict(response.headers), [json.loads(event.removeprefix("data: ")) for event in told]


async def rows_of(app: Any, count: int) -> list[Any]:
    """The rows, once there are `count` of them."""
    async with asyncio.timeout(5):
        while await app.services.ledger.count() < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    kept: list[Any] = await app.services.ledger.page()
    return kept


async def test_a_sure_and_valid_draft_is_the_answer(gateway: Make) -> None:
    """The official client gets the small model's call, its own model name back, and headers that say who spoke."""
    app = gateway(small=ScriptedSmall(TWO))
    async with served(app) as url:
        client = openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
        raw = await client.chat.completions.with_raw_response.create(**ask())
        completion = raw.parse()
        await client.close()
        message = completion.choices[0].message
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]
        assert calls == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})]
        assert completion.model == "gpt-4o"
        assert completion.choices[0].finish_reason == "tool_calls"
        assert (raw.headers["x-smallcall-model"], raw.headers["x-smallcall-reason"]) == ("small", "accepted")
        decision_id = raw.headers["x-smallcall-decision-id"]
        assert [call.id for call in message.tool_calls or []] == [f"call_{decision_id}_0", f"call_{decision_id}_1"]
        row = await app.services.ledger.get(decision_id)
        assert (row.side, row.reason, row.outcome, row.small_completion_tokens) == (
            "small",
            "accepted",
            "calls",
            len(TWO),
        )
        assert row.content is None


async def test_small_answers_have_openais_shape(gateway: Make) -> None:
    """Whole and streamed, key for key; only ids and times differ from request to request."""
    small = ScriptedSmall(CALL)
    async with served(gateway(small=small)) as url:
        _, headers, whole = await post(url, ask())
        tokens = {"prompt_tokens": 7, "completion_tokens": len(CALL), "total_tokens": 7 + len(CALL)}
        function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
        call = {"id": f"call_{headers['x-smallcall-decision-id']}_0", "type": "function", "function": function}
        assert len(call["id"]) <= 40
        assert whole == {
            "id": "chatcmpl-" + headers["x-smallcall-decision-id"],
            "object": "chat.completion",
            "created": whole["created"],
            "model": "gpt-4o",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": None, "tool_calls": [call]},
                    "logprobs": None,
                    "finish_reason": "tool_calls",
                }
            ],
            "usage": tokens,
        }
        assert abs(whole["created"] - time.time()) < 60
        options = {"include_usage": True}
        extended = ask(stream=True, stream_options=options, smallcall={"include": ["decision"]})
        headers, events = await stream(url, extended)
    head = {"id": "chatcmpl-" + headers["x-smallcall-decision-id"], "object": "chat.completion.chunk"}
    call["id"] = f"call_{headers['x-smallcall-decision-id']}_0"
    told = events[-1].pop("smallcall")
    assert (told["side"], told["decision_id"]) == ("small", headers["x-smallcall-decision-id"])

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**head, "created": events[0]["created"], "model": "gpt-4o", "choices": [choice], "usage": None}

    assert events == [
        chunk({"role": "assistant", "content": None}),
        chunk({"tool_calls": [{"index": 0, **call}]}),
        chunk({}, "tool_calls"),
        {**head, "created": events[0]["created"], "model": "gpt-4o", "choices": [], "usage": tokens},
    ]


async def test_whole_and_streamed_answers_are_the_same(gateway: Make) -> None:
    """Small and large, the stream adds up to the whole answer, call for call, and usage comes only when asked for."""
    async with recorded() as upstream:
        for small, body in ((ScriptedSmall(TWO), ask()), (None, of(CALLING)), (None, of(TALKING))):
            async with served(gateway(small=small, large_base=upstream.url)) as url:
                client = openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
                whole = await client.chat.completions.create(**body)
                calls: dict[int, list[str]] = {}
                text, usages = "", 0
                async for chunk in await client.chat.completions.create(**body, stream=True):
                    usages += chunk.usage is not None
                    for choice in chunk.choices:
                        text += choice.delta.content or ""
                        for call in choice.delta.tool_calls or []:
                            function = call.function
                            made = calls.setdefault(call.index, ["", ""])
                            made[0] += (function.name if function else "") or ""
                            made[1] += (function.arguments if function else "") or ""
                await client.close()
                message = whole.choices[0].message
                assert [tuple(made) for made in calls.values()] == [
                    (call.function.name, call.function.arguments) for call in message.tool_calls or []
                ]
                assert text == (message.content or "")
                assert usages == 0
                assert whole.usage


@pytest.mark.parametrize(
    ("small", "changes", "reason"),
    [
        (ScriptedSmall(CALL, logprob=-3.0), {}, "low_confidence"),
        (ScriptedSmall(CALL.replace('"Paris"', "3")), {}, "invalid_call"),
        (ScriptedSmall("Thought: none\nAction: none"), {}, "no_call"),
        (ScriptedSmall("Thought: ask\nAction: ask"), {}, "ask"),
        (away(), {}, "worker_unavailable"),
        (ScriptedSmall("", error=ZeroDivisionError("a bug")), {}, "small_side_crashed"),
        (None, {}, "small_disabled"),
        (ScriptedSmall(CALL), {"tools": None}, "no_tools"),
        (ScriptedSmall(CALL), {"tool_choice": "none"}, "tool_choice_none"),
        (ScriptedSmall(CALL), {"model": "smallcall/large"}, "pinned_large"),
        (ScriptedSmall(CALL), {"n": 2}, "several_choices"),
        (ScriptedSmall(CALL), {"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_what_is_not_answered_small_goes_large(
    gateway: Make, small: ScriptedSmall | None, changes: dict[str, Any], reason: str
) -> None:
    """Every reason escalates once, the answer is the large model's, and cost and usage stand in the row."""
    row = CALLING
    tool = row.case.tools[0]["function"]["name"]
    if small is not None:
        small.text = small.text.replace("get_weather", tool)
    body = of(row, **changes)
    if changes.get("tools", 1) is None:
        del body["tools"]
    async with recorded() as upstream:
        app = gateway(small=small, large_base=upstream.url)
        async with served(app) as url:
            status, headers, _ = await post(url, body)
            if reason in ("no_tools", "several_choices", "tool_choice_none"):  # of these the recording knows nothing
                assert status in (400, 404)
            else:
                assert status == 200
                assert headers["x-smallcall-model"] == "large"
                assert headers["x-smallcall-reason"] == reason
            (kept,) = await app.services.ledger.page()
            assert kept.reason == reason
            assert upstream.totals["requests"] == 1
            if status == 200:
                assert kept.large_prompt_tokens == row.recorded.input_tokens
                dollars = (row.recorded.input_tokens or 0) * 2.5e-6 + (row.recorded.output_tokens or 0) * 1e-5
                assert kept.large_cost_nusd == round(dollars * 1e9)


async def test_an_unsure_plan_cancels_the_draft(gateway: Make) -> None:
    """The draft is given up when its plan stands: the arguments are never written."""
    small = ScriptedSmall(CALL, logprob=-3.0)
    async with served(gateway(small=small)) as url:
        status, _, _ = await post(url, ask())
    assert status == 503
    assert small.cancelled == 1
    assert small.written == CALL.index("\n") + 1


async def test_without_a_large_model_the_rest_gets_a_clear_error(gateway: Make) -> None:
    """503 in OpenAI's shape that says what to set; what passes is served."""
    async with served(gateway(small=ScriptedSmall(CALL))) as url:
        assert (await post(url, ask()))[0] == 200
        status, _, body = await post(url, ask(tool_choice="none"))
    assert status == 503
    assert body["error"]["code"] == "large_not_configured"
    assert "SMALLCALL_LARGE__MODEL" in body["error"]["message"]


async def test_the_extension_tells_the_decision_and_goes_no_further(gateway: Make) -> None:
    """`smallcall.include` adds the decision and the signals; upstream never sees the field."""
    async with recorded() as upstream, served(gateway(small=ScriptedSmall(CALL), large_base=upstream.url)) as url:
        _, _, told = await post(url, ask(smallcall={"include": ["decision", "signals"]}))
        assert told["smallcall"]["side"] == "small"
        assert told["smallcall"]["small"]["calls"] == [{"name": "get_weather", "arguments": '{"city": "Paris"}'}]
        assert len(told["smallcall"]["small"]["signals"]["logprob"]) == len(CALL)
        body = of(CALLING, model="smallcall/large", smallcall={"include": ["decision"]})
        _, _, told = await post(url, body)
        assert told["smallcall"]["reason"] == "pinned_large"
        assert told["smallcall"]["cost_usd"] > 0
        assert "smallcall" not in (upstream.received[-1].body or {})


async def test_a_pinned_small_request_never_escalates(gateway: Make) -> None:
    """Unsure is served, no call is empty text, invalid is a 422 that can carry the draft."""
    small = ScriptedSmall(CALL, logprob=-5.0)
    app = gateway(small=small)
    async with served(app) as url:
        pinned = ask(model="smallcall/small", smallcall={"include": ["decision"]})
        status, headers, _ = await post(url, pinned)
        assert (status, headers["x-smallcall-reason"]) == (200, "pinned_small")
        small.text = "Thought: none\nAction: none"
        status, _, body = await post(url, pinned)
        assert body["choices"][0]["message"]["content"] == ""
        assert body["choices"][0]["finish_reason"] == "stop"
        small.text = CALL.replace("city", "town")
        status, _, body = await post(url, pinned)
        assert (status, body["error"]["code"]) == (422, "small_draft_invalid")
        assert body["smallcall"]["small"]["calls"][0]["name"] == "get_weather"
        status, _, body = await post(url, {**pinned, "tools": []})
        assert (status, body["error"]["param"]) == (400, "tools")
        assert await app.services.ledger.count() == 4


async def test_tool_choice_and_turns_reach_the_small_model(gateway: Make) -> None:
    """Named and required choices, single calls and earlier turns arrive at the worker."""
    small = ScriptedSmall(CALL)
    turns = [
        {"role": "user", "content": "Paris?"},
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "x", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "error: no city"},
    ]
    async with served(gateway(small=small)) as url:
        named = {"type": "function", "function": {"name": "get_weather"}}
        assert (await post(url, ask(tool_choice=named, parallel_tool_calls=False, messages=turns)))[0] == 200
        assert (await post(url, ask(tool_choice="required")))[0] == 200
        small.text = TWO
        status, _, body = await post(url, ask(parallel_tool_calls=False))
        assert (status, body["error"]["code"]) == (503, "large_not_configured")
    first, second, _ = small.commands
    assert (first.tool_choice, first.forced_tool, first.parallel_tool_calls) == ("named", "get_weather", False)
    assert first.messages == turns
    assert second.tool_choice == "required"


def _called(call_id: Any) -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    return ask(messages=[*ask()["messages"], {"role": "assistant", "tool_calls": [call]}])


def _answered(call_id: Any) -> dict[str, Any]:
    result = {"role": "tool", "tool_call_id": call_id, "content": "18"}
    return ask(messages=[*_called("a")["messages"], result])


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"model": "m", "messages": [NaN]}', 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"model": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400, None),
        (b"x" * 3_000_000, 413, None),
        (ask(model=None), 400, "model"),
        (ask(messages=[]), 400, "messages"),
        (ask(messages=[{"content": "x"}]), 400, "messages[0].role"),
        (ask(tools=[{"type": "function", "function": {"name": ""}}]), 400, "tools[0].function.name"),
        (_called({}), 400, "messages[1].tool_calls[0].id"),
        (_answered([]), 400, "messages[2].tool_call_id"),
        (ask(tools=[TOOL, TOOL]), 400, "tools[1].function.name"),
        (ask(tool_choice={"type": "function", "function": {"name": "x"}}), 400, "tool_choice.function.name"),
        (ask(tool_choice="sometimes"), 400, "tool_choice"),
        (ask(stream="yes"), 400, "stream"),
        (ask(smallcall={"include": ["all"]}), 400, "smallcall.include"),
    ],
)
async def test_bad_bodies_get_a_clear_error(gateway: Make, body: Any, status: int, param: str | None) -> None:
    """OpenAI's error shape, the field by name, and the gateway lives on."""
    async with served(gateway(small=ScriptedSmall(CALL), server={"max_body_mb": 2})) as url:
        got, _, answer = await post(url, body)
        assert (got, answer["error"]["param"]) == (status, param)
        assert answer["error"]["message"]
        assert (await post(url, ask()))[0] == 200


def _deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"city": {"$ref": "http://127.0.0.1:9/s.json"}}},
        _deep(80),
        {"type": "object", "properties": {"city": {"description": "x" * 2_000_000}}},
    ],
    ids=["remote-ref", "deep", "2MB"],
)
async def test_hostile_schemas_go_large_or_are_refused(gateway: Make, schema: dict[str, Any]) -> None:
    """What cannot be judged is not drafted: without a large model, or pinned small, a 400 names the schema, soon."""
    tools = [TOOL, {"type": "function", "function": {"name": "hostile", "parameters": schema}}]
    small, large = ScriptedSmall(CALL), Scripted()
    began = time.monotonic()
    async with served(gateway(small=small)) as url:
        for model in ("gpt-4o", "smallcall/small"):
            status, headers, body = await post(url, ask(tools=tools, model=model))
            assert (status, body["error"]["code"]) == (400, "schema_unsupported")
            assert body["error"]["param"] == "tools[1].function.parameters"
            assert headers["x-smallcall-decision-id"]
    async with served(gateway(small=small, upstream=large)) as url:
        status, headers, _ = await post(url, ask(tools=tools))
    assert (status, headers["x-smallcall-reason"]) == (200, "schema_unsupported")
    assert small.commands == []
    assert time.monotonic() - began < 5


async def test_a_thousand_tools_and_a_catastrophic_pattern_are_answered(gateway: Make) -> None:
    """Many tools and `(a+)+$` cost bounded time."""
    many = [{"type": "function", "function": {"name": f"t{i}", "parameters": CITY}} for i in range(999)]
    bad = {"type": "object", "properties": {"city": {"type": "string", "pattern": "^(a+)+$"}}}
    evil = {"type": "function", "function": {"name": "get_weather", "parameters": bad}}
    began = time.monotonic()
    async with served(gateway(small=ScriptedSmall(CALL))) as url:
        assert (await post(url, ask(tools=[TOOL, *many])))[0] == 200
    small = ScriptedSmall(CALL.replace("Paris", "a" * 5000 + "!"))
    async with served(gateway(small=small)) as url:
        assert (await post(url, ask(tools=[evil])))[2]["error"]["code"] == "large_not_configured"
    assert time.monotonic() - began < 10


async def test_faults_of_the_large_model_are_retried_or_told(gateway: Make) -> None:
    """A 500 and a 429 are retried; what stays is an OpenAI-shaped error without our key; 4xx is passed on."""
    schedule = in_turn([Status(500), Status(429, retry_after_s=0), None])
    async with recorded(faults=schedule) as upstream, served(gateway(large_base=upstream.url)) as url:
        assert (await post(url, of(CALLING)))[0] == 200
        assert upstream.totals["requests"] == 3
    for fault, expected, retries, code in (
        (Status(500), 502, 0, "upstream_unavailable"),
        (Status(429), 429, 0, "rate_limit_exceeded"),
        (Status(422), 422, 2, "injected_fault"),
        (Garbage(), 502, 0, "upstream_unavailable"),
    ):
        async with recorded(faults=always(fault)) as upstream:
            app = gateway(large_base=upstream.url, large={"retries": retries})
            async with served(app) as url:
                status, _, body = await post(url, of(CALLING))
                assert status == expected
                assert body["error"]["code"] == code
                assert "sk-secret" not in str(body)
                assert upstream.url not in str(body)
                assert upstream.totals["requests"] == 1
                assert (await app.services.ledger.page())[-1].status == expected


async def test_a_large_model_that_is_away_may_be_stood_in_for(gateway: Make) -> None:
    """With `serve_draft_if_large_down`, a valid unsure draft is served; without it the error is told."""
    text = CALL
    policy = {"kind": "threshold", "threshold": 0.99, "score": "mean_logprob"}
    for allowed, expected in ((True, 200), (False, 502)):
        app = gateway(
            small=ScriptedSmall(text, logprob=-0.5),
            large_base="http://127.0.0.1:9/v1",
            large={"retries": 0},
            serve_draft_if_large_down=allowed,
            policy=policy,
        )
        async with served(app) as url:
            status, headers, _ = await post(url, ask())
            assert status == expected
            if allowed:
                assert headers["x-smallcall-reason"] == "upstream_unavailable"


async def test_a_large_request_is_judged_off_the_event_loop(gateway: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, during and after: what takes long holds up nobody else."""
    seen: dict[str, int] = {}
    for stage in ("before", "during", "after"):
        judge = getattr(ValidAndSure, stage)

        def watched(*args: Any, stage: str = stage, judge: Any = judge) -> Verdict:
            seen[stage] = threading.get_ident()
            verdict: Verdict = judge(*args)
            return verdict

        monkeypatch.setattr(ValidAndSure, stage, watched)
    async with served(gateway(small=ScriptedSmall(CALL))) as url:
        status, headers, _ = await post(url, ask(metadata={"note": "x" * OFFLOAD_BYTES}))
    assert (status, headers["x-smallcall-model"]) == (200, "small")
    assert set(seen) == {"before", "during", "after"}
    assert threading.get_ident() not in seen.values()


async def test_a_stream_that_breaks_ends_in_an_error_event(gateway: Make) -> None:
    """The client is told in the stream, and the row says what happened."""
    async with recorded(faults=always(Cut(chunks=2))) as upstream:
        app = gateway(large_base=upstream.url, large={"retries": 0})
        async with served(app) as url, aiohttp.ClientSession() as session:
            async with session.post(url + "/chat/completions", json=of(TALKING, stream=True)) as response:
                text = await response.text()
            assert "upstream_unavailable" in text
            assert "[DONE]" not in text
            assert (await app.services.ledger.page())[-1].error_code == "upstream_unavailable"


async def read(url: str, body: dict[str, Any]) -> str:
    async with aiohttp.ClientSession() as session, session.post(url + "/chat/completions", json=body) as response:
        return await response.text()


async def leave(url: str, body: dict[str, Any], after_s: float = 0.2) -> None:
    """Ask, and hang up after a while whatever came."""
    async with aiohttp.ClientSession() as session:

        async def asking() -> None:
            async with session.post(url + "/chat/completions", json=body) as response:
                await response.read()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking(), after_s)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_cancels_the_draft_and_keeps_its_row(gateway: Make, streamed: bool) -> None:
    """The slot is freed at once and the row says that the client left."""
    small, large = ScriptedSmall(CALL, pause_s=0.05), Scripted()
    app = gateway(small=small, upstream=large)
    async with served(app) as url:
        await leave(url, ask(stream=streamed))
        (row,) = await rows_of(app, 1)
    assert small.cancelled == 1
    assert small.written < len(CALL)
    assert large.asked == 0
    assert (row.client_disconnected, row.status, row.side) == (True, 499, "none")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_cancels_the_upstream_call_and_keeps_its_row(gateway: Make, streamed: bool) -> None:
    """Before the first byte and in mid-stream; the connection to the provider is closed."""
    large = Scripted(pause_s=0.1, chunks=50) if streamed else Scripted(pause_s=30)
    app = gateway(upstream=large)
    async with served(app) as url:
        await leave(url, ask(stream=streamed))
        (row,) = await rows_of(app, 1)
        assert "smallcall_inflight 0.0" in await metrics(url)
    assert (large.closed if streamed else large.cancelled) == 1
    assert (row.client_disconnected, row.status, row.side) == (True, 499, "large")


async def metrics(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url.removesuffix("/v1") + "/metrics") as response:
        return await response.text()


class Lost(Ledger):
    """A ledger whose disk is full."""

    async def write(self, row: Any, large_calls: Any = ()) -> None:
        raise LedgerUnavailableError("disk full")


@pytest.mark.parametrize("chars", [1, 200_000])
async def test_a_row_names_its_request_and_tools_by_their_sorted_json(gateway: Make, chars: int) -> None:
    """Small bodies and those that are digested beside the event loop alike."""
    body = ask(messages=[{"role": "user", "content": "x" * chars}])
    app = gateway(small=ScriptedSmall(CALL))
    async with served(app) as url:
        await post(url, body)
        (row,) = await rows_of(app, 1)
    told = [hashlib.sha256(orjson.dumps(part, option=orjson.OPT_SORT_KEYS)) for part in (body, body["tools"])]
    assert [row.request_sha256, row.tools_sha256] == [digest.hexdigest() for digest in told]


@pytest.mark.parametrize("side", ["small", "large"])
async def test_no_answer_goes_out_without_its_row(gateway: Make, side: str) -> None:
    """Where the ledger cannot commit, the client gets an error; a stream gets no finish and no `[DONE]`."""
    app = gateway(small=ScriptedSmall(CALL) if side == "small" else None, upstream=Scripted())
    async with served(app) as url:
        app.services.ledger.__class__ = Lost
        try:
            status, _, body = await post(url, ask())
            assert (status, body["error"]["code"]) == (503, "ledger_unavailable")
            text = await read(url, ask(stream=True))
            assert "ledger_unavailable" in text
            assert "[DONE]" not in text
            assert '"finish_reason":"' not in text
        finally:
            app.services.ledger.__class__ = Ledger


async def test_the_end_of_a_stream_is_told_after_its_row(gateway: Make) -> None:
    """When the client reads a finish reason, the row can already be read."""
    app = gateway(upstream=Scripted())
    async with (
        served(app) as url,
        aiohttp.ClientSession() as session,
        session.post(url + "/chat/completions", json=ask(stream=True)) as response,
    ):
        seen = b""
        while b'"finish_reason":"stop"' not in seen:
            seen += await response.content.readany()
        row = await app.services.ledger.get(response.headers["x-smallcall-decision-id"])
    assert (row.side, row.status, row.streamed) == ("large", 200, True)


class Opening(Scripted):
    """Begins with a chunk without choices, as Azure does, and goes on when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    async def __aiter__(self) -> Any:
        yield {"id": "x", "choices": [], "prompt_filter_results": []}
        yield {"id": "x", "choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
        await self.go_on.wait()
        yield {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


async def test_a_chunk_without_choices_does_not_hold_up_the_stream(gateway: Make) -> None:
    """What follows it is sent as it comes."""
    large = Opening()
    async with (
        served(gateway(upstream=large)) as url,
        aiohttp.ClientSession() as session,
        session.post(url + "/chat/completions", json=ask(stream=True)) as response,
    ):
        seen = b""
        async with asyncio.timeout(5):
            while b"word" not in seen:
                seen += await response.content.readany()
        large.go_on.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")


class Faulty(Scripted):
    """Fails in the middle of a stream in a way that nobody foresaw."""

    async def __aiter__(self) -> Any:
        yield {"id": "x", "choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
        raise KeyError("Paris?")


async def test_a_fault_of_ours_in_mid_stream_is_told_and_recorded_as_ours(gateway: Make) -> None:
    """An error event, no `[DONE]`, a row of status 500 that blames no client, and nothing of the prompt."""
    app = gateway(upstream=Faulty())
    async with served(app) as url:
        text = await read(url, ask(stream=True))
        (row,) = await rows_of(app, 1)
    assert '"internal_error"' in text
    assert "[DONE]" not in text
    assert "Paris" not in text
    assert (row.status, row.error_code, row.client_disconnected) == (500, "internal_error", False)


class Broken:
    """A part of the gateway that fails in a way that nobody foresaw."""

    def see(self, chat: Any, owner: str | None) -> None:
        raise KeyError("Paris?")


@pytest.mark.parametrize("path", ["/chat/completions", "/messages", "/responses"])
async def test_a_fault_of_ours_before_the_answer_is_told_in_the_dialect(gateway: Make, path: str) -> None:
    """500 with an error object, nothing of the prompt, and the slot is free again."""
    app = gateway(upstream=Scripted(), server={"max_inflight": 1})
    body = {**ask(tools=[]), "max_tokens": 10, "input": "Paris?"}
    async with served(app) as url, aiohttp.ClientSession() as session:
        app.services.outcomes, kept = Broken(), app.services.outcomes
        for _ in range(2):
            async with session.post(url + path, json=body) as response:
                text = await response.text()
                assert (response.status, response.content_type) == (500, "application/json")
            assert json.loads(text)["error"]["message"]
            assert "Paris" not in text
        app.services.outcomes = kept
        assert (await post(url, ask()))[0] == 200


async def test_more_requests_than_allowed_are_asked_to_come_again(gateway: Make) -> None:
    """503 with Retry-After; when one is done, the next is let in."""
    app = gateway(upstream=Scripted(pause_s=0.3), server={"max_inflight": 1})
    async with served(app) as url:
        first = asyncio.create_task(post(url, ask()))
        await asyncio.sleep(0.1)
        status, headers, body = await post(url, ask())
        assert (status, headers["Retry-After"], body["error"]["code"]) == (503, "1", "overloaded")
        assert (await first)[0] == 200
        assert (await post(url, ask()))[0] == 200


async def test_bodies_are_counted_by_their_bytes(gateway: Make) -> None:
    """While two bodies of a megabyte are under way, or on their way, a third gets a 503 and a small one is served."""
    app = gateway(
        small=ScriptedSmall(CALL),
        upstream=Scripted(),
        server={"max_body_mb": 1.5},
        constants=Constants(max_inflight_mb=2.5),
    )
    padded = orjson.dumps(ask()) + b" " * 1_100_000
    async with served(app) as url:
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        writers = []
        for _ in range(2):
            _, writer = await asyncio.open_connection(host, int(port))
            told = f"host: 127.0.0.1\r\ncontent-length: {len(padded)}\r\n\r\n"
            writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{told}".encode() + padded[:-1])
            writers.append(writer)
        for writer in writers:
            await writer.drain()
        await asyncio.sleep(0.3)
        status, headers, body = await post(url, padded)
        assert (status, headers["Retry-After"], body["error"]["code"]) == (503, "1", "overloaded")
        assert (await post(url, ask()))[0] == 200
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.3)
        assert (await post(url, padded))[0] == 200


async def test_without_keys_only_this_machine_is_answered(gateway: Make) -> None:
    """A page of another origin, or one whose name was made to lead here, spends nothing and reads nothing."""
    large = Scripted()
    async with served(gateway(small=ScriptedSmall(CALL), upstream=large)) as url, aiohttp.ClientSession() as session:

        async def asked(method: str, path: str, **headers: str) -> tuple[int, str]:
            async with session.request(method, path, data=orjson.dumps(ask()), headers=headers) as response:
                return response.status, await response.text()

        pages = [{"origin": "https://evil.example"}, {"origin": "null"}, {"host": "evil.example:8080"},
                 {"host": "127.0.0.1.evil.example"}, {"origin": "http://localhost.evil.example"}]  # fmt: skip
        metrics = url.removesuffix("/v1") + "/metrics"
        for page in pages:
            for path in ("/chat/completions", "/messages", "/responses", "/messages/count_tokens", "/feedback"):
                status, text = await asked("POST", url + path, **{"content-type": "text/plain", **page})
                assert (status, json.loads(text)["error"]["code"]) in ((403, "foreign_origin"), (403, "foreign_host"))
            assert (await asked("GET", url + "/models", **page))[0] == 403
            assert (await asked("GET", metrics, **page))[0] == 403
        for own in ({}, {"host": "localhost:1"}, {"host": "[::1]"}, {"origin": "http://localhost:3000"}):
            assert (await asked("POST", url + "/chat/completions", **own))[0] == 200
            assert (await asked("GET", metrics, **own))[0] == 200
    assert large.asked == 0


async def test_unknown_paths_and_methods_get_openais_error_shape(gateway: Make) -> None:
    """404 and 405 are JSON with an error object."""
    async with served(gateway()) as url, aiohttp.ClientSession() as session:
        for path, status, code in (("/nothing", 404, "unknown_url"), ("/chat/completions", 405, "method_not_allowed")):
            async with session.get(url + path) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (status, code)


async def test_an_agent_goes_on_from_a_small_answer_to_a_large_one(gateway: Make) -> None:
    """The official client's loop: the minted call id comes back with the tool's result, and the large model gets it."""
    small = ScriptedSmall(CALL)
    turns: list[Any] = [{"role": "user", "content": "Paris?"}]
    async with (
        served(gateway(small=small, upstream=Scripted())) as url,
        openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client,
    ):
        tools: Any = [TOOL]
        first = await client.chat.completions.create(model="gpt-4o", messages=turns, tools=tools)
        message = first.choices[0].message
        (call,) = message.tool_calls or []
        turns += [
            message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
        ]
        small.text = "Thought: none\nAction: none"
        second = await client.chat.completions.create(model="gpt-4o", messages=turns, tools=tools)
    assert second.choices[0].message.content == "word word word "
    assert small.commands[1].messages[1]["tool_calls"][0]["id"] == call.id


async def test_logs_hold_no_prompt_and_no_secret(gateway: Make) -> None:
    """Ids, reasons and counts only."""
    stream = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(stream), cache_logger_on_first_use=False)
    async with recorded() as upstream, served(gateway(small=ScriptedSmall(CALL), large_base=upstream.url)) as url:
        await post(url, ask(messages=[{"role": "user", "content": "my password is hunter2"}]))
        await post(url, of(CALLING, model="smallcall/large"))
    structlog.reset_defaults()
    assert "decided" in stream.getvalue()
    for secret in ("hunter2", "sk-secret", "Paris"):
        assert secret not in stream.getvalue()


async def test_the_other_endpoints_tell_the_state(gateway: Make) -> None:
    """Models, health, readiness and metrics."""
    async with served(gateway(small=ScriptedSmall(CALL))) as url, aiohttp.ClientSession() as session:
        await post(url, ask())
        root = url.removesuffix("/v1")
        async with session.get(url + "/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["smallcall", "smallcall/small"]
        async with session.get(root + "/healthz") as response:
            assert response.status == 200
        async with session.get(root + "/readyz") as response:
            assert await response.json() == {"ledger": True, "small": True, "certificates": "uncertified"}
        async with session.get(root + "/metrics") as response:
            text = await response.text()
        counted = 'smallcall_decisions_total{reason="accepted",side="small",stage="after",status="200"} 1.0'
        assert counted in text
        assert "smallcall_inflight 0.0" in text


async def test_a_model_can_be_looked_up_by_its_name(gateway: Make) -> None:
    """As the official client does; any name may be asked with, but for a side that there is not."""
    async with served(gateway(small=ScriptedSmall(CALL))) as url, aiohttp.ClientSession() as session:
        client = openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
        for name in ("smallcall", "smallcall/small", "gpt-4o", "accounts/some/models/x"):
            assert (await client.models.retrieve(name)).id == name
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("smallcall/large")
        await client.close()
        anthropics = {"anthropic-version": "2023-06-01"}
        async with session.get(url + "/models/claude-x", headers=anthropics) as response:
            found = await response.json()
        async with session.get(url + "/models/smallcall/large", headers=anthropics) as response:
            missing = await response.json()
    assert caught.value.code == "model_not_found"
    assert (found["type"], found["id"], found["display_name"]) == ("model", "claude-x", "claude-x")
    assert (missing["type"], missing["error"]["type"]) == ("error", "not_found_error")


async def test_content_is_stored_only_when_asked_for(gateway: Make) -> None:
    """With `ledger.store_content` the row holds request and answer."""
    app = gateway(small=ScriptedSmall(CALL), ledger={"store_content": True})
    async with served(app) as url:
        await post(url, ask())
        (row,) = await app.services.ledger.page()
    assert row.content["request"]["messages"][0]["content"] == "Paris?"
    assert row.content["answer"]["choices"][0]["finish_reason"] == "tool_calls"
