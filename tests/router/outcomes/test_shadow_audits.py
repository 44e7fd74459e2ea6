"""Shadow audits: drawn with a known probability, never in the way, never over budget, and read off honestly."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from evaluation.cases.answers import Answer, Call
from evaluation.live.audits import agreement, audit_estimates
from policies.rules.baselines import SmallOnly
from policies.types import Action, Stage, Verdict
from router.__main__ import app as cli
from router.cascade.decision import Decision
from router.constants import Constants
from router.dialects.chat_completions import ChatCompletions, read_request
from router.dialects.exchange import Exchange
from router.ledger.audits import Audit, auditable, record_audit, spent_nusd
from router.ledger.queries.costs import cost_lines
from router.ledger.store import Ledger
from router.ledger.tables import audits
from router.outcomes.shadow_audits import ShadowAuditor, probability_of
from router.selection.serving_policy import PlainPolicy
from router.server.app import create_app
from router.settings import Audits, Price, Settings
from router.upstream.large_model import UpstreamUnavailable
from router.upstream.prices import FixedPrices
from tests.router.cascade.test_gateway import CALL, TOOL, ask, post, stream
from tests.router.cli.test_costs import DAY, small, write
from tests.router.conftest import ScriptedSmall, served

PRICES = FixedPrices(Price(input_usd_per_mtok=1000, output_usd_per_mtok=0))
PARIS = {"city": "Paris"}


class Large:
    """A large model that calls for a city, slowly if asked to; 100 tokens at a tenth of a cent each."""

    model, ready = "openai/gpt-4o", True

    def __init__(self, arguments: Any = PARIS, error: Exception | None = None, pause_s: float = 0.0) -> None:
        self.arguments, self.error, self.pause_s = arguments, error, pause_s
        self.bodies: list[Any] = []

    async def complete(self, body: Any, tries: Any = None) -> dict[str, Any]:
        self.bodies.append(body)
        await asyncio.sleep(self.pause_s)
        if self.error:
            raise self.error
        function = {"name": "get_weather", "arguments": json.dumps(self.arguments)}
        message = {"role": "assistant", "tool_calls": [{"id": "x", "type": "function", "function": function}]}
        usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        return {"choices": [{"index": 0, "message": message}], "usage": usage}

    async def stream(self, body: Any, tries: Any = None) -> Any:
        raise NotImplementedError

    cost_usd = PRICES.cost_usd


OFTEN = Constants(audit_floor=1.0, audits_per_minute=1000)


def settings(url: str, *, policy: Any = None, **audits: Any) -> Settings:
    told = {"enabled": True, "rate": 1.0, "usd_per_day": 100, **audits}
    return Settings.model_validate(
        {
            "ledger": {"url": url, "store_content": True},
            "audits": told,
            "policy": policy or {"kind": "threshold", "threshold": 0.5},
        }
    )


async def _audited(ledger: Ledger, count: int) -> list[Any]:
    async with asyncio.timeout(10):
        while True:
            rows = await auditable(ledger.engine, datetime.now(UTC).date() - timedelta(1), datetime.now(UTC).date())
            if sum(row.audited for row in rows) >= count:
                return rows
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "agreed", "reason"),
    [(PARIS, True, "matched"), ({"city": "PARIS"}, True, "matched"), ({"city": "Rome"}, False, "wrong_value")],
)
async def test_an_answer_is_compared_behind_the_clients_back(
    ledger_url: str, arguments: Any, agreed: bool, reason: str
) -> None:
    """The client has the small model's answer long before the large one has made its own; what it said is kept."""
    large = Large(arguments, pause_s=0.3)
    app = create_app(settings(ledger_url), small=ScriptedSmall(CALL), large=large, constants=OFTEN)
    async with served(app) as url:
        began = asyncio.get_running_loop().time()
        _, headers, answer = await post(url, ask())
        assert asyncio.get_running_loop().time() - began < 0.3
        assert headers["x-smallcall-model"] == "small"
        assert "Rome" not in json.dumps(answer)
        (row,) = await _audited(app.services.ledger, 1)
        kept = await app.services.ledger.get(row.decision_id)
    assert (row.agreed, row.reason, row.propensity, kept.audit_propensity) == (agreed, reason, 1.0, 1.0)
    assert row.cost_nusd == 100_000_000
    assert kept.large_model is None
    assert large.bodies[0]["tools"] == [TOOL]


