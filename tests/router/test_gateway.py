"""The gateway through HTTP: drafts, verdicts, escalation, errors, rows."""

import asyncio
import contextlib
import io
import json
import time
from typing import Any

import aiohttp
import openai
import orjson
import pytest
import structlog

from evaluation.demo.rows import load_demo
from evaluation.faults import Cut, Garbage, Status, always, in_turn
from evaluation.recorded import RecordedServer
from router.local import SmallModelError
from tests.router.conftest import Make, ScriptedSmall, served

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
        row = await app.state.ledger.get(decision_id)
        assert (row.side, row.reason, row.outcome, row.small_completion_tokens) == (
            "small",
            "accepted",
            "calls",
            len(TWO),
        )
        assert row.content is None


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
        (ScriptedSmall("", error=SmallModelError("worker_unavailable", "away")), {}, "worker_unavailable"),
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
            (kept,) = await app.state.ledger.page()
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
        assert await app.state.ledger.count() == 4


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
        (ask(tools=[{"type": "function", "function": {"name": "a b"}}]), 400, "tools[0].function.name"),
        (ask(tools=[TOOL, TOOL]), 400, "tools"),
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
    """What cannot be judged is not drafted: 503 without a large model, 400 when pinned small, soon."""
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    small = ScriptedSmall(CALL)
    began = time.monotonic()
    async with served(gateway(small=small)) as url:
        status, _, _ = await post(url, ask(tools=[tool]))
        assert status == 503
        status, _, body = await post(url, ask(tools=[tool], model="smallcall/small"))
        assert (status, body["error"]["code"]) == (400, "schema_unsupported")
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
    for fault, expected, retries in (
        (Status(500), 502, 0),
        (Status(429), 429, 0),
        (Status(422), 422, 2),
        (Garbage(), 502, 0),
    ):
        async with recorded(faults=always(fault)) as upstream:
            app = gateway(large_base=upstream.url, large={"retries": retries})
            async with served(app) as url:
                status, _, body = await post(url, of(CALLING))
                assert status == expected
                assert body["error"]["code"].startswith("upstream_")
                assert "sk-secret" not in str(body)
                assert upstream.url not in str(body)
                assert upstream.totals["requests"] == 1
                assert (await app.state.ledger.page())[-1].status == expected


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


async def test_a_stream_that_breaks_ends_in_an_error_event(gateway: Make) -> None:
    """The client is told in the stream, and the row says what happened."""
    async with recorded(faults=always(Cut(chunks=2))) as upstream:
        app = gateway(large_base=upstream.url, large={"retries": 0})
        async with served(app) as url, aiohttp.ClientSession() as session:
            async with session.post(url + "/chat/completions", json=of(TALKING, stream=True)) as response:
                text = await response.text()
            assert "upstream_unavailable" in text
            assert "[DONE]" not in text
            assert (await app.state.ledger.page())[-1].error_code == "upstream_unavailable"


async def test_a_client_that_leaves_cancels_the_draft_and_keeps_its_row(gateway: Make) -> None:
    """The slot is freed at once and the row says that the client left."""
    small = ScriptedSmall(CALL, pause_s=0.05)
    app = gateway(small=small)
    async with served(app) as url:
        timeout = aiohttp.ClientTimeout(total=0.3)
        with contextlib.suppress(TimeoutError):
            async with aiohttp.ClientSession(timeout=timeout) as session:
                await session.post(url + "/chat/completions", json=ask())
        for _ in range(100):
            if await app.state.ledger.count():
                break
            await asyncio.sleep(0.02)
        (row,) = await app.state.ledger.page()
    assert small.cancelled == 1
    assert small.written < len(CALL)
    assert row.client_disconnected


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
            assert await response.json() == {"ledger": True, "small": True}
        async with session.get(root + "/metrics") as response:
            assert 'smallcall_decisions_total{reason="accepted",side="small",status="200"} 1.0' in await response.text()


async def test_content_is_stored_only_when_asked_for(gateway: Make) -> None:
    """With `ledger.store_content` the row holds request and answer."""
    app = gateway(small=ScriptedSmall(CALL), ledger={"store_content": True})
    async with served(app) as url:
        await post(url, ask())
        (row,) = await app.state.ledger.page()
    assert row.content["request"]["messages"][0]["content"] == "Paris?"
    assert row.content["answer"]["choices"][0]["finish_reason"] == "tool_calls"
