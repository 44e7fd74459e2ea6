"""Streams as OpenAI-compatible providers really send them, in each of our dialects."""

import asyncio
import json
from typing import Any

import aiohttp
import orjson
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from tests.router.cascade import test_gateway
from tests.router.conftest import Make, served
from tests.router.dialects import test_messages, test_responses
from tests.router.upstream.test_passthrough import MESSAGE, MESSAGE_EVENTS, Provider, large, send, sse

# litellm's pydantic models have remarks of pydantic on them, which would break its streams as errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]
MODEL = "openai/gpt-4o-2024-08-06"


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def streamed(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + orjson.dumps(one) + b"\n\n" for one in chunks) + b"data: [DONE]\n\n"


def call(call_id: str | None, name: str | None, arguments: str, index: int = 0) -> dict[str, Any]:
    """A piece of a call."""
    piece: dict[str, Any] = {"index": index, "function": {"arguments": arguments}}
    if call_id is not None:
        piece |= {"id": call_id, "type": "function"}
    if name is not None:
        piece["function"]["name"] = name
    return chunk({"tool_calls": [piece]})


WAYS = {
    "OpenAI's": [
        call("a", "get_weather", ""),
        call(None, None, '{"city":'),
        call(None, None, '"Paris"}'),
        call("b", "get_weather", "", 1),
        call(None, None, '{"city":"Rome"}', 1),
    ],
    "whole calls, all under index 0": [
        call("a", "get_weather", '{"city":"Paris"}'),
        call("b", "get_weather", '{"city":"Rome"}'),
    ],
    "id and name in every piece": [
        call("a", "get_weather", '{"city":'),
        call("a", "get_weather", '"Paris"}'),
        call("b", "get_weather", '{"city":"Rome"}', 1),
    ],
    "another id in every piece": [
        call("a", "get_weather", '{"city":'),
        call("a2", None, '"Paris"}'),
        call("b", "get_weather", '{"city":"Rome"}', 1),
    ],
    "pieces of several calls in turn": [
        call("a", "get_weather", ""),
        call("b", "get_weather", "", 1),
        call(None, None, '{"city":', 1),
        call(None, None, '{"city":'),
        call(None, None, '"Paris"}'),
        call(None, None, '"Rome"}', 1),
    ],
    "a name that comes after its id": [
        call("a", None, ""),
        call("a", "get_weather", '{"city":"Paris"}'),
        call("b", None, "", 1),
        call("b", "get_weather", "", 1),
        call(None, None, '{"city":"Rome"}', 1),
    ],
}
CALLS = [("a", {"city": "Paris"}), ("b", {"city": "Rome"})]


@pytest.mark.parametrize("way", WAYS)
async def test_parallel_calls_stay_apart(gateway: Make, way: str) -> None:
    """However a provider tells them: in both translated dialects, and in what the ledger keeps of the answer."""
    provider = Provider(streamed(*WAYS[way], chunk({}, "tool_calls")))
    async with provider.running() as base:
        app = gateway(large=large(MODEL, base), ledger={"store_content": True})
        async with served(app) as url:
            _, events = await test_messages.stream(url, test_messages.ask())
            blocks = test_messages.assembled(events)["content"]
            assert [(block["id"], block["input"]) for block in blocks] == CALLS
            _, events = await test_responses.stream(url, test_responses.ask())
            items = events[-1]["response"]["output"]
            assert [(item["call_id"], json.loads(item["arguments"])) for item in items] == CALLS
            assert len({item["id"] for item in items}) == 2
            await test_gateway.stream(url, test_gateway.ask(stream=True))
            rows = await app.services.ledger.page()
    for row in rows:
        kept = row.content["answer"]["choices"][0]["message"]["tool_calls"]
        assert [(one["id"], json.loads(one["function"]["arguments"])) for one in kept] == CALLS
    assert len(rows) == 3


