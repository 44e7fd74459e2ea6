"""Anthropic's Messages: what is read, how it is told to other providers, and what its clients get."""

import asyncio
import json
from typing import Any

import aiohttp
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.recorded.faults import Cut, Status, always
from router.constants import Constants
from router.dialects.errors import ClientError
from router.dialects.messages import read_request
from router.dialects.request import LargeOnlyRequest
from tests.router.cascade.test_gateway import CALL, CALLING, CITY, TALKING, TWO, Scripted, recorded, rows_of
from tests.router.conftest import Make, ScriptedSmall, served

# litellm's pydantic models have remarks of pydantic on them, which would break its streams as errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]

TOOL = {"name": "get_weather", "description": "Weather.", "input_schema": CITY}


def ask(**changes: Any) -> dict[str, Any]:
    turn = {"role": "user", "content": "Paris?"}
    return {"model": "claude-x", "max_tokens": 100, "messages": [turn], "tools": [TOOL], **changes}


def of(row: Any, **changes: Any) -> dict[str, Any]:
    """A recorded case in this dialect."""
    system = [turn["content"] for turn in row.case.messages if turn["role"] == "system"]
    turns = [turn for turn in row.case.messages if turn["role"] != "system"]
    functions = [tool["function"] for tool in row.case.tools]
    tools = [
        {"name": one["name"], "description": one.get("description", ""), "input_schema": one["parameters"]}
        for one in functions
    ]
    body = {"model": "claude-x", "max_tokens": 1000, "messages": turns, "tools": tools, **changes}
    return body | ({"system": "\n".join(system)} if system else {})


def read(body: Any, **headers: str) -> Any:
    return read_request(orjson.dumps(body), headers)


async def post(url: str, body: Any) -> tuple[int, dict[str, Any], Any]:
    async with aiohttp.ClientSession() as session, session.post(url + "/messages", json=body) as response:
        return response.status, dict(response.headers), await response.json()


async def leave_at(url: str, body: dict[str, Any], after_s: float = 0.2) -> None:
    """Ask, and hang up after a while whatever came."""
    async with aiohttp.ClientSession() as session:

        async def asking() -> None:
            async with session.post(url, json=body) as response:
                await response.read()

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asking(), after_s)


async def stream(url: str, body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Headers and events; each event's name is its type."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/messages", json={**body, "stream": True}) as response,
    ):
        assert response.content_type == "text/event-stream", await response.text()
        return dict(response.headers), events_of(await response.text())


