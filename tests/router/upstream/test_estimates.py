"""What a decision's row says of money: measured seconds, reported usage, retries, and what was cut short."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from evaluation.recorded.faults import Cut, Hang, Status, always, in_turn
from router.cascade.decision import SmallWork
from router.cascade.decision_row import small_seconds
from router.server.app import create_app
from router.settings import Price, Settings
from router.small.worker_client import DraftBuilder
from router.upstream.answer_reader import MAX_CALLS, AnswerSummary
from router.upstream.estimates import truncated_cost_usd, unit_prices
from router.upstream.large_model import Usage
from router.upstream.prices import FixedPrices
from slm import protocol
from tests.router.cascade.test_gateway import CALL, CALLING, TALKING, Scripted, ask, of, post, read, recorded, rows_of
from tests.router.conftest import Make, ScriptedSmall, served

# litellm's pydantic models have remarks of pydantic on them, which would break its streams as errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]
PRICE = {"input_usd_per_mtok": 2.5, "output_usd_per_mtok": 10, "cached_input_usd_per_mtok": 1.25}
FIXED = FixedPrices(Price.model_validate(PRICE))


class Timed(ScriptedSmall):
    """A small model that tells seconds: 2 of waiting, 3 of prefill, 4 of decoding."""

    async def _events(self, finished: list[bool]) -> Any:
        async for event in super()._events(finished):
            if isinstance(event, protocol.Started):
                event = protocol.Started(prompt_tokens=7, cached_tokens=0, queue_s=2.0, prefill_s=3.0)
            elif isinstance(event, protocol.Done):
                event = protocol.Done(text=event.text, finish="stop", decode_s=4.0, steps=1, tokens=1)
            yield event


async def test_a_small_answers_row_names_its_call_and_its_size(gateway: Make) -> None:
    """Seven seconds at the 0.10 dollars an hour that reports and tuning take as well."""
    app = gateway(small=Timed(CALL), upstream=Scripted())
    async with served(app) as url:
        await post(url, ask())
        (row,) = await rows_of(app, 1)
    assert (row.small_cost_nusd, row.tool, row.large_attempts) == (194_444, "get_weather", None)
    assert row.request_bytes == len(orjson.dumps(ask()))


@pytest.mark.parametrize("text", [CALL, CALL.replace('"Paris"', "3")])
async def test_the_price_of_an_hour_is_the_operators(tmp_path: Path, text: str) -> None:
    """7 seconds at 3.60 dollars an hour are 7 thousandths of a dollar."""
    settings = Settings.model_validate(
        {
            "small": {"usd_per_hour": 3.6},
            "policy": {"kind": "threshold", "threshold": 0.5},
            "ledger": {"url": f"sqlite+aiosqlite:///{tmp_path / 'l.db'}"},
        }
    )
    app = create_app(settings, small=Timed(text), large=Scripted())
    async with served(app) as url:
        await post(url, ask())
        await post(url, ask(model="smallcall/large"))
        drafted, pinned = await rows_of(app, 2)
    assert drafted.small_cost_nusd == 7_000_000
    assert pinned.small_cost_nusd is None


def test_a_draft_that_was_given_up_costs_the_time_it_took() -> None:
    """The policy gives up when the plan stands: the seconds since the draft began, less those in the queue."""
    work = SmallWork()
    assert small_seconds(work) is None
    work.builder, work.seconds = DraftBuilder(), 5.0
    assert small_seconds(work) == 0.0
    work.builder.add(protocol.Started(prompt_tokens=7, cached_tokens=0, queue_s=2.0, prefill_s=1.0))
    assert small_seconds(work) == 3.0


async def test_a_small_answer_keeps_what_the_large_model_charges(gateway: Make) -> None:
    """The operator's price, in the row of every request that the small model answered; the large one was not asked."""
    async with recorded() as upstream:
        app = gateway(small=ScriptedSmall(CALL), large_base=upstream.url, large={"price": PRICE})
        async with served(app) as url:
            await post(url, ask())
            (row,) = await rows_of(app, 1)
    kept = (row.large_input_usd_per_mtok, row.large_cached_input_usd_per_mtok, row.large_output_usd_per_mtok)
    assert kept == pytest.approx((2.5, 1.25, 10.0))
    assert (row.side, row.large_attempts, row.large_cost_nusd) == ("small", None, None)