WITHOUT_IDS = {
    "whole, all under index 0": [
        call(None, "get_weather", '{"city":"Paris"}'),
        call(None, "get_weather", '{"city":"Rome"}'),
    ],
    "in pieces, all under index 0": [
        call(None, "get_weather", ""),
        call(None, None, '{"city":"Paris"}'),
        call(None, "get_weather", ""),
        call(None, None, '{"city":"Rome"}'),
    ],
    "the name in every piece": [
        call(None, "get_weather", '{"city":'),
        call(None, "get_weather", '"Paris"}'),
        call(None, "get_weather", ""),
        call(None, "get_weather", '{"city":"Rome"}', 1),
    ],
    "one id for all": [
        call("a", "get_weather", '{"city":"Paris"}'),
        call("a", "get_weather", '{"city":"Rome"}', 1),
    ],
}


def read_by_the_official_client(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The calls of a chat completion's stream, as OpenAI's client adds them up; their reason to end must be calls."""
    state = ChatCompletionStreamState()
    for event in events:
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    (choice,) = state.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    return [json.loads(one.function.arguments) for one in choice.message.tool_calls or ()]


async def in_every_dialect(url: str) -> list[list[Any]]:
    """The arguments of an answer's calls: as Messages, Responses and chat completions tell them."""
    _, message = await test_messages.stream(url, test_messages.ask())
    assert message[-2]["delta"]["stop_reason"] == "tool_use"
    blocks = test_messages.assembled(message)["content"]
    _, response = await test_responses.stream(url, test_responses.ask())
    items = response[-1]["response"]["output"]
    _, chunks = await test_gateway.stream(url, test_gateway.ask(stream=True))
    for ids in ([block["id"] for block in blocks], [item["call_id"] for item in items]):
        assert len(set(ids)) == len(ids)
    calls = read_by_the_official_client(chunks)
    return [[one["input"] for one in blocks], [json.loads(one["arguments"]) for one in items], calls]


@pytest.mark.parametrize("forward", [True, False], ids=["forwarded", "translated"])
@pytest.mark.parametrize("way", [*WAYS, *WITHOUT_IDS])
async def test_a_streams_calls_are_told_by_what_came(gateway: Make, way: str, forward: bool) -> None:
    """Whatever their indexes and ids, and though the provider calls it a plain end: to clients of each dialect."""
    provider = Provider(streamed(*{**WAYS, **WITHOUT_IDS}[way], chunk({}, "stop")))
    async with provider.running() as base:
        app = gateway(large=large(MODEL, base, forward=["chat_completions"] if forward else []))
        async with served(app) as url:
            told = await in_every_dialect(url)
    assert told == [[{"city": "Paris"}, {"city": "Rome"}]] * 3


async def test_text_between_the_pieces_of_a_call_keeps_its_place(gateway: Make) -> None:
    """It waits until the call that began before it is over."""
    pieces = [call("a", "get_weather", '{"city":'), chunk({"content": "Look"}), call(None, None, '"Paris"}')]
    provider = Provider(streamed(*pieces, chunk({"content": "ing."}), chunk({}, "tool_calls")))
    async with provider.running() as base, served(gateway(large=large(MODEL, base))) as url:
        _, events = await test_messages.stream(url, test_messages.ask())
        blocks = test_messages.assembled(events)["content"]
        _, events = await test_responses.stream(url, test_responses.ask())
        (made, said) = events[-1]["response"]["output"]
    assert [block.get("input") or block["text"] for block in blocks] == [{"city": "Paris"}, "Looking."]
    assert (json.loads(made["arguments"]), said["content"][0]["text"]) == ({"city": "Paris"}, "Looking.")


async def test_a_call_that_goes_on_when_it_is_over_is_an_error(gateway: Make) -> None:
    """Its whole arguments were told: what comes behind them cannot be a part of them."""
    pieces = [*WAYS["OpenAI's"], call(None, None, '{"city":"Oslo"}')]
    provider = Provider(streamed(*pieces, chunk({}, "tool_calls")))
    async with provider.running() as base, served(gateway(large=large(MODEL, base))) as url:
        _, events = await test_messages.stream(url, test_messages.ask())
        assert (events[-1]["type"], events[-1]["error"]["code"]) == ("error", "upstream_unavailable")
        _, events = await test_responses.stream(url, test_responses.ask())
        assert events[-1]["type"] == "response.failed"


def whole(message: dict[str, Any], finish: str) -> bytes:
    """A whole chat completion of a provider."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": finish}
    return orjson.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]})


NOTHING = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
BOTH_WAYS = pytest.mark.parametrize("forward", [["chat_completions"], []], ids=["forwarded", "translated"])


@BOTH_WAYS
async def test_a_call_without_arguments_has_an_empty_object(gateway: Make, forward: list[str]) -> None:
    """In each dialect, streamed and whole, in deltas as in whole items; and the reason to end is the call."""
    provider = Provider(streamed(call("a", "get_weather", ""), chunk({}, "stop")))
    async with provider.running() as base, served(gateway(large=large(MODEL, base, forward=forward))) as url:
        assert await in_every_dialect(url) == [[{}]] * 3
        _, events = await test_responses.stream(url, test_responses.ask())
        provider.answer = (whole({"tool_calls": [NOTHING]}, "stop"),)
        _, _, message = await test_messages.post(url, test_messages.ask())
        _, _, response = await test_responses.post(url, test_responses.ask())
        _, _, completion = await test_gateway.post(url, test_gateway.ask())
    told = {event["type"].rpartition("arguments.")[2]: event for event in events}
    assert (told["delta"]["delta"], told["done"]["arguments"]) == ("{}", "{}")
    assert (message["stop_reason"], message["content"][0]["input"]) == ("tool_use", {})
    assert response["output"][0]["arguments"] == "{}"
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": "{}"}


@BOTH_WAYS
@pytest.mark.parametrize(
    ("told", "stop", "finish"), [("tool_calls", "end_turn", "stop"), ("length", "max_tokens", "length")]
)
async def test_a_label_of_calls_without_any_is_a_plain_end(
    gateway: Make, forward: list[str], told: str, stop: str, finish: str
) -> None:
    """A cut stays a cut."""
    provider = Provider(streamed(chunk({"content": "Hi"}), chunk({}, told)))
    async with provider.running() as base, served(gateway(large=large(MODEL, base, forward=forward))) as url:
        _, message = await test_messages.stream(url, test_messages.ask())
        _, chunks = await test_gateway.stream(url, test_gateway.ask(stream=True))
        provider.answer = (whole({"content": "Hi"}, told),)
        _, _, told_whole = await test_messages.post(url, test_messages.ask())
        _, _, completion = await test_gateway.post(url, test_gateway.ask())
    assert (message[-2]["delta"]["stop_reason"], told_whole["stop_reason"]) == (stop, stop)
    assert chunks[-1]["choices"][0]["finish_reason"] == completion["choices"][0]["finish_reason"] == finish


async def test_a_messages_provider_that_calls_a_call_a_plain_end_is_put_right(gateway: Make) -> None:
    """Forwarded, streamed and whole."""
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}}
    provider = Provider(sse(*MESSAGE_EVENTS[:-2], ended, MESSAGE_EVENTS[-1]))
    async with provider.running() as base, served(gateway(large=large("anthropic/claude-sonnet-4-5", base))) as url:
        _, events = await test_messages.stream(url, test_messages.ask())
        provider.answer = (orjson.dumps({**MESSAGE, "stop_reason": "end_turn"}),)
        _, _, message = await test_messages.post(url, test_messages.ask())
    assert (events[-2]["delta"]["stop_reason"], message["stop_reason"]) == ("tool_use", "tool_use")


async def test_a_responses_provider_that_gives_no_arguments_is_put_right(gateway: Make) -> None:
    """Forwarded, streamed and whole."""
    item = {"type": "function_call", "id": "fc", "call_id": "a", "name": "get_weather", "arguments": ""}
    response = {"id": "resp", "object": "response", "model": "m", "status": "completed", "output": [item]}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**response, "output": [], "status": "in_progress"}},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.function_call_arguments.done", "output_index": 0, "item_id": "fc", "arguments": ""},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": response},
    ]
    provider = Provider(sse(*({**event, "sequence_number": index} for index, event in enumerate(events))))
    async with provider.running() as base, served(gateway(large=large(MODEL, base, forward=["responses"]))) as url:
        _, told = await test_responses.stream(url, test_responses.ask())
        provider.answer = (orjson.dumps(response),)
        _, _, given = await test_responses.post(url, test_responses.ask())
    assert told[2]["arguments"] == told[3]["item"]["arguments"] == "{}"
    assert told[4]["response"]["output"][0]["arguments"] == given["output"][0]["arguments"] == "{}"


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
async def test_a_past_call_without_arguments_reaches_another_provider_as_an_object(gateway: Make, path: str) -> None:
    """Clients send back what they were given by others."""
    provider = Provider(whole({"content": "Hi"}, "stop"))
    said = {"role": "user", "content": "Paris?"}
    item = {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": ""}
    output = {"type": "function_call_output", "call_id": "a", "output": "Sunny."}
    turns = [
        said,
        {"role": "assistant", "tool_calls": [NOTHING]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ]
    bodies = {
        "/chat/completions": test_gateway.ask(messages=turns),
        "/responses": test_responses.ask(input=[said, item, output]),
    }
    async with provider.running() as base, served(gateway(large=large(MODEL, base, forward=[]))) as url:
        status, _, _ = await send(url, path, bodies[path])
    ((_, _, sent),) = provider.asked
    assert status == 200
    assert orjson.loads(sent)["messages"][1]["tool_calls"][0]["function"]["arguments"] == "{}"


HALVES = (rb"Sun \ud83d", rb"\ude00 and \ud83d, ", rb"then rain")
"""Pieces of which one cuts a character in two, and one leaves half a character behind."""


def written(*pieces: bytes) -> bytes:
    """A stream whose texts stand in it as they are given."""
    body = streamed(*(chunk({"content": f"<{index}>"}) for index in range(len(pieces))), chunk({}, "stop"))
    for index, piece in enumerate(pieces):
        body = body.replace(b"<%d>" % index, piece)
    return body


@BOTH_WAYS
async def test_half_characters_do_not_break_an_answer(gateway: Make, forward: list[str]) -> None:
    """Halves that follow each other are put together; others have the sign for an unknown character in their place."""
    provider = Provider(written(*HALVES))
    async with provider.running() as base, served(gateway(large=large(MODEL, base, forward=forward))) as url:
        _, events = await test_messages.stream(url, test_messages.ask())
        (block,) = test_messages.assembled(events)["content"]
        _, events = await test_responses.stream(url, test_responses.ask())
        (item,) = events[-1]["response"]["output"]
        _, chunks = await test_gateway.stream(url, test_gateway.ask(stream=True))
        provider.answer = (whole({"content": "<>"}, "stop").replace(b"<>", b"Rain \\ud83d\\ude00, \\ud83d."),)
        _, _, message = await test_messages.post(url, test_messages.ask())
        _, _, completion = await test_gateway.post(url, test_gateway.ask())
    said = "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks)
    assert block["text"] == item["content"][0]["text"] == said
    assert said == "Sun \N{GRINNING FACE} and \N{REPLACEMENT CHARACTER}, then rain"
    told = "Rain \N{GRINNING FACE}, \N{REPLACEMENT CHARACTER}."
    assert message["content"][0]["text"] == completion["choices"][0]["message"]["content"] == told


async def test_bytes_that_are_no_text_do_not_break_a_forwarded_stream(gateway: Make) -> None:
    """What was cut in the middle of a character's bytes; other events stay as they came."""
    provider = Provider(written(b"Sun \xf0\x9f and", b" rain"))
    async with provider.running() as base, served(gateway(large=large(MODEL, base))) as url:
        _, chunks = await test_gateway.stream(url, test_gateway.ask(stream=True))
    said = [one["choices"][0]["delta"].get("content") for one in chunks]
    assert said == ["Sun \N{REPLACEMENT CHARACTER} and", " rain", None]


async def test_a_messages_client_that_thinks_can_have_another_provider(gateway: Make) -> None:
    """OpenAI refuses a body with fields that it does not know."""
    provider = Provider(streamed(chunk({"content": "Hi"}), chunk({}, "stop")))
    asked = test_messages.ask(
        thinking={"type": "adaptive"}, top_k=3, service_tier="standard_only", cache_control={"type": "ephemeral"}
    )
    async with provider.running() as base, served(gateway(large=large(MODEL, base))) as url:
        headers, events = await test_messages.stream(url, asked)
    assert headers["x-smallcall-reason"] == "thinking"
    assert test_messages.assembled(events)["content"] == [{"type": "text", "text": "Hi"}]
    ((_, _, sent),) = provider.asked
    known = {"model", "messages", "tools", "max_tokens", "stream", "stream_options"}
    assert orjson.loads(sent).keys() <= known


async def test_usage_in_every_chunk_is_no_end(gateway: Make) -> None:
    """As Gemini's and xAI's endpoints tell it: text is sent as it comes, and the last usage counts."""

    def usage(tokens: int) -> dict[str, int]:
        return {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}

    pieces = [chunk({"content": "word "}, usage=usage(1)), chunk({"content": "more "}, usage=usage(2))]
    rest = streamed(chunk({}, "stop", usage=usage(3)))
    first = streamed(*pieces).removesuffix(b"data: [DONE]\n\n")
    go_on = asyncio.Event()
    provider = Provider(first, go_on, rest)
    async with provider.running() as base:
        app = gateway(large=large(MODEL, base, price={"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}))
        async with (
            served(app) as url,
            aiohttp.ClientSession() as session,
            session.post(url + "/chat/completions", json=test_gateway.ask(stream=True)) as response,
        ):
            seen = b""
            async with asyncio.timeout(60):
                while b"more " not in seen:
                    seen += await response.content.readany()
            assert not await app.services.ledger.page()
            go_on.set()
            assert (await response.text()).endswith("data: [DONE]\n\n")
            (row,) = await app.services.ledger.page()
    assert (row.large_prompt_tokens, row.large_completion_tokens, row.large_cost_nusd) == (100, 3, 103_000)


async def test_what_follows_an_end_is_held_within_bounds(gateway: Make) -> None:
    """The second of two answers to one request may be long after the first has ended: it is not kept until it ends."""
    long = [chunk({"content": "x" * 100_000}) for _ in range(25)]
    begun = streamed(chunk({}, "stop"), *long).removesuffix(b"data: [DONE]\n\n")
    go_on = asyncio.Event()
    provider = Provider(begun, go_on, streamed(chunk({}, "stop")))
    async with provider.running() as base:
        app = gateway(large=large(MODEL, base))
        async with (
            served(app) as url,
            aiohttp.ClientSession() as session,
            session.post(url + "/chat/completions", json=test_gateway.ask(stream=True, n=2)) as response,
        ):
            seen = 0
            async with asyncio.timeout(60):
                while seen < 1_500_000:
                    seen += len(await response.content.readany())
            assert not await app.services.ledger.page()
            go_on.set()
            rest = await response.text()
            assert rest.endswith("data: [DONE]\n\n")
            assert seen + len(rest) > 2_500_000
            (row,) = await app.services.ledger.page()
    assert row.status == 200
