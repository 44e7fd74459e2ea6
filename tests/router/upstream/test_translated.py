"""The large model behind litellm: retries, time-outs, errors, streams, usage and prices, against real HTTP servers."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from evaluation.demo.rows import load_demo
from evaluation.recorded.faults import Cut, Disconnect, Garbage, Hang, Schedule, Status, always, in_turn, never
from evaluation.recorded.models import LARGE_MODELS
from evaluation.recorded.server import RecordedServer
from router.constants import Constants
from router.lab.demo import GPT_4O
from router.settings import Large, Price
from router.upstream.breaker import Breaker
from router.upstream.large_model import (
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
    Usage,
    usage_of,
)
from router.upstream.prices import FixedPrices
from router.upstream.translated import LitellmModel

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

ROWS = load_demo()
CALLING = next(row for row in ROWS if row.recorded.calls)
TALKING = next(row for row in ROWS if not row.recorded.calls)
MODEL = "openai/gpt-4o-2024-08-06"
KEY = "sk-secret-of-the-gateway"


def of(row: Any, **changes: Any) -> dict[str, Any]:
    return {"model": "any", "messages": row.case.messages, "tools": row.case.tools, **changes}


class Waits:
    """Records pauses instead of making them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@asynccontextmanager
async def model(
    url: str, *, constants: Constants | None = None, **settings: Any
) -> AsyncIterator[tuple[LitellmModel, Waits, list[str]]]:
    """A model that asks `url`, its pauses, and the codes of what it retried."""
    waits, retried = Waits(), list[str]()
    configured = Large.model_validate({"model": MODEL, "api_base": url, "api_key": KEY, **settings})
    made = LitellmModel(configured, rng=random.Random(1), retried=retried.append, sleep=waits, constants=constants)
    async with made.running():
        yield made, waits, retried


def recorded(faults: Schedule = never) -> RecordedServer:
    return RecordedServer([row.recorded for row in ROWS], [row.case for row in ROWS], faults=faults)


async def test_an_answer_keeps_openais_shape_and_the_providers_usage() -> None:
    """No field of litellm's own making is left, and the cost is usage by price."""
    async with recorded() as upstream, model(upstream.url) as (large, _, _):
        body = await large.complete(of(CALLING))
        prose = await large.complete(of(TALKING))
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    (choice,) = body["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content", "refusal", "tool_calls"}
    assert choice["message"]["tool_calls"][0].keys() == {"id", "type", "function"}
    assert prose["choices"][0]["message"]["content"] == TALKING.recorded.text
    given = CALLING.recorded
    usage = usage_of(body)
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (given.input_tokens, given.output_tokens)
    dollars = (given.input_tokens or 0) * 2.5e-6 + (given.output_tokens or 0) * 1e-5
    assert large.cost_usd(usage) == pytest.approx(dollars)


async def test_fields_that_litellm_does_not_know_reach_the_provider_and_never_steer_litellm() -> None:
    """`mock_response` and `api_base` in a body are the provider's business; the client's dictionary stays as it was."""
    sent = of(CALLING, metadata={"a": "b"}, mock_response="boo", api_base="http://127.0.0.1:9", top_k=3, user="u")
    before = repr(sent)
    async with recorded() as upstream, model(upstream.url) as (large, _, _):
        await large.complete(sent)
        seen = upstream.received[-1].body or {}
    assert repr(sent) == before
    for field in ("metadata", "mock_response", "api_base", "top_k", "user", "messages", "tools"):
        assert seen[field] == sent[field]
    assert seen["model"] == MODEL.removeprefix("openai/")


