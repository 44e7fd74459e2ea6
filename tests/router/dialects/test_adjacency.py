"""Results of tools behind their calls, whatever the client puts between them."""

from typing import Any

import orjson
import pytest

from router.dialects.provider.adjacency import adjacent
from tests.router.cascade import test_gateway
from tests.router.conftest import Make, served
from tests.router.dialects import test_messages, test_responses
from tests.router.upstream.test_passthrough import Provider, large, send

MODEL = "openai/gpt-4o-2024-08-06"
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
}
USER = {"role": "user", "content": "Paris?"}
ASIDE = {"role": "user", "content": "Quick!"}


def calls(*ids: str) -> dict[str, Any]:
    made = [{"id": one, "type": "function", "function": {"name": "get_weather", "arguments": "{}"}} for one in ids]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(call_id: str, content: str = "20 °C") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ([USER, calls("a"), ASIDE, result("a")], [USER, calls("a"), result("a"), ASIDE]),
        ([calls("a"), calls("b"), result("a"), result("b")], [calls("a"), result("a"), calls("b"), result("b")]),
        ([USER, result("a"), calls("a"), ASIDE], [USER, calls("a"), result("a"), ASIDE]),
        (
            [calls("a", "b"), result("b"), ASIDE, result("a")],
            [calls("a", "b"), result("b"), result("a"), ASIDE],
        ),
        (
            [calls("a"), result("a", "1"), calls("a"), ASIDE, result("a", "2")],
            [calls("a"), result("a", "1"), calls("a"), result("a", "2"), ASIDE],
        ),
    ],
)
def test_a_result_stands_right_behind_its_call(given: list[dict[str, Any]], ordered: list[dict[str, Any]]) -> None:
    """Ids may be used again in later turns."""
    assert adjacent(given) == ordered


@pytest.mark.parametrize(
    "given",
    [
        [USER, calls("a", "b"), result("b"), result("a"), ASIDE],
        [USER, result("z"), calls("a"), result("a"), result("a", "again"), ASIDE],
        [USER, calls("a"), ASIDE],
    ],
)
def test_what_is_in_order_stays_as_it_is(given: list[dict[str, Any]]) -> None:
    """Results of calls that were left out, and calls without a result, too."""
    assert adjacent(given) is given


@pytest.mark.parametrize("path", ["/chat/completions", "/messages", "/responses"])
async def test_a_provider_gets_results_behind_their_calls(gateway: Make, path: str) -> None:
    """In each dialect; of Messages a result may come a turn late."""
    use = {"type": "tool_use", "id": "a", "name": "get_weather", "input": {}}
    told = {"type": "tool_result", "tool_use_id": "a", "content": "20 °C"}
    item = {"type": "function_call", "call_id": "a", "name": "get_weather", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "a", "output": "20 °C"}
    turns = [USER, {"role": "assistant", "content": [use]}, ASIDE, {"role": "user", "content": [told]}]
    bodies = {
        "/chat/completions": test_gateway.ask(messages=[USER, calls("a"), ASIDE, result("a")]),
        "/messages": test_messages.ask(messages=turns),
        "/responses": test_responses.ask(input=[USER, item, ASIDE, output]),
    }
    provider = Provider(orjson.dumps(ANSWER))
    async with provider.running() as base, served(gateway(large=large(MODEL, base, forward=[]))) as url:
        status, _, _ = await send(url, path, bodies[path])
    assert status == 200
    ((_, _, sent),) = provider.asked
    asked = orjson.loads(sent)["messages"]
    assert [turn["role"] for turn in asked] == ["user", "assistant", "tool", "user"]
    assert asked[2]["tool_call_id"] == asked[1]["tool_calls"][0]["id"] == "a"