@pytest.mark.parametrize("forward", [None, []])
async def test_retries_are_counted_and_the_call_is_named(gateway: Make, forward: Any) -> None:
    """Two failures and an answer are three attempts, forwarded or translated; the row names the first tool called."""
    async with recorded(faults=in_turn([Status(500), Status(500)])) as upstream:
        app = gateway(large_base=upstream.url, large={"price": PRICE, "forward": forward})
        async with served(app) as url:
            await post(url, of(CALLING))
            await read(url, of(CALLING, stream=True))
            whole, streamed = await rows_of(app, 2)
    name = CALLING.recorded.calls[0].name
    assert [(row.large_attempts, row.tool, row.large_estimate_nusd) for row in (whole, streamed)] == [
        (3, name, None),
        (1, name, None),
    ]
    assert whole.large_cost_nusd == streamed.large_cost_nusd
    usage = Usage(whole.large_prompt_tokens, whole.large_completion_tokens, 0, {})
    assert whole.large_cost_nusd == round(FIXED.cost_usd(usage) * 1e9)


@pytest.mark.parametrize("forward", [None, []])
async def test_a_stream_that_breaks_is_estimated_and_marked(gateway: Make, forward: Any) -> None:
    """Nothing was reported, so the reported cost stays unknown, and what went by is estimated beside it."""
    async with recorded(faults=always(Cut(chunks=3))) as upstream:
        app = gateway(large_base=upstream.url, large={"retries": 0, "price": PRICE, "forward": forward})
        async with served(app) as url:
            await read(url, of(TALKING, stream=True))
            (row,) = await rows_of(app, 1)
    assert (row.large_cost_nusd, row.large_prompt_tokens) == (None, None)
    prompt = (row.request_bytes or 0) // 4 * 2_500
    assert prompt <= (row.large_estimate_nusd or 0) < prompt + 100 * 10_000


async def test_a_client_that_leaves_a_stream_is_charged_for_what_was_asked(gateway: Make) -> None:
    """The connection to the provider is closed, and what was sent until then is not free."""
    async with recorded(faults=always(Hang(20))) as upstream:
        app = gateway(large_base=upstream.url, large={"price": PRICE})
        async with served(app) as url, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(0.5)) as session:
            with pytest.raises(TimeoutError):
                await session.post(url + "/chat/completions", json=of(TALKING))
            (row,) = await rows_of(app, 1)
    assert (row.status, row.large_cost_nusd, row.large_attempts) == (499, None, 1)
    assert row.large_estimate_nusd == (row.request_bytes or 0) // 4 * 2_500


def test_what_was_told_in_part_is_only_filled_up() -> None:
    """Anthropic tells the prompt's tokens at the start: only the answer's are estimated, never below what is known."""
    told = Usage(1000, 1, 400, {"prompt_tokens": 1000, "completion_tokens": 1})
    known = FIXED.cost_usd(told)
    assert truncated_cost_usd(FIXED, told, known, 9999, chars=400) == pytest.approx(99 * 10 / 1e6)
    assert truncated_cost_usd(FIXED, told, known, 9999, chars=2) == 0.0
    assert truncated_cost_usd(FIXED, None, None, 4000, chars=401) == pytest.approx((1000 * 2.5 + 101 * 10) / 1e6)
    assert truncated_cost_usd(Scripted(), None, None, 4000, chars=4) == 0.0
    assert unit_prices(Scripted()) is None


