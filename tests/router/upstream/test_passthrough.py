"""The pass-through: bodies that go on as they came, usage read on the way, faults as behind litellm."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from evaluation.recorded.faults import Cut, Disconnect, Fault, Garbage, Hang, Status, always
from router.settings import Large, Settings, SettingsError, load_settings
from router.upstream.passthrough import spoken
from tests.router.cascade.test_gateway import CALL, CALLING, TALKING, leave, of, post, recorded, rows_of, stream
from tests.router.conftest import Make, ScriptedSmall, served

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Provider:
    """A provider of one's own: answers every path with `answer`, bytes or pieces of an event stream, pauses in seconds
    or until an event among them."""

    def __init__(self, *answer: bytes | float | asyncio.Event, status: int = 200) -> None:
        self.answer, self.status = answer, status
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.left = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", self._serve)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.asked.append((request.path, {key.lower(): value for key, value in request.headers.items()}, body))
        streamed = orjson.loads(body).get("stream")
        kind = "text/event-stream" if streamed else "application/json"
        response = web.StreamResponse(status=self.status, headers={"content-type": kind})
        await response.prepare(request)
        try:
            for piece in self.answer:
                if isinstance(piece, bytes):
                    await response.write(piece)
                elif isinstance(piece, asyncio.Event):
                    await piece.wait()
                else:
                    await asyncio.sleep(piece)
        except asyncio.CancelledError:
            self.left.set()
            raise
        await response.write_eof()
        return response


def large(model: str, url: str, **settings: Any) -> dict[str, Any]:
    return {"model": model, "api_base": url, "api_key": "sk-secret-of-the-gateway", "retries": 0, **settings}


async def send(url: str, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any], str]:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    async with aiohttp.ClientSession() as session, session.post(url + path, data=data, headers=headers) as response:
        return response.status, dict(response.headers), await response.text()


CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi", "new": 1.50}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 40}},
    "system_fingerprint": "fp",
}


async def test_a_body_goes_on_byte_for_byte_but_for_the_models_name(gateway: Make) -> None:
    """Spaces, escapes, order, numbers and unknown fields stay; our extension does not go."""
    provider = Provider(orjson.dumps(CHAT))
    raw = (
        rb'{"tools": [ {"type":"function", "function": {"name":"z_\u0061", "parameters": {"b":1.50, "a":1e3}}} ], '
        rb'"new_field": {"x":  123456789012345678901234567890}, "model": "smallcall/large", '
        rb'"messages": [{"role":"user","content":"h\u00e9 \/"}], "smallcall": {"include": ["decision"]}}'
    )
    async with provider.running() as base:
        app = gateway(large=large("openai/gpt-4o-2024-08-06", base))
        async with served(app) as url:
            status, headers, text = await send(url, "/chat/completions", raw)
            (row,) = await app.services.ledger.page()
    ((path, sent, body),) = provider.asked
    assert (status, path) == (200, "/v1/chat/completions")
    assert sent["authorization"] == "Bearer sk-secret-of-the-gateway"
    keys = [b"tools", b"new_field", b"model", b"messages"]
    assert sorted(keys, key=lambda key: body.index(b'"' + key + b'"')) == keys
    assert b'"model":"gpt-4o-2024-08-06"' in body
    assert b"smallcall" not in body
    for value in (
        rb'[ {"type":"function", "function": {"name":"z_\u0061", "parameters": {"b":1.50, "a":1e3}}} ]',
        rb'{"x":  123456789012345678901234567890}',
        rb'[{"role":"user","content":"h\u00e9 \/"}]',
    ):
        assert value in raw
        assert value in body
    told = json.loads(text)
    assert told.pop("smallcall")["cost_usd"] == pytest.approx(60 * 2.5e-6 + 40 * 1.25e-6 + 10 * 1e-5)
    assert told == {**CHAT, "model": "smallcall/large"}
    assert (row.large_prompt_tokens, row.large_cached_tokens, row.large_completion_tokens) == (100, 40, 10)
    assert headers["x-smallcall-model"] == "large"


async def test_a_streams_usage_is_read_and_told_only_where_asked_for(gateway: Make) -> None:
    """Usage is always asked for; the client's other stream options stay."""
    async with recorded() as upstream:
        app = gateway(large_base=upstream.url)
        async with served(app) as url:
            _, events = await stream(url, of(CALLING, stream=True, stream_options={"include_obfuscation": False}))
            assert all(event["choices"] for event in events)
            assert {event["model"] for event in events} == {"gpt-4o"}
            seen = upstream.received[-1].body or {}
            assert seen["stream_options"] == {"include_obfuscation": False, "include_usage": True}
            options = {"include_usage": True}
            told = of(CALLING, stream=True, stream_options=options, smallcall={"include": ["decision"]})
            _, events = await stream(url, told)
            assert events[-1]["usage"]["prompt_tokens"] == CALLING.recorded.input_tokens
            assert events[-1]["smallcall"]["side"] == "large"
            rows = await app.services.ledger.page()
            assert {row.large_prompt_tokens for row in rows} == {CALLING.recorded.input_tokens}
            assert all(row.large_cost_nusd for row in rows)