def events_of(text: str) -> list[dict[str, Any]]:
    events = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def assembled(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream adds up to; asserts the order that Anthropic's documentation gives."""
    first, *middle, delta, stop = events
    assert (first["type"], delta["type"], stop) == ("message_start", "message_delta", {"type": "message_stop"})
    message = first["message"]
    blocks: list[dict[str, Any]] = []
    pieces, opened = "", False
    for event in middle:
        match event["type"]:
            case "content_block_start":
                assert not opened
                assert event["index"] == len(blocks)
                blocks.append(event["content_block"])
                opened, pieces = True, ""
            case "content_block_delta":
                assert opened
                assert event["index"] == len(blocks) - 1
                pieces += event["delta"].get("text") or event["delta"].get("partial_json") or ""
            case "content_block_stop":
                assert opened
                assert event["index"] == len(blocks) - 1
                opened = False
                if blocks[-1]["type"] == "text":
                    blocks[-1]["text"] = pieces
                else:
                    blocks[-1]["input"] = json.loads(pieces or "{}")
            case other:
                raise AssertionError(other)
    assert not opened
    return {**message, "content": blocks, **delta["delta"], "usage": delta["usage"]}


async def test_small_answers_have_anthropics_shape(gateway: Make) -> None:
    """Whole, key for key; the stream's events add up to the same message."""
    small = ScriptedSmall(TWO)
    app = gateway(small=small)
    async with served(app) as url:
        _, headers, whole = await post(url, ask())
        decision_id = headers["x-smallcall-decision-id"]
        calls = [("Paris", 0), ("Rome", 1)]
        assert whole == {
            "id": f"msg_{decision_id}",
            "type": "message",
            "role": "assistant",
            "model": "claude-x",
            "content": [
                {"type": "tool_use", "id": f"call_{decision_id}_{i}", "name": "get_weather", "input": {"city": city}}
                for city, i in calls
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {
                "input_tokens": 7,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": len(TWO),
            },
        }
        headers, events = await stream(url, ask())
        assert events[0]["message"]["usage"] == {**whole["usage"], "output_tokens": 0}
        streamed = assembled(events)
        other_id = headers["x-smallcall-decision-id"]
        assert json.loads(json.dumps(streamed).replace(other_id, decision_id)) == whole
        row = await app.services.ledger.get(decision_id)
        assert (row.dialect, row.side, row.n_tools, row.client_model) == ("messages", "small", 1, "claude-x")


async def test_large_answers_come_in_the_clients_dialect(gateway: Make) -> None:
    """Calls and prose of an OpenAI model, whole and streamed, with the provider's usage and our ids."""
    async with recorded() as upstream:
        app = gateway(large_base=upstream.url)
        async with served(app) as url:
            for row in (CALLING, TALKING):
                _, headers, whole = await post(url, of(row))
                assert headers["x-smallcall-model"] == "large", whole
                assert whole["model"] == "claude-x"
                given = row.recorded
                assert whole["usage"]["input_tokens"] == given.input_tokens
                assert whole["usage"]["output_tokens"] == given.output_tokens
                if given.calls:
                    made = [(block["name"], block["input"]) for block in whole["content"]]
                    assert made == [(call.name, json.loads(call.arguments_text)) for call in given.calls]
                    assert whole["stop_reason"] == "tool_use"
                else:
                    assert whole["content"] == [{"type": "text", "text": given.text}]
                    assert whole["stop_reason"] == "end_turn"
                _, events = await stream(url, of(row))
                assert events[-1]["type"] == "message_stop", events[-2:]
                estimated = events[0]["message"]["usage"]["input_tokens"]
                assert given.input_tokens / 2 < estimated < given.input_tokens * 3
                streamed = assembled(events)
                for key in ("content", "stop_reason", "usage", "model"):
                    one, other = streamed[key], whole[key]
                    if key == "content":
                        one, other = ([{**block, "id": ""} for block in blocks] for blocks in (one, other))
                    assert one == other
            assert {kept.large_cost_nusd for kept in await app.services.ledger.page()} != {None}


async def test_a_conversation_is_told_in_chat_completions() -> None:
    """System text, tool calls and results, an error among them; what only Anthropic's models know stays behind."""
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Paris"}},
                {"type": "tool_use", "id": "t2", "name": "get_weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "20 °C"}]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no city", "is_error": True},
                {"type": "text", "text": "And now?"},
            ],
        },
    ]
    request = read(
        ask(
            messages=turns,
            system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            stop_sequences=["x"],
            metadata={"user_id": "u"},
            top_k=3,
            thinking={"type": "enabled", "budget_tokens": 2000},
            service_tier="standard_only",
            temperature=0.5,
            new_field="x",
            smallcall={"include": ["decision"]},
        )
    )
    function = {"name": "get_weather", "description": "Weather.", "parameters": CITY}
    assert request.body == {
        "model": "claude-x",
        "messages": [
            {
                "role": "system",
                "content": [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
            },
            {"role": "user", "content": [{"type": "text", "text": "Weather in Paris?"}]},
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {
                        "id": "t1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                    },
                    {"id": "t2", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "t1", "content": "20 °C"},
            {"role": "tool", "tool_call_id": "t2", "content": "Error: no city"},
            {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
        ],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 100,
        "stop": ["x"],
        "user": "u",
        "temperature": 0.5,
        "new_field": "x",
    }
    assert (request.view.tool_choice, request.view.parallel_tool_calls) == ("required", False)
    reasoned = LargeOnlyRequest("reasoning_unseen", "messages[1].content[0].type")
    assert (request.large_only, request.include_decision) == (reasoned, True)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


@pytest.mark.parametrize(
    ("changes", "reason", "param", "native"),
    [
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            "content_not_text",
            "messages[0].content[0].type",
            False,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "search_result", "source": "x"}]}]},
            "content_not_text",
            "messages[0].content[0].type",
            True,
        ),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking", "thinking", False),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tool_type", "tools[0].type", True),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            "response_format",
            "output_config.format",
            False,
        ),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "mcp_servers", True),
    ],
)
async def test_what_the_small_model_cannot_take_goes_large_or_is_refused(
    gateway: Make, changes: dict[str, Any], reason: str, param: str, native: bool
) -> None:
    """Large where it can be said in chat completions; else a 400 that names the field. Nothing is drafted."""
    request = read(ask(**changes))
    assert request.large_only is not None
    assert (request.large_only.reason, request.large_only.param) == (reason, param)
    small, large = ScriptedSmall(CALL), Scripted()
    async with served(gateway(small=small, upstream=large)) as url:
        status, headers, body = await post(url, ask(**changes))
    assert small.commands == []
    if native:
        assert (status, body["error"]["type"], body["error"]["param"]) == (400, "invalid_request_error", param)
        assert large.asked == 0
    else:
        assert (status, headers["x-smallcall-reason"]) == (200, reason)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {
                "messages": [
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "y", "input": 3}]}
                ]
            },
            "messages[0].content[0].input",
        ),
        ({"tools": [{"name": "x", "input_schema": 3}]}, "tools[0].input_schema"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tool_choice": {"type": "tool", "name": "nope"}}, "tool_choice.name"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_bad_bodies_get_anthropics_error_shape(gateway: Make, changes: dict[str, Any], param: str) -> None:
    """400, the field by name."""
    async with served(gateway(small=ScriptedSmall(CALL))) as url:
        status, _, body = await post(url, ask(**changes))
    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error")
    assert body["error"]["param"] == param
    assert body["error"]["message"].startswith(param)


async def test_errors_of_the_large_model_have_anthropics_shape(gateway: Make) -> None:
    """Whole: the status and type that fit; in mid-stream: an error event, and nothing after it."""
    for fault, status, kind in ((Status(429), 429, "rate_limit_error"), (Status(500), 502, "api_error")):
        async with (
            recorded(faults=always(fault)) as upstream,
            served(gateway(large_base=upstream.url, large={"retries": 0})) as url,
        ):
            got, _, body = await post(url, of(CALLING))
            assert (got, body["type"], body["error"]["type"]) == (status, "error", kind)
    async with recorded(faults=always(Cut(2))) as upstream:
        app = gateway(large_base=upstream.url, large={"retries": 0})
        async with served(app) as url:
            _, events = await stream(url, of(TALKING))
            assert [event["type"] for event in events][-1] == "error"
            assert "message_stop" not in [event["type"] for event in events]
            kept = (await app.services.ledger.page())[-1]
            assert kept.status == 502
    async with served(gateway()) as url:
        status, _, body = await post(url, ask())
        assert (status, body["error"]["type"]) == (503, "overloaded_error")
        async with aiohttp.ClientSession() as session, session.get(url + "/messages") as response:
            assert (response.status, (await response.json())["type"]) == (405, "error")


async def test_a_schema_is_named_by_this_dialects_field(gateway: Make) -> None:
    """`tools[1].input_schema`, not OpenAI's path."""
    schema = {"type": "object", "properties": {"city": {"$ref": "http://127.0.0.1:9/s.json"}}}
    tools = [TOOL, {"name": "hostile", "input_schema": schema}]
    async with served(gateway(small=ScriptedSmall(CALL))) as url:
        status, _, body = await post(url, ask(tools=tools))
    assert (status, body["error"]["param"]) == (400, "tools[1].input_schema")
    assert "function.parameters" not in body["error"]["message"]


async def test_a_silent_stream_is_kept_alive(gateway: Make) -> None:
    """Comments before the message begins, pings after; the answer is whole all the same."""
    async with served(gateway(small=ScriptedSmall(CALL, pause_s=0.01), constants=Constants(keep_alive_s=0.1))) as url:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url + "/messages", json=ask(stream=True)) as response,
        ):
            assert "x-smallcall-reason" not in response.headers
            text = await response.text()
        assert text.startswith(": keep-alive\n\n")
        assert assembled(events_of(text))["stop_reason"] == "tool_use"
    async with served(gateway(upstream=Scripted(pause_s=0.25), constants=Constants(keep_alive_s=0.1))) as url:
        _, events = await stream(url, ask())
        assert {"type": "ping"} in events
        message = assembled([event for event in events if event["type"] != "ping"])
        assert message["content"] == [{"type": "text", "text": "word word word "}]


