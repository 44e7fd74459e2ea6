"""Conversations that went large, and requests that refer to what the small model has not seen, through the door."""

import io
import json
from dataclasses import replace
from typing import Any

import aiohttp
import orjson
import pytest

from router.selection.stickiness import MAX_REMEMBERED, LocalMemories, Memory
from slm.format.pattern import TOOL_RESULT_CHARS
from tests.router.access.conftest import RedisServer, redis_server
from tests.router.access.test_keys import ACCESS, make_key
from tests.router.cascade.test_gateway import CALL, TOOL, Scripted, ask, rows_of
from tests.router.conftest import CONSTANTS, Make, ScriptedSmall, served
from tests.router.upstream.test_passthrough import CHAT, Provider, large

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

__all__ = ["redis_server"]

UNSURE = "Thought: none\nAction: none"
AFTER = {"sticky": "after_escalation"}


async def turn(
    url: str,
    conversation: str | None = "c",
    path: str = "/chat/completions",
    body: Any = None,
    key: str | None = None,
    bearer: str | None = None,
    **changes: Any,
) -> str:
    """The reason of one turn's decision."""
    told = {"x-smallcall-conversation": conversation, "x-api-key": key, "authorization": bearer}
    headers = {name: value for name, value in told.items() if value}
    data = io.BytesIO(orjson.dumps(body or ask(**changes)))
    async with aiohttp.ClientSession() as session, session.post(url + path, data=data, headers=headers) as response:
        await response.read()
        return response.headers["x-smallcall-reason"]


async def test_turns_after_an_escalation_stay_large_and_then_are_drafted_again(gateway: Make) -> None:
    """So many, and no more; other conversations are not touched; the reason stands in the ledger, without a draft."""
    small = ScriptedSmall(UNSURE)
    app = gateway(small=small, upstream=Scripted(), conversations=AFTER)
    async with served(app) as url:
        first = await turn(url)
        small.text = CALL
        later = [await turn(url) for _ in range(6)]
        other = await turn(url, "another")
        rows = await app.services.ledger.page()
    assert first == "no_call"
    assert later == ["sticky"] * 4 + ["accepted", "accepted"]
    assert other == "accepted"
    kept = [(row.reason, row.side, row.small_completion_tokens is None) for row in rows[1:5]]
    assert kept == [("sticky", "large", True)] * 4
    assert len(small.commands) == 4


@pytest.mark.parametrize("unit", ["conversation", "key"])
async def test_a_header_that_opens_nothing_chooses_neither_conversation_nor_arm(gateway: Make, unit: str) -> None:
    """Beside the key that opens the gateway; another key is another conversation, and another unit."""
    trial = {"unit": unit, "arms": {"control": {}, "same": {"policy": {"kind": "threshold", "threshold": 0.5}}}}
    small = ScriptedSmall(UNSURE)
    app = gateway(small=small, upstream=Scripted(), conversations=AFTER, access=ACCESS, experiments={"trial": trial})
    async with served(app) as url:
        keys = [(await make_key(url))["key"] for _ in range(2)]
        first = await turn(url, key=keys[0])
        small.text = CALL
        later = [await turn(url, key=keys[0], bearer=junk) for junk in ("Bearer junk1", "Bearer junk2")]
        other = await turn(url, key=keys[1], bearer="Bearer junk2")
        rows = await app.services.ledger.page()
    assert [first, *later, other] == ["no_call", "sticky", "sticky", "accepted"]
    assert len({row.unit_sha256 for row in rows[:3]}) == 1
    assert rows[3].unit_sha256 != rows[0].unit_sha256


