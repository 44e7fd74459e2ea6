"""Streams as OpenAI-compatible providers really send them, in each of our dialects."""

import asyncio
import json
from typing import Any

import aiohttp
import orjson
import pytest

from tests.router.cascade import test_gateway
from tests.router.conftest import Make, served
from tests.router.dialects import test_messages, test_responses
from tests.router.upstream.test_passthrough import Provider, large

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
