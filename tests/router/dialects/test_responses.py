"""OpenAI's Responses: what is read, how it is told to other providers, and what its clients get."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.recorded.faults import Cut, Status, always
from router.constants import Constants
from router.dialects.errors import ClientError
from router.dialects.exchange import new_decision_id
from router.dialects.request import LargeOnlyRequest
from router.dialects.responses import read_request
from tests.router.cascade.test_gateway import CALL, CALLING, CITY, TALKING, TWO, Scripted, recorded, rows_of
from tests.router.conftest import Make, ScriptedSmall, served

# litellm's pydantic models have remarks of pydantic on them, which would break its streams as errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]

TOOL = {"type": "function", "name": "get_weather", "description": "Weather.", "parameters": CITY, "strict": False}


def ask(**changes: Any) -> dict[str, Any]:
    return {"model": "gpt-x", "input": "Paris?", "tools": [TOOL], **changes}


def of(row: Any, **changes: Any) -> dict[str, Any]:
    """A recorded case in this dialect."""
    tools = [{"type": "function", **tool["function"]} for tool in row.case.tools]
    return {"model": "gpt-x", "input": row.case.messages, "tools": tools, **changes}


def read(body: Any) -> Any:
    return read_request(orjson.dumps(body))


async def post(url: str, body: Any) -> tuple[int, dict[str, Any], Any]:
    async with aiohttp.ClientSession() as session, session.post(url + "/responses", json=body) as response:
        return response.status, dict(response.headers), await response.json()


async def stream(url: str, body: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Headers and events; each event's name is its type, and their numbers count from 0."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/responses", json={**body, "stream": True}) as response,
    ):
        assert response.content_type == "text/event-stream", await response.text()
        events = []
        for block in (await response.text()).split("\n\n")[:-1]:
            if block.startswith(":"):
                continue
            name, data = block.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        return dict(response.headers), events


async def test_small_answers_have_the_shape_of_responses(gateway: Make) -> None:
    """Whole, key for key; ids carry the decision, and what was asked is told again."""
    app = gateway(small=ScriptedSmall(TWO))
    async with served(app) as url:
        _, headers, whole = await post(url, ask(instructions="Be short.", metadata={"a": "b"}, store=True))
        row = await app.services.ledger.get(headers["x-smallcall-decision-id"])
    decision_id = headers["x-smallcall-decision-id"]
    assert whole == {
        "id": f"resp_{decision_id}",
        "object": "response",
        "created_at": whole["created_at"],
        "status": "completed",
        "background": False,
        "completed_at": whole["completed_at"],
        "error": None,
        "incomplete_details": None,
        "model": "gpt-x",
        "output": [
            {
                "id": f"fc_{decision_id}_{index}",
                "type": "function_call",
                "status": "completed",
                "call_id": f"call_{decision_id}_{index}",
                "name": "get_weather",
                "arguments": json.dumps({"city": city}),
            }
            for index, city in enumerate(("Paris", "Rome"))
        ],
        "previous_response_id": None,
        "store": False,
        "usage": {
            "input_tokens": 7,
            "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
            "output_tokens": len(TWO),
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 7 + len(TWO),
        },
        "instructions": "Be short.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "temperature": None,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [TOOL],
        "top_p": None,
        "truncation": "disabled",
        "user": None,
    }
    assert (row.dialect, row.side, row.n_messages) == ("responses", "small", 2)


async def test_a_streamed_call_has_its_events_in_order(gateway: Make) -> None:
    """Created, in progress, the item with its arguments, completed; the last event holds the whole response."""
    async with served(gateway(small=ScriptedSmall(CALL))) as url:
        headers, events = await stream(url, ask())
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    decision_id = headers["x-smallcall-decision-id"]
    added, delta, done, ended, completed = events[2:]
    assert (added["item"]["status"], added["item"]["arguments"], added["output_index"]) == ("in_progress", "", 0)
    assert delta["item_id"] == done["item_id"] == f"fc_{decision_id}_0"
    assert delta["delta"] == done["arguments"] == '{"city": "Paris"}'
    assert completed["response"]["output"] == [ended["item"]]
    assert completed["response"]["status"] == "completed"


async def test_the_official_client_reads_whole_and_streamed_answers_alike(gateway: Make) -> None:
    """Small and large, calls and prose; the client's own accumulator checks the order of the events."""
    async with recorded() as upstream:
        for small, body in ((ScriptedSmall(TWO), ask()), (None, of(CALLING)), (None, of(TALKING))):
            app = gateway(small=small, large_base=upstream.url)
            async with served(app) as url:
                client = openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0)
                whole = await client.responses.create(**body)
                async with client.responses.stream(**body) as streaming:
                    async for _ in streaming:
                        pass
                    streamed = await streaming.get_final_response()
                await client.close()
            made = [
                [(item.name, item.arguments) for item in one.output if item.type == "function_call"]
                for one in (whole, streamed)
            ]
            assert made[0] == made[1]
            assert whole.output_text == streamed.output_text
            assert whole.usage == streamed.usage
            assert bool(made[0]) != bool(whole.output_text)


