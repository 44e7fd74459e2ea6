"""Streams as OpenAI-compatible providers really send them, in each of our dialects."""

import json
from typing import Any

import orjson
import pytest

from tests.router import test_gateway, test_messages, test_responses
from tests.router.conftest import Make, served
from tests.router.test_passthrough import Provider, large

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
            rows = await app.state.ledger.page()
    for row in rows:
        kept = row.content["answer"]["choices"][0]["message"]["tool_calls"]
        assert [(one["id"], json.loads(one["function"]["arguments"])) for one in kept] == CALLS
    assert len(rows) == 3
