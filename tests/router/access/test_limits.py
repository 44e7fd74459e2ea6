"""Budgets and rates through the gateway's door, in one process: refused, told, settled, never overspent by much."""

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import aiohttp
import openai
import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from router.access.estimate import estimate
from router.access.keys import VirtualKey, minted, new_key
from router.access.limits import LimitStatus, LocalCounters, Reservation
from router.ledger.row import DecisionRow
from router.ledger.store import Ledger
from router.upstream.estimates import UnitPrices, unit_prices
from router.upstream.large_model import Usage
from tests.router.access.test_keys import ACCESS, call, make_key
from tests.router.cascade.test_gateway import CALL, CALLING, Scripted, ask, of, recorded, rows_of
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.ledger.test_store import row
from tests.router.upstream.test_passthrough import CHAT, Provider, large

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

PRICE = {"input_usd_per_mtok": 100, "output_usd_per_mtok": 1000, "cached_input_usd_per_mtok": 10}
CHAT_NUSD = (60 * 100 + 40 * 10 + 10 * 1000) * 1000
"""What `CHAT` costs at that price, nano-dollars: 60 fresh tokens, 40 cached ones, 10 of answer."""
LARGE = {"model": "smallcall/large", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10}


def priced(url: str, **more: Any) -> dict[str, Any]:
    return large("openai/gpt-4o-2024-08-06", url, price=PRICE, **more)


async def test_spent_budgets_refuse_in_each_dialects_shape(gateway: Make, ledger_url: str) -> None:
    """402 with the time until the window is over; no row, and the provider is not asked."""
    provider = Provider(orjson.dumps(CHAT))
    async with provider.running() as base:
        app = gateway(large=priced(base), access=ACCESS, ledger={"url": ledger_url})
        async with served(app) as url:
            made = await make_key(url, hard_usd=CHAT_NUSD / 1e9, window="day")
            headers = {"x-api-key": made["key"]}
            first = await call(url, "POST", "/v1/chat/completions", LARGE, headers)
            chat = await call(url, "POST", "/v1/chat/completions", LARGE, headers)
            responses = await call(url, "POST", "/v1/responses", {"model": "m", "input": "x", "stream": True}, headers)
            messages = await call(url, "POST", "/v1/messages", LARGE, headers)
            (kept,) = await app.services.ledger.page()
            listed = (await call(url, "GET", "/admin/keys", None, {"x-api-key": ACCESS["admin_key"]}))[2]["data"]
    assert first[0] == 200
    assert (kept.charged_nusd, kept.large_cost_nusd, listed[0]["spent_usd"]) == (CHAT_NUSD, CHAT_NUSD, CHAT_NUSD / 1e9)
    assert [status for status, _, _ in (chat, responses, messages)] == [402, 402, 402]
    assert len(provider.asked) == 1
    error = {"type": "insufficient_quota", "param": None, "code": "budget_spent"}
    assert chat[2]["error"] == {"message": "the key's budget for this day is spent", **error}
    assert responses[2]["error"] == chat[2]["error"]
    assert (messages[2]["type"], messages[2]["error"]["type"]) == ("error", "billing_error")
    assert 0 < int(chat[1]["retry-after"]) <= 86_400


async def test_a_budget_for_life_has_no_time_to_come_again(gateway: Make) -> None:
    provider = Provider(orjson.dumps(CHAT))
    async with provider.running() as base, served(gateway(large=priced(base), access=ACCESS)) as url:
        made = await make_key(url, hard_usd=1e-9, window="total")
        headers = {"x-api-key": made["key"]}
        assert (await call(url, "POST", "/v1/chat/completions", LARGE, headers))[0] == 200
        status, told, body = await call(url, "POST", "/v1/chat/completions", LARGE, headers)
    assert (status, body["error"]["message"]) == (402, "the key's budget is spent")
    assert "retry-after" not in told