async def test_a_conversation_is_told_in_chat_completions() -> None:
    """Items become turns: calls join their assistant message, outputs become tool messages."""
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call", "call_id": "c2", "name": "get_weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "20 °C"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "error: no city"}]},
    ]
    request = read(
        ask(
            input=items,
            instructions="Be short.",
            tool_choice={"type": "function", "name": "get_weather"},
            parallel_tool_calls=False,
            max_output_tokens=50,
            reasoning={"effort": "low"},
            temperature=0.5,
            service_tier="flex",
            store=False,
            include=["reasoning.encrypted_content"],
        )
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
        {"id": "c2", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
    ]
    function = {"name": "get_weather", "description": "Weather.", "parameters": CITY, "strict": False}
    assert request.body == {
        "model": "gpt-x",
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": "Let me see.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "20 °C"},
            {"role": "tool", "tool_call_id": "c2", "content": "error: no city"},
        ],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "max_completion_tokens": 50,
        "reasoning_effort": "low",
        "temperature": 0.5,
        "service_tier": "flex",
    }
    assert (request.view.tool_choice, request.view.forced_tool) == ("named", "get_weather")
    assert request.large_only == LargeOnlyRequest("reasoning_unseen", "input[1].type")


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}


async def test_results_of_parallel_calls_stand_together(gateway: Make) -> None:
    """An image among them follows the last of them, as OpenAI's chat completions want it."""

    class Asked(Scripted):
        async def complete(self, body: Any, tries: Any = None) -> dict[str, Any]:
            self.body = body
            return await super().complete(body, tries)

    calls = [{"type": "function_call", "call_id": one, "name": "get_weather", "arguments": "{}"} for one in "ab"]
    outputs: list[dict[str, Any]] = [
        {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "see"}, IMAGE]},
        {"type": "function_call_output", "call_id": "b", "output": "20 °C"},
    ]
    last = {"role": "user", "content": "And?"}
    large = Asked()
    async with served(gateway(upstream=large)) as url:
        status, _, _ = await post(url, ask(input=[{"role": "user", "content": "?"}, *calls, *outputs, last]))
        assert (status, [turn["role"] for turn in large.body["messages"]]) == (
            200,
            ["user", "assistant", "tool", "tool", "user", "user"],
        )
        shown = {"type": "image_url", "image_url": {"url": IMAGE["image_url"]}}
        assert large.body["messages"][4]["content"] == [shown]
        await post(url, ask(input=[{"role": "user", "content": "?"}, *calls, *outputs]))
        assert large.body["messages"][-1]["content"] == [shown]