class Streaming(Large):
    """The same, in pieces."""

    async def stream(self, body: Any, tries: Any = None) -> Any:
        return self

    async def __aiter__(self) -> Any:
        text = json.dumps(self.arguments)
        first = {"index": 0, "id": "x", "type": "function", "function": {"name": "get_weather", "arguments": text[:5]}}
        rest = {"index": 0, "function": {"arguments": text[5:]}}
        for call, finish in ((first, None), (rest, "tool_calls")):
            yield {"id": "x", "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": finish}]}

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("arguments", "agreed", "reason"), [(PARIS, True, "matched"), ({"city": "Rome"}, False, "wrong_value")]
)
async def test_a_draft_that_went_large_is_held_against_the_answer_that_came(
    ledger_url: str, streamed: bool, arguments: Any, agreed: bool, reason: str
) -> None:
    """Nobody is asked a second time; drafts that were never whole, and requests with a pinned side, are no drafts."""
    policy = {"kind": "threshold", "score": "mean_logprob", "threshold": 0.5}
    whole = settings(ledger_url, policy=policy)
    unsure, large = ScriptedSmall(CALL, logprob=-2.0), Streaming(arguments)
    app = create_app(whole, small=unsure, large=large, constants=OFTEN)
    async with served(app) as url:
        ask_for = {**ask(), **({"stream": True} if streamed else {})}
        await (stream(url, ask_for) if streamed else post(url, ask_for))
        await post(url, ask(model="smallcall/large"))
        (first, _) = await app.services.ledger.page()
        async with asyncio.timeout(10):
            while not (kept := await _compared(app.services.ledger)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await auditable(app.services.ledger.engine, *[first.created_at.date()] * 2) == []
    assert kept == [(first.decision_id, 1.0, agreed, reason, None)]
    assert (first.side, first.stage, first.audit_propensity, first.reason) == ("large", "after", None, "low_confidence")
    assert len(large.bodies) == 1 + (not streamed)


async def _compared(ledger: Ledger) -> list[tuple[Any, ...]]:
    columns = audits.c.decision_id, audits.c.propensity, audits.c.agreed, audits.c.reason, audits.c.cost_nusd
    async with ledger.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(select(*columns))]


async def test_what_no_judge_accepted_is_not_audited(ledger_url: str) -> None:
    """Pinned requests and escalations: no propensity, no question."""
    large = Large()
    app = create_app(settings(ledger_url), small=ScriptedSmall(CALL), large=large, constants=OFTEN)
    async with served(app) as url:
        await post(url, ask(model="smallcall/small"))
        await post(url, ask(model="smallcall/large"))
        await asyncio.sleep(0.2)
        rows = await app.services.ledger.page()
    assert [row.audit_propensity for row in rows] == [None, None]
    assert len(large.bodies) == 1


async def test_an_audit_that_fails_is_told_and_costs_no_answer(ledger_url: str) -> None:
    """A large model that is down, and one that breaks."""
    for error, reason in ((UpstreamUnavailable(502, "upstream_unavailable", "gone"), "upstream_unavailable"),
                          (ZeroDivisionError(), "failed")):  # fmt: skip
        app = create_app(settings(ledger_url), small=ScriptedSmall(CALL), large=Large(error=error), constants=OFTEN)
        async with served(app) as url:
            assert (await post(url, ask()))[0] == 200
            rows = await _audited(app.services.ledger, 1 if reason != "failed" else 2)
    assert [row.reason for row in rows] == ["upstream_unavailable", "failed"]
    assert [row.agreed for row in rows] == [None, None]


def _decision(probability: float | None) -> Decision:
    exchange = Exchange(read_request(json.dumps(ask()).encode()), ChatCompletions())
    decision = Decision(exchange, PlainPolicy(SmallOnly(), "small_only"))
    decision.set_verdict(Verdict(Action.ANSWER, Stage.AFTER, "accepted", score=probability))
    return decision


def _auditor(
    told: Audits, engine: Any = None, *, floor: float = 1.0, per_minute: int = 10_000, **clocks: Any
) -> ShadowAuditor:
    """Audits that reach no answer: `engine` is a ledger's where something is written."""
    return ShadowAuditor(
        told, Large(), engine, rng=Random(1), store_content=False, floor=floor, per_minute=per_minute, **clocks
    )


def test_the_unsure_are_audited_more_and_the_rate_is_kept() -> None:
    """Probabilities in proportion to √(p(1 − p)) above the floor, and a tenth of all drafts on average."""
    auditor, rng = _auditor(Audits(enabled=True, rate=0.1), floor=0.02), Random(2)
    drawn = 0
    for _ in range(4000):
        drawn += auditor.draw(_decision(rng.betavariate(8, 2)))
    assert drawn / 4000 == pytest.approx(0.1, abs=0.02)
    sure, unsure, half = (_decision(p) for p in (0.9999, 0.9, 0.5))
    for decision in (sure, unsure, half):
        auditor.draw(decision)
    assert sure.audit_propensity == 0.02
    assert (half.audit_propensity or 0) / (unsure.audit_propensity or 1) == pytest.approx(0.5 / 0.3)
    assert [probability_of(_decision(p)) for p in (None, -3.0, 0.7)] == [0.5, 0.5, 0.7]


def test_audits_are_limited_by_the_minute() -> None:
    """The sixth of a minute is not drawn, and its row says that it could not be."""
    at = [0.0]
    auditor = _auditor(Audits(enabled=True, rate=1.0), per_minute=5, monotonic=lambda: at[0])
    decisions = [_decision(0.5) for _ in range(7)]
    assert [auditor.draw(one) for one in decisions[:6]] == [True] * 5 + [False]
    assert decisions[5].audit_propensity is None
    at[0] = 60.0
    assert auditor.draw(decisions[6])