CHAT = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
WHOLE = [
    {"choices": [{"message": {"content": "ab", "tool_calls": [CHAT, {**CHAT, "id": "c2"}]}}]},
    {
        "content": [
            {"type": "text", "text": "ab"},
            {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "c2", "name": "f", "input": {"a": 1}},
        ]
    },
    {
        "output": [
            {"type": "message", "content": [{"type": "output_text", "text": "ab"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": '{"a": 1}'},
        ]
    },
]


@pytest.mark.parametrize("answer", WHOLE)
def test_calls_are_read_off_a_whole_answer_in_every_dialect(answer: dict[str, Any]) -> None:
    """Ids, names and arguments; two calls of one tool stay two."""
    seen = AnswerSummary(keep=True)
    seen.whole(answer)
    assert [(call.call_id, call.tool, json.loads(call.arguments)) for call in seen.calls] == [
        ("c1", "f", {"a": 1}),
        ("c2", "f", {"a": 1}),
    ]
    assert seen.chars == 2 + 2 * len(seen.calls[0].arguments)
    message = seen.message()
    assert message is not None
    assert [call["id"] for call in message["tool_calls"]] == ["c1", "c2"]


STREAMS = [
    [
        {"choices": [{"delta": {"role": "assistant", "tool_calls": [{"index": 0, **CHAT}]}}]},
        {
            "choices": [
                {"delta": {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "f", "arguments": ""}}]}}
            ]
        },
        {"choices": [{"delta": {"tool_calls": [{"index": 1, "function": {"arguments": '{"a"'}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 1, "function": {"arguments": ": 1}"}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    ],
    [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "c1", "name": "f"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'}},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'}},
    ],
    [
        {
            "type": "response.output_item.added",
            "output_index": index,
            "item": {"type": "function_call", "call_id": f"c{index + 1}", "name": "f", "arguments": ""},
        }
        for index in (0, 1)
    ]
    + [
        {"type": "response.function_call_arguments.delta", "output_index": index, "delta": '{"a": 1}'}
        for index in (0, 1)
    ],
]


@pytest.mark.parametrize("pieces", STREAMS)
def test_calls_are_read_off_a_stream_in_every_dialect(pieces: list[dict[str, Any]]) -> None:
    """The same as of a whole answer."""
    seen = AnswerSummary(keep=True)
    for piece in pieces:
        seen.piece(piece)
    assert [(call.call_id, call.tool, call.arguments) for call in seen.calls] == [
        ("c1", "f", '{"a": 1}'),
        ("c2", "f", '{"a": 1}'),
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        {"choices": "x", "content": 3, "output": {"a": 1}},
        {"choices": [1, {"message": [], "delta": 4}]},
        {"choices": [{"message": {"tool_calls": [{"index": {}, "id": 4, "function": {"name": 9}}]}}]},
        {"type": "content_block_delta", "index": [], "delta": {"partial_json": 4}},
        {"type": 4, "content": [{"type": "tool_use", "id": None, "name": None, "input": 5}]},
        {"type": "response.output_item.added", "item": {"type": "function_call", "name": ["f"]}},
    ],
)
def test_a_hostile_answer_is_read_over(hostile: dict[str, Any]) -> None:
    """Wrong types are nothing; the stream goes on."""
    seen = AnswerSummary(keep=True)
    seen.whole(hostile)
    seen.piece(hostile)
    assert seen.large_calls == []


def test_the_number_of_calls_that_are_kept_is_bounded() -> None:
    """And so are their arguments: an answer that is larger is not kept in part."""
    seen = AnswerSummary(keep=True)
    seen.whole({"choices": [{"message": {"tool_calls": [CHAT] * 1000}}]})
    assert len(seen.calls) == MAX_CALLS
    huge = AnswerSummary(keep=True)
    huge.whole({"content": [{"type": "tool_use", "id": "a", "name": "f", "input": {"a": "x" * 1_000_001}}]})
    assert huge.message() is None
    assert huge.large_calls[0].tool == "f"