@pytest.mark.parametrize(
    ("fault", "retries", "kind", "status", "code", "asked"),
    [
        (Status(500), 1, UpstreamUnavailable, 502, "upstream_unavailable", 2),
        (Status(503), 1, UpstreamUnavailable, 503, "server_is_overloaded", 2),
        (Status(529), 1, UpstreamUnavailable, 503, "server_is_overloaded", 2),
        (Disconnect(), 1, UpstreamUnavailable, 502, "upstream_unavailable", 2),
        (Garbage(), 0, UpstreamUnavailable, 502, "upstream_unavailable", 1),
        (Cut(), 0, UpstreamUnavailable, 502, "upstream_unavailable", 1),
        (Hang(30), 1, UpstreamTimeout, 504, "upstream_timeout", 2),
        (Status(429), 1, UpstreamRateLimited, 429, "rate_limit_exceeded", 2),
        (Status(401), 2, UpstreamUnavailable, 502, "upstream_auth", 1),
        (Status(403), 2, UpstreamUnavailable, 502, "upstream_auth", 1),
        (Status(422), 2, UpstreamRejected, 422, "injected_fault", 1),
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_each_fault_is_one_error_of_our_tree(
    fault: Any, retries: int, kind: type[UpstreamError], status: int, code: str, asked: int, streamed: bool
) -> None:
    """Retried as often as is set where that can help, and never told with a key or an address."""
    if streamed and isinstance(fault, Cut | Garbage):
        fault = Cut(chunks=0)
    async with recorded(always(fault)) as upstream:
        async with model(upstream.url, retries=retries, timeout_s=0.5) as (large, _, retried):
            with pytest.raises(UpstreamError) as caught:
                await (large.stream(of(CALLING)) if streamed else large.complete(of(CALLING)))
        assert upstream.totals["requests"] == asked
    error = caught.value
    assert (type(error), error.status, error.code) == (kind, status, code)
    assert len(retried) == asked - 1
    assert KEY not in error.message
    assert "127.0.0.1" not in error.message
    assert "litellm" not in error.message.lower()


async def test_a_provider_says_how_long_to_wait() -> None:
    """Retry-After is kept to; one that is too long ends the trying and is passed on; else pauses grow with jitter."""
    day = in_turn([Status(429, 3), Status(500), Status(500)])
    async with recorded(day) as upstream, model(upstream.url, retries=3) as (large, waits, retried):
        await large.complete(of(CALLING))
    assert waits.seconds[0] == 3
    assert 0.25 <= waits.seconds[1] < 0.75
    assert 0.5 <= waits.seconds[2] < 1.5
    assert retried == ["rate_limit_exceeded", "upstream_unavailable", "upstream_unavailable"]
    async with recorded(always(Status(429, 90))) as upstream, model(upstream.url) as (large, waits, _):
        with pytest.raises(UpstreamRateLimited) as caught:
            await large.complete(of(CALLING))
    assert (caught.value.retry_after_s, waits.seconds) == (90, [])


async def test_a_provider_that_is_down_is_left_alone_for_a_while() -> None:
    """After so many failures in a row nothing is asked."""
    async with recorded(always(Status(500))) as upstream:
        async with model(upstream.url, retries=0, constants=Constants(breaker_failures=2)) as (large, _, _):
            for code in ("upstream_unavailable", "upstream_unavailable", "upstream_circuit_open"):
                with pytest.raises(UpstreamUnavailable) as caught:
                    await large.complete(of(CALLING))
                assert caught.value.code == code
        assert upstream.totals["requests"] == 2


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def provider(handler: Handler) -> AsyncIterator[str]:
    """A provider of one's own on a free port."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def event(delta: str, finish: str = "null") -> bytes:
    """One chunk as it goes over the wire."""
    return (
        b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
        + delta.encode() + b',"finish_reason":' + finish.encode() + b"}]}\n\n"
    )  # fmt: skip


def streaming(*pieces: bytes | float) -> Handler:
    """Sends the pieces, waiting where one is a number of seconds, and ends cleanly."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            if isinstance(piece, bytes):
                await response.write(piece)
            else:
                await asyncio.sleep(piece)
        await response.write_eof()
        return response

    return handler


FIRST = event('{"role":"assistant","content":"Hel"}')


async def test_usage_that_was_not_reported_is_not_invented() -> None:
    """litellm would count tokens itself; a cost made of that would not match any bill."""
    answering = streaming(FIRST, event("{}", '"stop"'), b"data: [DONE]\n\n")
    async with provider(answering) as url, model(url) as (large, _, _):
        stream = await large.stream(of(TALKING))
        chunks = [chunk async for chunk in stream]
        await stream.aclose()
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize(
    ("seconds", "late_s"), [(0.0, 0.0), (20.0, 0.0), (20.0, 0.3)], ids=["ended", "stalled", "stalled-read-late"]
)
async def test_a_stream_without_an_end_is_an_error(seconds: float, late_s: float) -> None:
    """A provider that closes in mid-answer, or says nothing more, did not finish: no `stop` is made up for it.

    Read late, the socket's time is over before our own, as on a busy machine: the same error.
    """
    async with provider(streaming(FIRST, seconds)) as url, model(url, timeout_s=0.7) as (large, _, _):
        stream = await large.stream(of(TALKING))
        await asyncio.sleep(late_s)
        seen: list[str] = []

        async def read() -> None:
            async for chunk in stream:
                seen.append(chunk["choices"][0]["delta"]["content"])

        with pytest.raises(UpstreamError) as caught:
            await read()
        await stream.aclose()
    assert seen == ["Hel"]
    assert caught.value.code == ("upstream_timeout" if seconds else "upstream_unavailable")


async def test_closing_a_stream_closes_the_providers_connection() -> None:
    """What nobody reads any more is not paid for."""
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(FIRST)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            left.set()
            raise
        return response

    async with provider(handler) as url, model(url) as (large, _, _):
        stream = await large.stream(of(TALKING))
        await stream.aclose()
        await asyncio.wait_for(left.wait(), 5)


# ── prices ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def usage(prompt: int, completion: int, cached: int = 0) -> Usage:
    reported = usage_of(
        {
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            }
        }
    )
    assert reported is not None
    return reported


async def loaded(large: LitellmModel) -> None:
    while not large.ready:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def test_cached_tokens_have_their_own_price() -> None:
    """By litellm's map: half price for what the provider had cached."""
    async with model("http://127.0.0.1:9") as (large, _, _):
        await loaded(large)
        assert large.cost_usd(usage(1000, 100)) == pytest.approx(1000 * 2.5e-6 + 100 * 1e-5)
        assert large.cost_usd(usage(1000, 100, 400)) == pytest.approx(600 * 2.5e-6 + 400 * 1.25e-6 + 100 * 1e-5)


async def test_the_demos_price_is_litellms() -> None:
    """The demo's price of GPT-4o is the one in litellm's map."""
    async with model("http://127.0.0.1:9") as (large, _, _):
        await loaded(large)
        assert large.cost_usd(usage(1000, 100)) == pytest.approx(GPT_4O.cost_usd(1000, 100))


async def test_a_model_without_a_price_costs_what_is_set_or_is_unknown() -> None:
    """Unknown is None, never nothing."""
    async with model("http://127.0.0.1:9", model="openai/of-tomorrow") as (large, _, _):
        await loaded(large)
        assert large.cost_usd(usage(1000, 100)) is None
    price = Price(input_usd_per_mtok=2, output_usd_per_mtok=8, cached_input_usd_per_mtok=1)
    async with model("http://127.0.0.1:9", model="openai/of-tomorrow", price=price) as (large, _, _):
        assert large.cost_usd(usage(1000, 100, 400)) == pytest.approx((600 * 2 + 400 * 1 + 100 * 8) / 1e6)
    flat = FixedPrices(Price(input_usd_per_mtok=2, output_usd_per_mtok=8))
    assert flat.cost_usd(usage(1000, 0, 400)) == pytest.approx(0.002)


def test_cache_writes_have_the_operators_own_prices_as_litellm_tells_them() -> None:
    """What litellm's answers of Anthropic, and other providers', tell of them."""
    details = {"cached_tokens": 1000, "cache_write_tokens": 100}
    kept = {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60}
    told = {"prompt_tokens": 1110, "completion_tokens": 20, "prompt_tokens_details": details}
    translated = {**details, "cache_creation_tokens": 100, "cache_creation_token_details": kept}
    prices = FixedPrices(
        Price(
            input_usd_per_mtok=2,
            output_usd_per_mtok=10,
            cached_input_usd_per_mtok=1,
            cache_write_usd_per_mtok=3,
        )
    )
    for usage, writes in (
        (told, 100 * 3),
        ({**told, "prompt_tokens_details": translated, "cache_creation_input_tokens": 100}, 100 * 3),
        ({**told, "prompt_tokens_details": {**translated, "cache_creation_token_details": None}}, 100 * 3),
    ):
        found = usage_of({"usage": usage})
        assert found is not None
        assert prices.cost_usd(found) == pytest.approx((10 * 2 + 1000 + writes + 20 * 10) / 1e6)


@pytest.mark.parametrize("answer", [{}, {"usage": None}, {"usage": {"prompt_tokens": 0}}, {"usage": {"cost": 1}}])
def test_no_usage_is_none(answer: dict[str, Any]) -> None:
    """What a provider leaves out is not known."""
    assert usage_of(answer) is None


# ── the breaker ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, error: BaseException) -> None:
    with pytest.raises(type(error)), breaker.attempt():
        raise error


def test_an_open_circuit_lets_one_request_try_and_closes_when_it_works() -> None:
    """One probe at a time; a failed one opens it again at once; answers, refusals too, close it."""
    clock = Clock()
    breaker = Breaker(2, 10.0, clock)
    down, refused = UpstreamTimeout(504, "t", "m"), UpstreamRejected(400, "r", "m")
    fail(breaker, down)
    fail(breaker, refused)
    fail(breaker, down)
    fail(breaker, down)
    with pytest.raises(UpstreamUnavailable) as caught, breaker.attempt():
        pass
    assert (caught.value.code, caught.value.retry_after_s) == ("upstream_circuit_open", 10.0)
    clock.now = 10.0
    with breaker.attempt(), pytest.raises(UpstreamUnavailable), breaker.attempt():
        pass
    with breaker.attempt(), breaker.attempt():
        pass
    fail(breaker, down)
    fail(breaker, down)
    clock.now = 20.0
    fail(breaker, down)
    with pytest.raises(UpstreamUnavailable), breaker.attempt():
        pass


def test_a_cancelled_probe_does_not_lock_the_circuit() -> None:
    """The next one may try."""
    clock = Clock()
    breaker = Breaker(1, 10.0, clock)
    fail(breaker, UpstreamTimeout(504, "t", "m"))
    clock.now = 10.0
    fail(breaker, asyncio.CancelledError())
    with breaker.attempt():
        pass


async def test_the_studys_prices_are_litellms() -> None:
    """Where litellm's map has a model of the price list, both say the same."""
    known = 0
    for listed in LARGE_MODELS:
        async with model("http://127.0.0.1:9", model=f"openai/{listed.name}") as (large, _, _):
            await loaded(large)
            cost = large.cost_usd(usage(1000, 100))
            if cost is not None:
                known += 1
                assert cost == pytest.approx(listed.prices.cost_usd(1000, 100)), listed.name
    assert known >= 3