async def test_the_days_budget_is_shared_and_ends_at_midnight(ledger_url: str) -> None:
    """What another gateway spent today counts; tomorrow there is money again."""
    day = [datetime(2026, 5, 4, 23, 59, tzinfo=UTC)]
    told = Audits(enabled=True, rate=1.0, usd_per_day=0.15)
    async with Ledger.open(ledger_url) as ledger:
        auditor = _auditor(told, ledger.engine, clock=lambda: day[0])
        other = Audit(
            decision_id="other", at=day[0], propensity=1.0, agreed=True, reason="matched", large_model="m",
            prompt_tokens=1, completion_tokens=1, cost_nusd=100_000_000, latency_s=1.0, answer=None,
        )  # fmt: skip
        await record_audit(ledger.engine, other)
        async with auditor.running():
            first = _decision(0.5)
            assert auditor.draw(first)
            auditor.ask(first)
            async with asyncio.timeout(5):
                while await spent_nusd(ledger.engine, day[0].date()) < 200_000_000:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert not auditor.draw(_decision(0.5))
            day[0] += timedelta(minutes=2)
            assert auditor.draw(_decision(0.5))


async def test_audits_are_part_of_what_is_spent(ledger_url: str) -> None:
    """In the line of the answer that was audited."""
    async with Ledger.open(ledger_url) as ledger:
        await write(ledger, [small("s")])
        await record_audit(ledger.engine, replace(_audit("s", True), cost_nusd=77))
        (line,) = await cost_lines(ledger.engine, DAY.date(), DAY.date())
    assert line.audit_nusd == 77


def _audit(decision_id: str, agreed: bool | None, propensity: float = 0.5) -> Audit:
    return Audit(
        decision_id=decision_id, at=DAY, propensity=propensity, agreed=agreed, reason="matched", large_model="m",
        prompt_tokens=1, completion_tokens=1, cost_nusd=1_000, latency_s=1.0, answer=None,
    )  # fmt: skip


def test_estimates_recover_the_truth_that_unequal_auditing_hides() -> None:
    """Doubtful drafts are audited five times as often and agree less: the naive share is far off, the estimates are
    not."""
    rng = np.random.default_rng(4)
    n = 40_000
    p = np.where(rng.random(n) < 0.2, 0.4, 0.95)
    e = np.where(p < 0.5, 0.5, 0.1)
    agreed, audited = rng.random(n) < p, rng.random(n) < e
    found = audit_estimates(e, audited, agreed, p)
    truth = float(p.mean())
    naive = found.agreed / found.audited
    assert abs(naive - truth) > 0.1
    for one in found.estimates:
        assert abs(one.value - truth) < 4 * one.standard_error
        assert one.standard_error < 0.02
    assert found.reliable
    none = audit_estimates([], [], [], [])
    assert (none.eligible, none.estimates, none.reliable) == (0, (), False)


def test_the_command_gives_no_figure_under_thirty_effective_rows(ledger_url: str, tmp_path: Path) -> None:
    """Ten audits are no estimate, in text and in JSON; sixty are one."""
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": ledger_url}}))

    async def fill(names: range) -> None:
        async with Ledger.open(ledger_url) as ledger:
            await write(ledger, [small(f"{i:03}", audit_propensity=0.5, score=0.9) for i in names])
            for i in names[::2]:
                await record_audit(
                    ledger.engine, _audit(f"{i:03}", True if i % 4 == 0 else None if i % 8 == 2 else False)
                )

    def told(*arguments: str) -> str:
        return CliRunner().invoke(cli, ["audits", "--config", str(file), *arguments], env={"COLUMNS": "160"}).stdout

    assert json.loads(told("--json"))["eligible"] == 0
    asyncio.run(fill(range(20)))
    assert "30 are needed" in told()
    few = json.loads(told("--json"))
    assert {one["value"] for one in few["estimates"]} == {None}
    asyncio.run(fill(range(20, 200)))
    many = json.loads(told("--json"))
    assert (many["eligible"], many["audited"], many["agreed"]) == (200, 75, 50)
    assert many["estimates"][1]["value"] == pytest.approx(50 / 75)
    assert many["tools"]["get_weather"]["audited"] == 75
    assert many["cost_nusd"] == 100 * 1_000
    assert "get_weather" in told()


def test_calls_that_cannot_be_compared_are_no_disagreement() -> None:
    """The large model's arguments are no JSON, or two tools have one name."""
    small_answer = Answer((Call("get_weather", PARIS),))
    assert agreement([TOOL], Answer((Call("get_weather", None),)), small_answer) is None
    assert agreement([TOOL, TOOL], small_answer, small_answer) is None
    prose = agreement([TOOL], Answer(), small_answer)
    assert prose is not None
    assert not prose.passed


def test_a_rate_below_the_floor_is_kept() -> None:
    """Every answer is then audited with that probability."""
    auditor, decision = _auditor(Audits(enabled=True, rate=0.001), floor=0.005), _decision(0.9999)
    auditor.draw(decision)
    assert decision.audit_propensity == 0.001