async def test_a_spent_soft_budget_is_told_once_in_the_log_and_in_every_answer(gateway: Make) -> None:
    """Also in a stream's headers and in the metrics; nothing is refused."""
    provider = Provider(orjson.dumps(CHAT))
    with structlog.testing.capture_logs() as logs:
        async with provider.running() as base, served(gateway(large=priced(base), access=ACCESS)) as url:
            made = await make_key(url, soft_usd=1e-9)
            headers = {"x-api-key": made["key"]}
            answers = [await call(url, "POST", "/v1/chat/completions", LARGE, headers) for _ in range(3)]
            metrics = (await call(url, "GET", "/metrics"))[2]
    assert [status for status, _, _ in answers] == [200, 200, 200]
    assert [told.get("x-smallcall-budget") for _, told, _ in answers] == [
        None,
        "soft_budget_spent",
        "soft_budget_spent",
    ]
    assert [line["key"] for line in logs if line["event"] == "soft_budget_spent"] == [made["id"]]
    assert "smallcall_soft_budgets_spent_total 1.0" in metrics


async def test_fifty_requests_at_once_overspend_by_no_more_than_the_one_across_the_line(gateway: Make) -> None:
    """Each holds what it will cost: only one may reach beyond the budget, however many ask before the first answer."""
    provider = Provider(0.3, orjson.dumps(CHAT))
    # A body whose reckoning is not below what the provider will bill: 100 tokens and more of prompt, 10 of answer.
    body = {**LARGE, "messages": [{"role": "user", "content": "x" * 400}]}
    async with provider.running() as base:
        app = gateway(large=priced(base), access=ACCESS)
        async with served(app) as url:
            made = await make_key(url, hard_usd=5.5 * CHAT_NUSD / 1e9)
            headers = {"x-api-key": made["key"]}
            answers = await asyncio.gather(
                *(call(url, "POST", "/v1/chat/completions", body, headers) for _ in range(50))
            )
            late = await call(url, "POST", "/v1/chat/completions", body, headers)
            rows = await app.services.ledger.page()
    served_ones = sum(status == 200 for status, _, _ in answers)
    assert {status for status, _, _ in answers} == {200, 402}
    spent = sum(kept.charged_nusd for kept in rows)
    assert len(rows) == served_ones + (late[0] == 200)
    assert served_ones <= 6
    assert spent <= 5.5 * CHAT_NUSD + CHAT_NUSD


async def test_what_is_held_is_given_back_when_the_answer_is_small_or_fails(gateway: Make) -> None:
    """A small answer costs the key no money, a refused one nothing at all: the budget is as open as before."""
    provider = Provider(b'{"error": {"message": "no"}}', status=400)
    async with provider.running() as base:
        app = gateway(small=ScriptedSmall(CALL), large=priced(base), access=ACCESS)
        async with served(app) as url:
            made = await make_key(url, hard_usd=1e-6, tokens_per_minute=3000)
            headers = {"x-api-key": made["key"]}
            for body in (ask(), LARGE, ask(), LARGE):
                status, told, _ = await call(url, "POST", "/v1/chat/completions", body, headers)
                assert status == (400 if body is LARGE else 200)
            rows = await app.services.ledger.page()
    assert [kept.charged_nusd for kept in rows] == [0, 0, 0, 0]
    assert int(told["x-ratelimit-remaining-tokens"]) > 2500  # each draft holds over a third of the bucket