@pytest.mark.parametrize(
    ("fault", "status", "code", "asked"),
    [
        (Status(500), 502, "upstream_unavailable", 2),
        (Disconnect(), 502, "upstream_unavailable", 2),
        (Garbage(), 502, "upstream_unavailable", 2),
        (Hang(30), 504, "upstream_timeout", 2),
        (Status(429, retry_after_s=0.1), 429, "rate_limit_exceeded", 2),
        (Status(429, retry_after_s=60), 429, "rate_limit_exceeded", 1),
        (Status(401), 502, "upstream_auth", 1),
        (Status(422), 422, "injected_fault", 1),
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_faults_are_those_of_the_other_way(
    gateway: Make, fault: Fault, status: int, code: str, asked: int, streamed: bool
) -> None:
    """The same errors, tries and rows as behind litellm."""
    async with recorded(faults=always(fault)) as upstream:
        app = gateway(large_base=upstream.url, large={"retries": 1, "timeout_s": 0.5})
        async with served(app) as url:
            got, _, body = await post(url, of(CALLING, stream=streamed))
            assert (got, body["error"]["code"], upstream.totals["requests"]) == (status, code, asked)
            (row,) = await app.services.ledger.page()
            assert (row.status, row.error_code, row.large_model) == (status, code, "openai/gpt-4o-2024-08-06")


@pytest.mark.parametrize(("status", "told"), [(503, "0.4"), (503, "60"), (529, "60"), (500, "60")])
async def test_what_a_provider_says_of_coming_again_is_passed_on(gateway: Make, status: int, told: str) -> None:
    """In whole seconds and never too few; an overloaded provider is told as such, in each dialect's own words."""

    async def overloaded(request: web.Request) -> web.Response:
        kind = "api_error" if status == 500 else "overloaded_error"
        error = {"type": "error", "error": {"type": kind, "message": "No"}}
        return web.json_response(error, status=status, headers={"retry-after": told})

    async with answering(overloaded) as base:
        settings = large("openai/gpt-4o", base, forward=["chat_completions", "messages"], retries=1)
        async with served(gateway(large=settings)) as url:
            got, headers, text = await send(url, "/chat/completions", of(CALLING))
            theirs, _, message = await send(url, "/messages", ask_messages(tools=[]))
    overload = status in (503, 529)
    assert (got, headers["Retry-After"]) == (503 if overload else 502, "1" if told == "0.4" else told)
    assert json.loads(text)["error"]["code"] == ("server_is_overloaded" if overload else "upstream_unavailable")
    assert theirs == (529 if overload else 502)
    assert json.loads(message)["error"]["type"] == ("overloaded_error" if overload else "api_error")


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """A provider that answers every path so."""
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def test_a_provider_that_quotes_our_key_is_not_quoted(gateway: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the environment is masked as one of the settings is, wherever in the error it stands."""
    key = "sk_from_the_environment"
    monkeypatch.setenv("OPENAI_API_KEY", key)

    async def quoting(request: web.Request) -> web.Response:
        shown = request.headers["authorization"].removeprefix("Bearer ")
        return web.json_response(
            {"error": {"message": f"{shown} may not do this", "code": shown, "param": shown}}, status=400
        )

    async with answering(quoting) as base:
        settings = {"model": "openai/gpt-4o", "api_base": base, "retries": 0}
        async with served(gateway(large=settings)) as url:
            status, _, text = await send(url, "/chat/completions", of(CALLING))
    assert (status, json.loads(text)["error"]["code"]) == (400, "upstream_rejected")
    assert "may not do this" in text
    assert key not in text


async def test_a_cut_answer_is_no_answer(gateway: Make) -> None:
    """Whole: tried again, then 502. Streamed: what came, and an error event in the place of an end."""
    async with recorded(faults=always(Cut(2))) as upstream:
        app = gateway(large_base=upstream.url, large={"retries": 1})
        async with served(app) as url:
            status, _, body = await post(url, of(TALKING))
            assert (status, body["error"]["code"]) == (502, "upstream_unavailable")
            _, _, text = await send(url, "/chat/completions", of(TALKING, stream=True))
            assert "[DONE]" not in text
            assert json.loads(text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "upstream_unavailable"
            assert {row.status for row in await app.services.ledger.page()} == {502}


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)


MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 10,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 100,
        "output_tokens": 20,
    },
}
STARTED = {**MESSAGE, "content": [], "stop_reason": None, "usage": {**MESSAGE["usage"], "output_tokens": 1}}
MESSAGE_EVENTS = [
    {"type": "message_start", "message": STARTED},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {**MESSAGE["content"][0], "input": {}}},
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "input_json_delta", "partial_json": '{"city": "Paris"}'},
    },
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 20}},
    {"type": "message_stop"},
]
CLAUDE_USD = 10 * 3e-6 + 1000 * 0.3e-6 + 100 * 3.75e-6 + 20 * 15e-6


def ask_messages(**changes: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": "Paris?"}
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    return {"model": "claude-x", "max_tokens": 100, "messages": [turn], "tools": [tool], **changes}


async def test_messages_go_to_a_provider_that_speaks_them(gateway: Make) -> None:
    """The provider's own tools, its headers, its cache's prices; whole and streamed, under the client's model name."""
    provider = Provider(orjson.dumps(MESSAGE))
    async with provider.running() as base:
        app = gateway(large=large("anthropic/claude-sonnet-4-5", base.removesuffix("/v1")))
        async with served(app) as url:
            beta = {"anthropic-beta": "x-2025", "x-api-key": "the client's"}
            status, _, text = await send(url, "/messages", ask_messages(), **beta)
            assert (status, json.loads(text)) == (200, {**MESSAGE, "model": "claude-x"})
            provider.answer = (sse(*MESSAGE_EVENTS),)
            _, _, text = await send(url, "/messages", ask_messages(stream=True, smallcall={"include": ["decision"]}))
            rows = await app.services.ledger.page()
    path, sent, body = provider.asked[0]
    assert (path, sent["x-api-key"], sent["anthropic-beta"]) == ("/v1/messages", "sk-secret-of-the-gateway", "x-2025")
    assert sent["anthropic-version"] == "2023-06-01"
    assert json.loads(body) == ask_messages(model="claude-sonnet-4-5")
    events = [json.loads(block.split("\ndata: ")[1]) for block in text.split("\n\n")[:-1]]
    assert events[-2].pop("smallcall")["side"] == "large"
    renamed = {"type": "message_start", "message": {**STARTED, "model": "claude-x"}}
    assert events == [renamed, *MESSAGE_EVENTS[1:]]
    for row in rows:
        assert (row.large_prompt_tokens, row.large_cached_tokens, row.large_completion_tokens) == (1110, 1000, 20)
        assert row.large_cost_nusd == round(CLAUDE_USD * 1e9)
        assert row.reason == "tool_type"


WRITTEN = {
    **MESSAGE["usage"],
    "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60},
    "server_tool_use": {"web_search_requests": 2},
}
WRITTEN_EVENTS = [
    {"type": "message_start", "message": {**STARTED, "usage": {**WRITTEN, "output_tokens": 1}}},
    *MESSAGE_EVENTS[1:-2],
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": WRITTEN},
    MESSAGE_EVENTS[-1],
]
PRICE = {
    "input_usd_per_mtok": 2,
    "output_usd_per_mtok": 10,
    "cached_input_usd_per_mtok": 1,
    "cache_write_usd_per_mtok": 3,
}
PRICED = [
    (PRICE, 10 * 2 + 1000 * 1 + 100 * 3 + 20 * 10),
    ({"input_usd_per_mtok": 2, "output_usd_per_mtok": 10}, 1110 * 2 + 20 * 10),
    (None, 10 * 3 + 1000 * 0.3 + 40 * 3.75 + 60 * 6 + 20 * 15 + 2 * 0.01 * 1e6),
]


async def test_cache_writes_and_searches_cost_what_the_provider_charges(gateway: Make) -> None:
    """Off its own bodies, whole and streamed: tokens kept for five minutes, tokens kept for an hour."""
    for price, expected in PRICED:
        provider = Provider(orjson.dumps({**MESSAGE, "usage": WRITTEN}))
        async with provider.running() as base:
            told = large("anthropic/claude-sonnet-4-5", base.removesuffix("/v1"), price=price)
            app = gateway(large=told)
            async with served(app) as url:
                assert (await send(url, "/messages", ask_messages()))[0] == 200
                provider.answer = (sse(*WRITTEN_EVENTS),)
                await send(url, "/messages", ask_messages(stream=True))
                rows = (await app.services.ledger.page())[-2:]
        assert [row.large_prompt_tokens for row in rows] == [1110, 1110]
        assert [row.large_cost_nusd for row in rows] == pytest.approx([expected * 1000] * 2, abs=1)


async def test_an_error_in_mid_stream_is_told_once(gateway: Make) -> None:
    """A provider's own error event becomes ours; a stream without its end does not look whole."""
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded at http://x/y"}}
    broken = (sse(*MESSAGE_EVENTS[:3], overloaded), 529, "server_is_overloaded")
    for answer, status, code in (broken, (sse(*MESSAGE_EVENTS[:-1]), 502, "upstream_unavailable")):
        provider = Provider(answer)
        async with provider.running() as base:
            app = gateway(large=large("anthropic/claude-sonnet-4-5", base))
            async with served(app) as url:
                _, _, text = await send(url, "/messages", ask_messages(stream=True))
                row = (await app.services.ledger.page())[-1]
        last = json.loads(text.split("\n\n")[-2].split("\ndata: ")[1])
        assert (last["type"], last["error"]["code"]) == ("error", code)
        assert text.count("event: error") == 1
        assert "http" not in text
        assert row.status == status


RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "gpt-4o-2024-08-06",
    "output": [{"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "x", "arguments": "{}"}],
    "usage": {"input_tokens": 50, "input_tokens_details": {"cached_tokens": 20}, "output_tokens": 5},
}
RESPONSE_EVENTS = [
    {"type": "response.created", "response": {**RESPONSE, "output": [], "usage": None}, "sequence_number": 0},
    {"type": "response.output_item.done", "item": RESPONSE["output"][0], "output_index": 0, "sequence_number": 1},
    {"type": "response.completed", "response": RESPONSE, "sequence_number": 2},
]


async def test_responses_go_to_a_provider_that_speaks_them(gateway: Make) -> None:
    """Built-in tools too; usage and price; a failure in the stream is the response's own, and what it used is paid."""
    body = {"model": "gpt-x", "input": "Hi", "tools": [{"type": "web_search"}]}
    provider = Provider(orjson.dumps(RESPONSE))
    async with provider.running() as base:
        settings = large("openai/gpt-4o-2024-08-06", base, forward=["responses"])
        app = gateway(large=settings)
        async with served(app) as url:
            status, _, text = await send(url, "/responses", body)
            assert (status, json.loads(text)) == (200, {**RESPONSE, "model": "gpt-x"})
            provider.answer = (sse(*RESPONSE_EVENTS),)
            _, _, text = await send(url, "/responses", {**body, "stream": True})
            events = [json.loads(block.split("\ndata: ")[1]) for block in text.split("\n\n")[:-1]]
            assert [event["sequence_number"] for event in events] == [0, 1, 2]
            assert events[-1]["response"] == {**RESPONSE, "model": "gpt-x"}
            used = {"input_tokens": 50, "output_tokens": 5}
            failure = {"id": "resp_1", "error": {"message": "no, by http://x/y"}, "usage": used}
            failed = {"type": "response.failed", "response": failure, "sequence_number": 2}
            provider.answer = (sse(*RESPONSE_EVENTS[:2], failed),)
            _, _, text = await send(url, "/responses", {**body, "stream": True})
            last = json.loads(text.split("\n\n")[-2].split("\ndata: ")[1])
            assert (last["type"], last["sequence_number"]) == ("response.failed", 2)
            told = last["response"]
            assert (told["id"], told["model"], told["status"]) == ("resp_1", "gpt-x", "failed")
            assert told["error"]["code"] == "upstream_unavailable"
            assert "http" not in text
            rows = await app.services.ledger.page()
    assert provider.asked[0][0] == "/v1/responses"
    dollars = 30 * 2.5e-6 + 20 * 1.25e-6 + 5 * 1e-5
    assert sorted((row.status, row.large_cost_nusd or 0) for row in rows) == [
        (200, round(dollars * 1e9)),
        (200, round(dollars * 1e9)),
        (502, round((50 * 2.5e-6 + 5 * 1e-5) * 1e9)),
    ]


@pytest.mark.parametrize(
    "stored",
    [
        {"previous_response_id": "resp_" + "0a" * 25},
        {"conversation": {"id": "conv_1"}},
        {"prompt": {"id": "pmpt_1"}, "input": None},
        {"input": [{"type": "item_reference", "id": "fc_" + "0a" * 25}]},
    ],
)
async def test_what_a_provider_stored_is_its_own_to_honour(gateway: Make, stored: dict[str, Any]) -> None:
    """It goes on as it came, without a draft; the ids of our own answers do not."""
    body = {"model": "gpt-x", "input": "Hi", "tools": [{"type": "function", "name": "f", "parameters": {}}], **stored}
    provider, small = Provider(orjson.dumps(RESPONSE)), ScriptedSmall(CALL)
    async with provider.running() as base:
        settings = large("openai/gpt-4o-2024-08-06", base, forward=["responses"])
        async with served(gateway(small=small, large=settings)) as url:
            status, headers, text = await send(url, "/responses", body)
            assert (status, headers["x-smallcall-reason"]) == (200, "stored_state")
            assert json.loads(text)["id"] == "resp_1"
            own = f"resp_{headers['x-smallcall-decision-id']}"
            status, _, text = await send(url, "/responses", {**body, "previous_response_id": own})
            assert (status, json.loads(text)["error"]["param"]) == (400, "previous_response_id")
    assert json.loads(provider.asked[0][2]) == {**body, "model": "gpt-4o-2024-08-06"}
    assert (len(provider.asked), small.commands) == (1, [])


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_closes_the_providers_connection(gateway: Make, streamed: bool) -> None:
    """What nobody reads any more is not paid for."""
    first = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}\n\n'
    provider = Provider(first, 30.0)
    async with provider.running() as base:
        app = gateway(large=large("openai/gpt-4o-2024-08-06", base))
        async with served(app) as url:
            async with asyncio.timeout(20):
                while not app.services.large.ready:  # noqa: ASYNC110 - litellm's import, for its prices
                    await asyncio.sleep(0.05)
            await leave(url, of(TALKING, stream=streamed), after_s=0.5)
            await asyncio.wait_for(provider.left.wait(), 5)
            (row,) = await rows_of(app, 1)
            assert row.client_disconnected


@pytest.mark.parametrize(
    ("settings", "dialects"),
    [
        ({"model": "openai/gpt-4o"}, {"chat_completions", "responses"}),
        ({"model": "openai/gpt-4o", "api_base": "http://x"}, {"chat_completions"}),
        ({"model": "openai/gpt-4o", "drop_params": True}, set()),
        ({"model": "openai/gpt-4o", "forward": []}, set()),
        ({"model": "anthropic/claude-x"}, {"messages"}),
        ({"model": "bedrock/claude-x"}, set()),
        ({"model": "gpt-4o"}, set()),
        ({"model": "vllm/x", "api_base": "http://x", "forward": ["responses"]}, {"responses"}),
    ],
)
def test_what_a_provider_speaks_follows_from_its_name_or_is_set(settings: dict[str, Any], dialects: set[str]) -> None:
    """litellm's other providers speak none of our dialects as far as we know."""
    assert spoken(Large.model_validate(settings)) == dialects


def test_forwarding_to_nowhere_is_refused() -> None:
    """A foreign provider's address is not known, and its key must not go to another."""
    with pytest.raises(SettingsError, match=r"large\.forward"):
        load_settings(None, {"SMALLCALL_LARGE__MODEL": "bedrock/x", "SMALLCALL_LARGE__FORWARD": '["messages"]'})
    assert Settings().large.forward is None


async def test_a_model_that_the_price_map_does_not_know_has_an_unknown_cost(gateway: Make) -> None:
    """litellm would say that it costs nothing."""
    provider = Provider(orjson.dumps(MESSAGE))
    async with provider.running() as base:
        app = gateway(large=large("anthropic/claude-of-tomorrow", base))
        async with served(app) as url:
            assert (await send(url, "/messages", ask_messages()))[0] == 200
            (row,) = await app.services.ledger.page()
    assert (row.large_prompt_tokens, row.large_cost_nusd) == (1110, None)


async def test_tokens_are_counted_by_the_provider_or_estimated(gateway: Make) -> None:
    """Anthropic's count is passed on; for another provider litellm's tokenizer estimates, and a header says so."""
    asked = {key: value for key, value in ask_messages(tools=[]).items() if key != "max_tokens"}
    provider = Provider(b'{"input_tokens": 14}')
    async with provider.running() as base:
        async with served(gateway(large=large("anthropic/claude-sonnet-4-5", base))) as url:
            status, headers, text = await send(url, "/messages/count_tokens", asked)
            assert (status, json.loads(text)) == (200, {"input_tokens": 14})
            assert "x-smallcall-token-count" not in headers
        assert provider.asked[0][0] == "/v1/messages/count_tokens"
        async with served(gateway(large=large("openai/gpt-4o", base))) as url:
            status, headers, text = await send(url, "/messages/count_tokens", asked)
            assert (status, headers["x-smallcall-token-count"]) == (200, "estimate")
            assert 3 < json.loads(text)["input_tokens"] < 30
            picture = {"type": "image", "source": {"type": "url", "url": f"{base}/picture.png"}}
            messages = [{"role": "user", "content": [picture, {"type": "text", "text": "?"}]}]
            status, _, text = await send(url, "/messages/count_tokens", {**asked, "messages": messages})
            assert (status, json.loads(text)["input_tokens"] > 50) == (200, True)
            nowhere = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": ""}}]}]
            for wrong in (
                {**asked, "messages": nowhere},
                {**asked, "tools": [{"name": "a", "input_schema": {"type": "object", "properties": {"a": 3}}}]},
            ):
                status, _, text = await send(url, "/messages/count_tokens", wrong)
                assert (status, json.loads(text)["error"]["code"]) == (400, "not_countable")
            long = {**asked, "messages": [{"role": "user", "content": "x " * 2_500_000}]}
            async with aiohttp.ClientSession() as session:
                body = io.BytesIO(orjson.dumps(long))
                async with session.post(url + "/messages/count_tokens", data=body) as response:
                    assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")
            status, _, text = await send(url, "/messages/count_tokens", {**asked, "messages": 3})
            assert (status, json.loads(text)["error"]["param"]) == (400, "messages")
    async with served(gateway()) as url:
        status, _, text = await send(url, "/messages/count_tokens", asked)
        assert (status, json.loads(text)["error"]["code"]) == (503, "large_not_configured")