async def test_without_a_header_a_conversation_is_known_by_its_beginning_and_its_key(gateway: Make) -> None:
    """In every dialect, streamed and whole; the same words under another key are another conversation."""
    small = ScriptedSmall(UNSURE)
    twice = replace(CONSTANTS, sticky_turns=2)
    async with served(gateway(small=small, upstream=Scripted(), conversations=AFTER, constants=twice)) as url:
        opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        await turn(url, None, messages=opening)
        small.text = CALL
        longer = [*opening, {"role": "assistant", "content": "a"}, {"role": "user", "content": "v"}]
        assert await turn(url, None, messages=longer, stream=True) == "sticky"
        tools = [{"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}]
        anthropic = {"model": "m", "max_tokens": 9, "system": "s", "messages": opening[1:], "tools": tools}
        responses = {
            "model": "m",
            "instructions": "s",
            "input": "u",
            "tools": [{"type": "function", **TOOL["function"]}],
        }
        assert await turn(url, None, "/responses", body=responses) == "sticky"
        assert await turn(url, None, "/messages", body=anthropic) == "accepted"
        assert await turn(url, None, messages=longer, key="other") == "accepted"


async def test_pins_are_heeded_and_a_pinned_large_turn_makes_the_next_sticky(gateway: Make) -> None:
    async with served(gateway(small=ScriptedSmall(CALL), upstream=Scripted(), conversations=AFTER)) as url:
        assert await turn(url, model="smallcall/large") == "pinned_large"
        assert await turn(url, model="smallcall/small") == "pinned_small"
        assert await turn(url) == "sticky"


async def test_a_turn_that_the_large_model_did_not_answer_makes_nothing_sticky(gateway: Make) -> None:
    small = ScriptedSmall(UNSURE)
    provider = Provider(b'{"error": {"message": "no"}}', status=400)
    async with provider.running() as base:
        upstream = large("openai/gpt-4o-2024-08-06", base)
        async with served(gateway(small=small, large=upstream, conversations=AFTER)) as url:
            assert await turn(url) == "no_call"
            small.text = CALL
            assert await turn(url) == "accepted"


async def test_nothing_is_remembered_by_default(gateway: Make) -> None:
    small = ScriptedSmall(UNSURE)
    async with served(gateway(small=small, upstream=Scripted())) as url:
        await turn(url)
        small.text = CALL
        assert await turn(url) == "accepted"


async def test_replicas_share_their_memory_over_redis_and_go_on_without_it(
    gateway: Make, redis_server: RedisServer
) -> None:
    """A turn may come to any replica; where Redis is down each remembers what it saw itself."""
    small = ScriptedSmall(UNSURE)
    options: dict[str, Any] = {
        "small": small,
        "conversations": AFTER,
        "access": {"redis_url": redis_server.url},
    }
    one, two = gateway(upstream=Scripted(), **options), gateway(upstream=Scripted(), **options)
    async with served(one) as url, served(two) as other:
        await turn(url)
        small.text = CALL
        assert await turn(other) == "sticky"
        redis_server.stop()
        assert await turn(url) == "sticky"
        assert await turn(other) == "sticky"
        assert await turn(url, "new") == "accepted"


async def test_break_even_stops_drafting_where_the_lost_cache_outweighs_the_saving(gateway: Make) -> None:
    """Drafts that are never served cost more than they bring; a conversation whose drafts are served goes on."""
    answer = {**CHAT, "usage": {"prompt_tokens": 5000, "completion_tokens": 10}}
    provider = Provider(orjson.dumps(answer))
    price = {"input_usd_per_mtok": 100, "output_usd_per_mtok": 100, "cached_input_usd_per_mtok": 10}
    conversations, constants = {"sticky": "break_even"}, replace(CONSTANTS, draft_usd=0.01)
    long = ask(messages=[{"role": "user", "content": "x" * 20_000}])
    async with provider.running() as base:
        upstream = large("openai/gpt-4o-2024-08-06", base, price=price)
        small = ScriptedSmall(UNSURE)
        app = gateway(small=small, large=upstream, conversations=conversations, constants=constants)
        async with served(app) as url:
            unsure = [await turn(url, "unsure", body=long) for _ in range(8)]
            small.text = CALL
            sure = [await turn(url, "sure", body=long) for _ in range(8)]
    # A turn costs 0.051 $ from a warm cache, and a draft 0.01 $: it pays while over a fifth of them are served.
    assert unsure == ["no_call"] * 4 + ["sticky_cache"] * 4
    assert sure == ["accepted"] * 8


async def test_break_even_needs_a_price(gateway: Make) -> None:
    """Without one nothing can be reckoned, so nothing is kept large."""
    app = gateway(
        small=ScriptedSmall(UNSURE),
        upstream=Scripted(),
        conversations={"sticky": "break_even"},
        constants=replace(CONSTANTS, draft_usd=100.0),
    )
    async with served(app) as url:
        assert [await turn(url) for _ in range(2)] == ["no_call", "no_call"]


# ── what the small model has not seen ────────────────────────────────────────────────────────────────────────────────

USER = {"role": "user", "content": "Paris?"}


def _called(content: str = "18 °C", result_id: str = "c1", **more: Any) -> list[dict[str, Any]]:
    made = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    assistant = {"role": "assistant", "content": None, "tool_calls": [made], **more}
    return [USER, assistant, {"role": "tool", "tool_call_id": result_id, "content": content}, USER]


@pytest.mark.parametrize(
    ("messages", "reason", "param"),
    [
        (_called(), "accepted", None),
        (_called("x" * TOOL_RESULT_CHARS), "accepted", None),
        (_called("x" * (TOOL_RESULT_CHARS + 1)), "tool_result_cut", "messages[2].content"),
        (_called(result_id="gone"), "tool_result_unmatched", "messages[2].tool_call_id"),
        (_called(reasoning_content="hm"), "reasoning_unseen", "messages[1].reasoning_content"),
        (_called(reasoning_details=[{"type": "reasoning.encrypted", "data": "x"}]), "reasoning_unseen",
         "messages[1].reasoning_details"),
        ([USER, {"role": "assistant", "audio": {"id": "audio_1"}}, USER], "audio", "messages[1].audio"),
        ([USER, {"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}], "content_not_text",
         "messages[1].content"),
    ],
)  # fmt: skip
async def test_what_refers_to_the_unseen_goes_large(
    gateway: Make, messages: list[dict[str, Any]], reason: str, param: str | None
) -> None:
    """Nothing is drafted; a request that is pinned to the small model is refused by the field."""
    small = ScriptedSmall(CALL)
    app = gateway(small=small, upstream=Scripted())
    async with served(app) as url:
        assert await turn(url, messages=messages) == reason
        (row,) = await rows_of(app, 1)
        assert (row.reason, row.side) == (reason, "small" if param is None else "large")
        if param is not None:
            body = json.dumps(ask(messages=messages, model="smallcall/small"))
            async with (
                aiohttp.ClientSession() as session,
                session.post(url + "/chat/completions", data=body) as response,
            ):
                told = await response.json()
            assert (response.status, told["error"]["param"]) == (400, param)
            assert small.commands == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/responses",
            {"input": [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                       {"role": "user", "content": "Paris?"}]},
        ),
        ("/responses", {"input": [{"type": "function_call_output", "call_id": "gone", "output": "18"}]}),
        (
            "/messages",
            {"max_tokens": 9, "messages": [
                USER, {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}, USER]},
        ),
        (
            "/messages",
            {"max_tokens": 9, "messages": [
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "gone", "content": "18"}]}]},
        ),
    ],
)  # fmt: skip
async def test_the_unseen_is_found_in_the_other_dialects(gateway: Make, path: str, body: dict[str, Any]) -> None:
    async with served(gateway(small=ScriptedSmall(CALL), upstream=Scripted())) as url:
        reason = await turn(url, path=path, body={"model": "m", **body})
    assert reason == ("tool_result_unmatched" if "gone" in str(body) else "reasoning_unseen")


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_memory_is_bounded_and_forgets_the_silent() -> None:
    now = 0.0
    memories = LocalMemories(10.0, lambda: now)
    for i in range(MAX_REMEMBERED + 1):
        await memories.put(str(i), Memory(last_at=now))
    assert await memories.get("0") is None
    assert await memories.get("1") is not None
    now = 10.0
    assert await memories.get("1") is None
