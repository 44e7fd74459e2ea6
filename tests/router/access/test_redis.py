"""Limits that replicas share, on a real Redis: counted together, and what happens where it is down."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import pytest
import redis.asyncio
import structlog

from router.access.keys import VirtualKey, period_of
from router.access.limits import CountersDownError, LocalCounters, Reservation
from router.access.redis_counters import RedisCounters
from router.redis_link import RedisLink
from tests.router.access.conftest import RedisServer
from tests.router.access.test_keys import ACCESS, call, make_key
from tests.router.access.test_limits import CHAT_NUSD, LARGE, key, priced
from tests.router.cascade.test_gateway import CALL, ask
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.upstream.test_passthrough import CHAT, Provider

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")


@asynccontextmanager
async def counters(
    url: str,
    known: dict[str, dict[str, int]] | None = None,
    on_down: Literal["allow", "refuse"] = "allow",
    *,
    timeout_s: float = 60,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[RedisCounters]:
    """One replica's, which knows from the database what was spent."""
    link = RedisLink(url, timeout_s=timeout_s, failed=lambda: None, clock=clock)
    local = LocalCounters(time.monotonic)
    local.end_refresh(known or {}, {})
    try:
        yield RedisCounters(link, local, on_down=on_down)
    finally:
        await link.close()


async def _settled(one: RedisCounters) -> None:
    """What is settled behind a request's back has arrived."""
    await asyncio.gather(*one._link._behind)


async def test_two_replicas_share_rates_and_budgets(gateway: Make, redis_url: str, ledger_url: str) -> None:
    """Fifty requests at once over both: no more than the budget allows, plus the one across the line."""
    provider = Provider(0.2, orjson.dumps(CHAT))
    body = {**LARGE, "messages": [{"role": "user", "content": "x" * 400}]}
    access = {**ACCESS, "redis_url": redis_url, "on_redis_down": "refuse"}
    async with provider.running() as base:
        options: dict[str, Any] = {"large": priced(base), "access": access, "ledger": {"url": ledger_url}}
        app = gateway(**options)
        async with served(app) as url, served(gateway(**options)) as other:
            made = await make_key(url, hard_usd=5.5 * CHAT_NUSD / 1e9)
            slow = await make_key(url, requests_per_minute=3)
            await asyncio.sleep(0.5)
            headers = {"x-api-key": made["key"]}
            answers = await asyncio.gather(
                *(call((url, other)[i % 2], "POST", "/v1/chat/completions", body, headers) for i in range(50))
            )
            rows = await app.services.ledger.page()
            headers = {"x-api-key": slow["key"]}
            rates = [(await call(one, "POST", "/v1/chat/completions", body, headers))[0] for one in (url, other) * 2]
    assert {body.get("error", {}).get("code") for _, _, body in answers} == {None, "budget_spent"}
    assert sum(kept.charged_nusd for kept in rows) <= 6.5 * CHAT_NUSD
    assert rates == [200, 200, 200, 429]


async def test_redis_counts_as_this_process_does(redis_url: str) -> None:
    """The same requests, one after another, are let in, refused and told the same by both."""
    now = datetime.now(UTC)
    asked = key(hard_usd=100e-9, soft_usd=40e-9, requests_per_minute=20, tokens_per_minute=1000)
    local = LocalCounters(lambda: 0.0)
    async with counters(redis_url) as shared:
        for i in range(40):
            wanted = Reservation(37 * (i % 5), 7 * (i % 4))
            one, other = await local.take(asked, wanted, now), await shared.take(asked, wanted, now)
            assert (one.refused, one.soft, one.period) == (other.refused, other.soft, other.period)
            assert abs(one.requests_left - other.requests_left) <= 1
            assert abs(one.tokens_left - other.tokens_left) <= 40
            if one.refused is None:
                true = Reservation(11 * (i % 3), 5 * (i % 3))
                local.settle(asked, wanted, true, one)
                shared.settle(asked, wanted, true, other)
                await _settled(shared)


async def test_a_redis_that_was_emptied_learns_what_was_spent_from_the_database(redis_url: str) -> None:
    now = datetime.now(UTC)
    asked = key(hard_usd=100e-9)
    period = period_of(asked.window, now)
    async with counters(redis_url, {asked.key_id: {period: 99}}) as shared:
        taken = await shared.take(asked, Reservation(0, 5), now)
        assert taken.refused is None
        shared.settle(asked, Reservation(0, 5), Reservation(0, 1), taken)
        await _settled(shared)
        assert (await shared.take(asked, Reservation(0, 5), now)).refused == "budget"