async def test_an_error_after_keep_alives_is_an_event(gateway: Make) -> None:
    """The status line is gone by then."""
    small = ScriptedSmall("Thought: none\nAction: none", pause_s=0.02)
    app = gateway(small=small, constants=Constants(keep_alive_s=0.1))
    async with served(app) as url:
        _, events = await stream(url, ask())
        assert [event["type"] for event in events] == ["error"]
        assert events[0]["error"]["code"] == "large_not_configured"
        (row,) = await app.services.ledger.page()
        assert row.status == 503


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_cancels_what_was_done_for_it(gateway: Make, streamed: bool) -> None:
    """The draft, or the upstream call; its row is kept."""
    small, large = ScriptedSmall(CALL, pause_s=0.05), Scripted(pause_s=10)
    app = gateway(small=small)
    async with served(app) as url:
        await leave_at(url + "/messages", ask(stream=streamed))
        (row,) = await rows_of(app, 1)
        assert (row.client_disconnected, row.dialect, small.cancelled) == (True, "messages", 1)
    app = gateway(upstream=large)
    async with served(app) as url:
        await leave_at(url + "/messages", ask(stream=streamed))
        rows = await rows_of(app, 2)
        assert all(row.client_disconnected for row in rows)
        assert large.cancelled + large.closed == 1


async def test_arguments_that_are_no_object_are_an_error(gateway: Make) -> None:
    """This dialect cannot carry them, and an empty input would be another call."""

    class Wrong(Scripted):
        async def complete(self, body: Any, tries: Any = None) -> dict[str, Any]:
            function = {"name": "get_weather", "arguments": "{oops"}
            message = {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "function": function}]}
            return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}

    async with served(gateway(upstream=Wrong())) as url:
        status, _, body = await post(url, ask())
    assert (status, body["error"]["code"]) == (502, "upstream_unavailable")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["text", "tool_use", "user", "auto", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("type name id input input_schema role content tool_use_id text source is_error".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = "messages system tools tool_choice stream max_tokens metadata thinking output_config stop_sequences".split()


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(changes: dict[str, Any]) -> None:
    """No body makes the reader fail in another way."""
    try:
        request = read(ask(**changes))
    except ClientError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.status == 400
        return
    assert all(isinstance(turn["role"], str) for turn in request.view.messages)
    assert request.view.tool_choice != "named" or request.view.forced_tool