async def test_a_stream_cut_short_is_charged_what_was_held_for_it(gateway: Make) -> None:
    """By the client; its usage is never told, so leaving early is no way around a budget."""
    first = {"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "a"}}]}
    provider = Provider(b"data: " + orjson.dumps(first) + b"\n\n", 30.0)
    async with provider.running() as base:
        app = gateway(large=priced(base), access=ACCESS)
        async with served(app) as url:
            made = await make_key(url, hard_usd=1.0)
            body = {**LARGE, "stream": True}
            async with (
                aiohttp.ClientSession(headers={"x-api-key": made["key"]}) as session,
                session.post(url + "/chat/completions", json=body) as response,
            ):
                await response.content.readany()
                response.close()
            (kept,) = await rows_of(app, 1)
            size = len(json.dumps(body))
        async with Ledger.open(_url(app)) as ledger:
            spent = await _spent(ledger, made["id"])
    held = estimate(size, body, 1024, UnitPrices(100, 10, 1000)).cost_nusd
    assert (kept.status, kept.large_cost_nusd, kept.charged_nusd) == (499, None, held)
    assert spent == held > 0


def _url(app: Any) -> str:
    return str(app.services.ledger.engine.url.render_as_string(hide_password=False))


async def _spent(ledger: Ledger, key_id: str) -> int:
    from router.access.store import KeyStore

    return (await KeyStore(ledger.engine).spent(datetime.now(UTC)))[key_id]["total"]


async def test_spending_survives_a_restart_and_is_seen_by_another_process(gateway: Make, ledger_url: str) -> None:
    """In the transaction of the row: a gateway that starts anew, or runs beside, knows what was spent."""
    provider = Provider(orjson.dumps(CHAT))
    async with provider.running() as base:
        options: dict[str, Any] = {"large": priced(base), "access": ACCESS, "ledger": {"url": ledger_url}}
        async with served(gateway(**options)) as url, served(gateway(**options)) as other:
            made = await make_key(url, hard_usd=1.5 * CHAT_NUSD / 1e9)
            headers = {"x-api-key": made["key"]}
            await asyncio.sleep(0.5)
            spent = [(await call(one, "POST", "/v1/chat/completions", LARGE, headers))[0] for one in (url, other)]
            await asyncio.sleep(0.5)
            seen = [(await call(one, "POST", "/v1/chat/completions", LARGE, headers))[0] for one in (url, other)]
        async with served(gateway(**options)) as url:
            anew = (await call(url, "POST", "/v1/chat/completions", LARGE, headers))[0]
    assert (spent, seen, anew) == ([200, 200], [402, 402], 402)


async def test_a_budget_cannot_be_kept_where_the_price_is_not_known(gateway: Make) -> None:
    """Said at once, instead of serving for nothing; what the small model alone may answer goes on."""
    async with served(gateway(small=ScriptedSmall(CALL), upstream=Scripted(), access=ACCESS)) as url:
        made = await make_key(url, hard_usd=1.0)
        headers = {"x-api-key": made["key"]}
        status, _, told = await call(url, "POST", "/v1/chat/completions", ask(), headers)
        pinned = await call(url, "POST", "/v1/chat/completions", ask(model="smallcall/small"), headers)
    assert (status, told["error"]["code"]) == (503, "price_unknown")
    assert "large.price" in told["error"]["message"]
    assert pinned[0] == 200


# ── rates ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_more_requests_than_the_rate_get_429_with_openais_headers(gateway: Make) -> None:
    """In each dialect's own shape; the official client reads it as what it is."""
    async with served(gateway(small=ScriptedSmall(CALL), access=ACCESS)) as url:
        made = await make_key(url, requests_per_minute=2)
        headers = {"authorization": f"Bearer {made['key']}"}
        answers = [await call(url, "POST", "/v1/chat/completions", ask(), headers) for _ in range(3)]
        message = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        anthropics = await call(url, "POST", "/v1/messages", message, headers)
        client = openai.AsyncOpenAI(base_url=url, api_key=made["key"], max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.responses.create(model="m", input="hi")
        await client.close()
    assert [status for status, _, _ in answers] == [200, 200, 429]
    assert [told["x-ratelimit-remaining-requests"] for _, told, _ in answers] == ["1", "0", "0"]
    _, told, body = answers[2]
    assert (told["x-ratelimit-limit-requests"], told["retry-after"]) == ("2", "30")
    assert told["x-ratelimit-reset-requests"][-1] == "s"
    assert (body["error"]["type"], body["error"]["code"]) == ("requests", "rate_limit_exceeded")
    assert (anthropics[0], anthropics[2]["error"]["type"]) == (429, "rate_limit_error")
    assert caught.value.code == "rate_limit_exceeded"


async def test_tokens_are_held_before_and_settled_after(gateway: Make) -> None:
    """What a request did not use comes back at once; what it used beyond its reckoning is owed."""
    async with recorded() as upstream:
        app = gateway(large_base=upstream.url, access={**ACCESS, "assumed_output_tokens": 50_000})
        async with served(app) as url:
            made = await make_key(url, tokens_per_minute=60_000)
            headers = {"x-api-key": made["key"]}
            first = await call(url, "POST", "/v1/chat/completions", of(CALLING), headers)
            second = await call(url, "POST", "/v1/chat/completions", of(CALLING), headers)
            third = await call(url, "POST", "/v1/chat/completions", of(CALLING), headers)
    for status, told, _ in (first, second, third):
        assert (status, told["x-ratelimit-limit-tokens"]) == (200, "60000")
        assert int(told["x-ratelimit-remaining-tokens"]) < 10_000


async def test_counting_tokens_takes_a_request_and_no_money(gateway: Make) -> None:
    async with served(gateway(small=ScriptedSmall(CALL), access=ACCESS)) as url:
        made = await make_key(url, requests_per_minute=1, models=["claude*"])
        headers = {"x-api-key": made["key"]}
        body = {"model": "claude-x", "messages": [{"role": "user", "content": "hi"}]}
        answers = [await call(url, "POST", "/v1/messages/count_tokens", body, headers) for _ in range(2)]
        narrow = await make_key(url, models=["claude*"])
        asked = {**body, "model": "gpt"}
        other = await call(url, "POST", "/v1/messages/count_tokens", asked, {"x-api-key": narrow["key"]})
    assert [answer[0] for answer in answers] == [
        503,
        429,
    ]  # no large model that could count; and the second is too much
    assert other[0] == 403


async def test_a_client_that_leaves_before_its_answer_gives_back_what_it_held(gateway: Make) -> None:
    """While a draft is written: nothing was asked of the large model, so nothing is charged."""
    app = gateway(small=ScriptedSmall(CALL, pause_s=0.2), access=ACCESS)
    async with served(app) as url:
        made = await make_key(url, tokens_per_minute=3000)
        headers = {"x-api-key": made["key"]}
        for _ in range(4):  # each holds over a third of the bucket
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(0.3):
                    await call(url, "POST", "/v1/chat/completions", ask(), headers)
        rows = await rows_of(app, 4)
    assert [(kept.status, kept.charged_nusd) for kept in rows] == [(499, 0)] * 4


async def test_bodies_that_cannot_be_read_count_as_requests(gateway: Make) -> None:
    """The rate is asked before the body: what is beyond it is not waited for."""
    async with served(gateway(small=ScriptedSmall(CALL), access=ACCESS)) as url:
        made = await make_key(url, requests_per_minute=1)
        headers = {"x-api-key": made["key"]}
        first = await call(url, "POST", "/v1/chat/completions", b"{", headers)
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        told = f"x-api-key: {made['key']}\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n"
        writer.write(f"POST /v1/chat/completions HTTP/1.1\r\n{told}".encode())
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 429")
        writer.close()
        _, again, body = await call(url, "POST", "/v1/messages/count_tokens", b"{", headers)
    assert first[0] == 400
    assert (body["type"], body["error"]["type"], again["retry-after"]) == ("error", "rate_limit_error", "60")
    assert (again["x-ratelimit-limit-requests"], again["x-ratelimit-remaining-requests"]) == ("1", "0")


async def test_no_number_of_answers_holds_more_than_there_may_be(gateway: Make) -> None:
    """Refused where it is a field of the dialect, else not reckoned with; a client that leaves keeps its budget."""
    provider = Provider(30.0)
    async with provider.running() as base:
        app = gateway(large=priced(base, forward=["chat_completions", "messages"]), access=ACCESS)
        async with served(app) as url:
            made = await make_key(url, hard_usd=1000.0)
            headers, many = {"x-api-key": made["key"]}, {**LARGE, "n": 10**15}
            status, _, told = await call(url, "POST", "/v1/chat/completions", many, headers)
            leaving = asyncio.create_task(call(url, "POST", "/v1/messages", many, headers))
            async with asyncio.timeout(30):
                while not provider.asked:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            leaving.cancel()
            (kept,) = await rows_of(app, 1)
    assert (status, told["error"]["param"]) == (400, "n")
    assert (kept.status, kept.client_disconnected) == (499, True)
    assert 0 < kept.charged_nusd <= 128 * 10 * 1_000_000 + 100 * 100_000


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def key(**fields: Any) -> VirtualKey:
    return minted(new_key({"name": "n", **fields}), NOW)[0]


NOW = datetime(2026, 5, 31, 12, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


async def test_a_bucket_refills_all_the_time_and_holds_one_minute() -> None:
    clock = Clock()
    counters, asked = LocalCounters(clock), key(requests_per_minute=60)
    for _ in range(60):
        assert (await counters.take(asked, Reservation(0, 0), NOW)).refused is None
    refused = await counters.take(asked, Reservation(0, 0), NOW)
    assert (refused.refused, refused.retry_after_s, refused.requests_reset_s) == ("requests", 1.0, 60.0)
    clock.s = 0.5
    assert (await counters.take(asked, Reservation(0, 0), NOW)).retry_after_s == pytest.approx(0.5)
    clock.s = 3600.0
    assert (await counters.take(asked, Reservation(0, 0), NOW)).requests_left == 59


async def test_a_request_larger_than_the_bucket_passes_a_full_one_and_leaves_a_debt() -> None:
    """It is never refused for ever; those behind it wait until the debt is paid."""
    clock = Clock()
    counters, asked = LocalCounters(clock), key(tokens_per_minute=600)
    taken = await counters.take(asked, Reservation(1200, 0), NOW)
    assert (taken.refused, taken.tokens_left) == (None, 0)
    refused = await counters.take(asked, Reservation(10, 0), NOW)
    assert (refused.refused, refused.retry_after_s) == ("tokens", pytest.approx(61.0))
    counters.settle(asked, Reservation(1200, 0), Reservation(590, 0), taken)
    assert (await counters.take(asked, Reservation(10, 0), NOW)).refused is None


async def test_a_new_window_opens_the_budget_and_late_answers_count_in_the_old_one() -> None:
    counters, asked = LocalCounters(Clock()), key(hard_usd=1e-6, window="month")
    taken = await counters.take(asked, Reservation(0, 900), NOW)
    assert (await counters.take(asked, Reservation(0, 900), NOW)).refused is None
    assert (await counters.take(asked, Reservation(0, 900), NOW)).refused == "budget"
    june = NOW + timedelta(days=1)
    counters.settle(asked, Reservation(0, 900), Reservation(0, 5000), taken)
    assert (await counters.take(asked, Reservation(0, 100), NOW)).refused == "budget"
    fresh = await counters.take(asked, Reservation(0, 0), june)
    assert (fresh.refused, fresh.period) == (None, "2026-06")
    counters.settle(asked, Reservation(0, 900), Reservation(0, 5000), taken)
    assert (await counters.take(asked, Reservation(0, 0), june)).refused is None


async def test_a_look_at_the_database_corrects_the_count_and_loses_nothing_settled_meanwhile() -> None:
    counters, asked = LocalCounters(Clock()), key(hard_usd=1.0)
    taken = await counters.take(asked, Reservation(0, 0), NOW)
    counters.settle(asked, Reservation(0, 0), Reservation(0, 400_000_000), taken)
    counters.begin_refresh()
    counters.settle(asked, Reservation(0, 0), Reservation(0, 100_000_000), taken)
    counters.end_refresh({asked.key_id: {"2026-05": 899_999_999}}, {asked.key_id: asked})
    assert (await counters.take(asked, Reservation(0, 1), NOW)).refused is None
    assert (await counters.take(asked, Reservation(0, 0), NOW)).refused == "budget"


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 100)), min_size=1, max_size=60),
    st.integers(1, 400),
    st.lists(st.integers(0, 59), max_size=60),
)
def test_a_budget_is_never_overspent_by_more_than_one_request_and_bad_guesses(
    asked: list[tuple[int, int]], hard: int, order: list[int]
) -> None:
    """For any mix of reckonings, true costs and moments of settlement."""
    counters, one = LocalCounters(Clock()), key(hard_usd=hard / 1e9)
    under_way: list[tuple[int, int, LimitStatus]] = []
    spent = beyond = largest = 0

    async def play() -> None:
        nonlocal spent, beyond, largest
        for index, (held, true) in enumerate(asked):
            taken = await counters.take(one, Reservation(0, held), NOW)
            if taken.refused is None:
                under_way.append((held, true, taken))
            if under_way and index in order:
                settle()
        while under_way:
            settle()

    def settle() -> None:
        nonlocal spent, beyond, largest
        held, true, taken = under_way.pop(0)
        counters.settle(one, Reservation(0, held), Reservation(0, true), taken)
        spent, beyond, largest = spent + true, beyond + max(0, true - held), max(largest, held)

    asyncio.run(play())
    assert spent <= hard + largest + beyond