async def test_a_replica_that_died_gives_back_what_it_held(redis_url: str) -> None:
    """Its holdings are kept by replica, with a time at which they are forgotten."""
    now = datetime.now(UTC)
    asked = key(hard_usd=10e-9)
    async with counters(redis_url) as dead, counters(redis_url) as other:
        assert (await dead.take(asked, Reservation(0, 50), now)).refused is None
        assert (await other.take(asked, Reservation(0, 5), now)).refused == "budget"
        name = f"smallcall:{{{asked.key_id}}}:holdings"
        client = redis.asyncio.Redis.from_url(redis_url)
        assert 0 < await client.pttl(name) <= 900_000
        await client.hset(name, dead._replica, f"50|{int(time.time() * 1000) - 1}|1")
        assert (await other.take(asked, Reservation(0, 5), now)).refused is None
        await client.aclose()


async def test_what_a_silent_redis_missed_of_holdings_is_put_right_by_the_next_request(
    redis_server: RedisServer,
) -> None:
    """A settlement is lost, and a request that nobody waits for any more is let in late: no money is held by either."""
    now, at = datetime.now(UTC), 0.0
    asked, need = key(hard_usd=100e-9), Reservation(0, 60)
    async with (
        counters(redis_server.url, on_down="refuse", timeout_s=2, clock=lambda: at) as one,
        counters(redis_server.url) as other,
    ):
        taken = await one.take(asked, need, now)
        assert taken.refused is None
        redis_server.pause()
        with pytest.raises(CountersDownError):
            await one.take(asked, need, now)
        one.settle(asked, need, Reservation(0, 1), taken)
        await _settled(one)
        redis_server.resume()
        assert (await other.take(asked, need, now)).refused == "budget"
        at += 2
        taken = await one.take(asked, need, now)
        assert taken.refused is None
        one.settle(asked, need, Reservation(0, 1), taken)
        await _settled(one)
        assert (await other.take(asked, need, now)).refused is None


async def test_requests_that_are_refused_or_given_up_hold_nothing(redis_url: str) -> None:
    """While others are under way, and with those that are taken at once."""
    now = datetime.now(UTC)
    asked, need = key(hard_usd=100e-9, requests_per_minute=3), Reservation(0, 30)
    async with counters(redis_url) as one, counters(redis_url) as other:
        given_up = [asyncio.ensure_future(one.take(asked, need, now)) for _ in range(20)]
        for task in given_up:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        await _settled(one)
        unlimited = replace(asked, requests_per_minute=None)
        taken = await asyncio.gather(*(one.take(asked, need, now) for _ in range(10)))
        for standing in taken:
            if standing.refused is None:
                one.settle(asked, need, Reservation(0, 0), standing)
        await _settled(one)
        assert [(await other.take(unlimited, need, now)).refused for _ in range(5)] == [*[None] * 4, "budget"]


async def _down(gateway: Make, server: RedisServer, on_down: str) -> tuple[list[int], Any, list[Any]]:
    """Statuses with Redis down and up again, for a key of two requests a minute."""
    access = {**ACCESS, "redis_url": server.url, "on_redis_down": on_down}
    with structlog.testing.capture_logs() as logs:
        async with served(gateway(small=ScriptedSmall(CALL), access=access)) as url:
            made, free = await make_key(url, requests_per_minute=2), await make_key(url)
            headers = {"x-api-key": made["key"]}
            statuses = [(await call(url, "POST", "/v1/chat/completions", ask(), headers))[0]]
            await asyncio.to_thread(server.stop)
            answers = [await call(url, "POST", "/v1/chat/completions", ask(), headers) for _ in range(3)]
            unlimited = await call(url, "POST", "/v1/chat/completions", ask(), {"x-api-key": free["key"]})
            assert unlimited[0] == 200  # nothing to count
            await asyncio.to_thread(server.start)
            await asyncio.sleep(1.1)
            again = await call(url, "POST", "/v1/chat/completions", ask(), headers)
            metrics = (await call(url, "GET", "/metrics"))[2]
    assert "smallcall_redis_failures_total" in metrics
    assert any(line["event"] == "redis_down" for line in logs)
    assert server.url not in str(logs)
    return [*statuses, *(status for status, _, _ in answers), again[0]], answers[0], logs


async def test_where_redis_is_down_each_replica_counts_by_itself(gateway: Make, redis_server: RedisServer) -> None:
    """With what came to it before, and also where Redis comes back and has forgotten it."""
    statuses, _, _ = await _down(gateway, redis_server, "allow")
    assert statuses == [200, 200, 429, 429, 429]


async def test_where_redis_is_down_limited_keys_may_be_refused(gateway: Make, redis_server: RedisServer) -> None:
    statuses, (_, headers, body), _ = await _down(gateway, redis_server, "refuse")
    assert statuses == [200, 503, 503, 503, 200]
    assert (body["error"]["code"], headers["retry-after"]) == ("access_unavailable", "1")


def test_budgets_stay_exact_in_redis_doubles() -> None:
    """The largest budget, in nano-dollars, is a whole number that a double holds."""
    largest: VirtualKey = key(hard_usd=1_000_000.0)
    assert largest.hard_nusd is not None
    assert largest.hard_nusd < 2**53
    assert float(largest.hard_nusd) == largest.hard_nusd