@pytest.mark.parametrize(
    ("changes", "reason", "param", "native"),
    [
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "content_not_text", "input[0].content[0].type", False),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
            "content_not_text",
            "input[0].content[0].type",
            True,
        ),
        ({"input": [{"type": "computer_call"}]}, "item_type", "input[0].type", True),
        ({"tools": [{"type": "web_search"}]}, "tool_type", "tools[0].type", True),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice_type", "tool_choice.type", True),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}},
            "response_format",
            "text.format",
            False,
        ),
        ({"top_logprobs": 3}, "logprobs", "top_logprobs", False),
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
        assert (status, body["error"]["code"], body["error"]["param"]) == (400, reason, param)
        assert large.asked == 0
    else:
        assert (status, headers["x-smallcall-reason"]) == (200, reason)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "x"}, "input": None}, "prompt"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"id": "x"}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": f"fc_{new_decision_id()}_0"}]}, "input[0]"),
        ({"input": None}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "y"}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call_output", "output": "y"}]}, "input[0].call_id"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tool_choice": {"type": "function", "name": "nope"}}, "tool_choice.name"),
        ({"instructions": 3}, "instructions"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(gateway: Make, changes: dict[str, Any], param: str) -> None:
    """400 in OpenAI's shape; stored state among it."""
    async with served(gateway(small=ScriptedSmall(CALL), upstream=Scripted())) as url:
        status, _, body = await post(url, ask(**changes))
    assert (status, body["error"]["param"], body["error"]["type"]) == (400, param, "invalid_request_error")
    assert body["error"]["message"].startswith(param)


async def test_a_schema_is_named_by_this_dialects_field(gateway: Make) -> None:
    """`tools[1].parameters`, not the path of chat completions."""
    schema = {"type": "object", "properties": {"city": {"$ref": "http://127.0.0.1:9/s.json"}}}
    tools = [TOOL, {"type": "function", "name": "hostile", "parameters": schema}]
    async with served(gateway(small=ScriptedSmall(CALL))) as url:
        status, _, body = await post(url, ask(tools=tools))
    assert (status, body["error"]["param"]) == (400, "tools[1].parameters")


async def test_a_broken_stream_ends_in_a_failed_response(gateway: Make) -> None:
    """Once created: `response.failed`; a status where nothing was sent yet; `error` after keep-alives."""
    async with recorded(faults=always(Cut(2))) as upstream:
        app = gateway(large_base=upstream.url, large={"retries": 0})
        async with served(app) as url:
            _, events = await stream(url, of(TALKING))
            assert events[-1]["type"] == "response.failed"
            assert events[-1]["response"]["status"] == "failed"
            assert events[-1]["response"]["error"]["code"] == "upstream_unavailable"
            (kept,) = await app.services.ledger.page()
            assert kept.status == 502
    async with (
        recorded(faults=always(Status(429))) as upstream,
        served(gateway(large_base=upstream.url, large={"retries": 0})) as url,
    ):
        status, _, body = await post(url, of(CALLING, stream=True))
        assert (status, body["error"]["type"]) == (429, "rate_limit_error")
    small = ScriptedSmall("Thought: none\nAction: none", pause_s=0.02)
    async with served(gateway(small=small, constants=Constants(keep_alive_s=0.1))) as url:
        _, events = await stream(url, ask())
        assert [(event["type"], event["code"]) for event in events] == [("error", "large_not_configured")]


async def test_an_answer_that_was_cut_short_is_incomplete(gateway: Make) -> None:
    """`length` is told as Responses tell it, whole and streamed: of the response, and of the item that it cut."""
    function = {"name": "get_weather", "arguments": '{"city": "Par'}
    message = {"content": "half", "tool_calls": [{"index": 0, "id": "c", "type": "function", "function": function}]}

    class Short(Scripted):
        async def complete(self, body: Any, tries: Any = None) -> dict[str, Any]:
            return {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "length"}]}

        async def __aiter__(self) -> Any:
            yield {"id": "x", "choices": [{"index": 0, "delta": message, "finish_reason": None}]}
            yield {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}

    async with served(gateway(upstream=Short())) as url:
        _, _, whole = await post(url, ask())
        _, events = await stream(url, ask())
    assert events[-1]["type"] == "response.incomplete"
    assert events[-2]["item"]["status"] == "incomplete"
    for told in (whole, events[-1]["response"]):
        assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert told["output"][0]["content"][0]["text"] == "half"
        assert [item["status"] for item in told["output"]] == ["completed", "incomplete"]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_client_that_leaves_cancels_what_was_done_for_it(gateway: Make, streamed: bool) -> None:
    """The upstream call; its row is kept."""
    large = Scripted(pause_s=10)
    app = gateway(upstream=large)
    async with served(app) as url:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(post(url, ask(stream=streamed)), 0.2)
        (row,) = await rows_of(app, 1)
        assert (row.client_disconnected, row.dialect) == (True, "responses")
        assert large.cancelled + large.closed == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["message", "function_call", "user", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("type name call_id arguments parameters role content output text format effort".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = """input instructions tools tool_choice stream text reasoning metadata include parallel_tool_calls prompt
    previous_response_id""".split()


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