def test_prices_are_read_off_the_large_models_own_reckoning() -> None:
    class Priced:
        def cost_usd(self, usage: Usage) -> float:
            fresh = usage.prompt_tokens - usage.cached_tokens
            return fresh * 3e-6 + usage.cached_tokens * 1e-6 + usage.completion_tokens * 9e-6

    found = unit_prices(Priced())
    assert found is not None
    assert found == pytest.approx((3, 1, 9))
    assert unit_prices(Scripted()) is None
    assert estimate(4000, {"max_tokens": 50}, 1024, found) == Reservation(1051, round((1001 * 3e-6 + 50 * 9e-6) * 1e9))
    assert estimate(4000, {"max_completion_tokens": 9999}, 1024, None) == Reservation(2025, 0)
    assert estimate(4, {"max_tokens": 50, "n": 3}, 1024, None).tokens == 2 + 150
    assert estimate(0, {"max_tokens": -5}, 1024, None).tokens == 1


async def test_spending_is_the_exact_sum_of_what_rows_charge(ledger_url: str) -> None:
    """By day, month and in total, for keys that share a batch; rows without a key, or without a charge, add nothing."""
    days = [
        datetime(2026, 5, 30, 23, 59, tzinfo=UTC),
        datetime(2026, 5, 31, tzinfo=UTC),
        datetime(2026, 6, 1, tzinfo=UTC),
    ]
    rows: list[DecisionRow] = []
    for i in range(300):
        owner = (None, "key_a", "key_b")[i % 3]
        charged = None if owner is None else (i * 7919) % 1_000_003
        rows.append(row(f"{i:04}", created_at=days[i % 7 % 3], key_id=owner, charged_nusd=charged))
    async with Ledger.open(ledger_url) as ledger:
        await asyncio.gather(*map(ledger.write, rows))
        from router.access.store import KeyStore

        store = KeyStore(ledger.engine)
        for day in days:
            found = await store.spent(day)
            for owner in ("key_a", "key_b"):
                mine = [one for one in rows if one.key_id == owner]
                for period, fits in (
                    (day.strftime("%Y-%m-%d"), [one for one in mine if one.created_at.date() == day.date()]),
                    (day.strftime("%Y-%m"), [one for one in mine if one.created_at.month == day.month]),
                    ("total", mine),
                ):
                    assert found[owner].get(period, 0) == sum(Decimal(one.charged_nusd or 0) for one in fits)
