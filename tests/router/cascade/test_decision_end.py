"""What happens when a decision has ended: the row, and each hook after it."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
import structlog

from policies.rules.baselines import SmallOnly
from policies.rules.price_aware import BudgetController
from policies.types import Draft, Outcome, Policy
from router.access.estimate import LargeRates
from router.access.gate import Grant
from router.access.limits import LocalCounters, Reservation
from router.cascade.decision import Admission, Decision
from router.cascade.ending import charge_budget, count_metrics, end_hooks, log_decision, remember_turn, settle_key
from router.cascade.recorder import Recorder
from router.constants import Constants
from router.dialects.chat_completions import ChatCompletions, read_request
from router.dialects.errors import ClientError
from router.dialects.exchange import Exchange
from router.ledger.store import Ledger
from router.selection.serving_policy import PlainPolicy
from router.selection.stickiness import LocalMemories, Stickiness
from router.small.worker_client import DraftBuilder
from router.telemetry import Metrics
from router.upstream.large_model import Usage
from slm import protocol
from tests.router.access.test_limits import Clock, key
from tests.router.cascade.test_gateway import ask

NOW = datetime(2026, 5, 31, 12, 0, tzinfo=UTC)
PLAIN = PlainPolicy(SmallOnly(), "small_only")


def decided(policy: Any = PLAIN, admission: Admission | None = None) -> Decision:
    """A decision that the large model answered, with 100 tokens in and 5 out for a tenth of a cent."""
    exchange = Exchange(read_request(orjson.dumps(ask())), ChatCompletions())
    decision = Decision(exchange, policy, admission or Admission())
    decision.side, decision.reason = "large", "low_confidence"
    work = decision.large
    work.model, work.usage, work.cost_usd = "openai/gpt-4o", Usage(100, 5, 40, {}), 0.001
    return decision


@dataclass(frozen=True)
class Budgeted(PlainPolicy):
    """A policy that keeps a budget of a dollar an hour; a mean request costs ten cents."""

    inner: Policy = field(default_factory=SmallOnly)
    kind: str = "small_only"
    budget: BudgetController = field(default_factory=lambda: BudgetController(1.0, 0.1, Clock()))

    @property
    def controller(self) -> BudgetController:
        return self.budget


async def test_a_key_is_charged_what_the_request_took() -> None:
    """What was held comes free, and the reported tokens and dollars count in its place."""
    counters, owner = LocalCounters(Clock()), key(hard_usd=1.0, tokens_per_minute=1000)
    held = Reservation(900, 500_000_000)
    standing = await counters.take(owner, held, NOW)

    def settle(grant: Grant, true: Reservation) -> None:
        counters.settle(grant.key, grant.reserved, true, grant.status)

    await settle_key(decided(admission=Admission(grant=Grant(owner, held, standing, {}, settle))))
    after = await counters.take(owner, Reservation(0, 999_000_000), NOW)
    assert (after.tokens_left, after.refused) == (1000 - 105, None)
    refused = await counters.take(owner, Reservation(0, 0), NOW)
    assert refused.refused == "budget"


async def test_a_request_without_a_key_settles_nothing() -> None:
    await settle_key(decided())


@pytest.mark.parametrize(("side", "drafted"), [("large", False), ("large", True), ("small", True)])
async def test_the_turn_of_a_conversation_is_remembered(side: Any, drafted: bool) -> None:
    """Whose words the client got, whether there was a draft, and the tokens of a large answer."""
    memories = LocalMemories(3600.0, lambda: 1000.0)
    stickiness = Stickiness("after_escalation", Constants(sticky_turns=2), memories, LargeRates(None), lambda: 1000.0)
    turn = await stickiness.turn(decided().chat, "digest")
    decision = decided(admission=Admission(sticky=turn))
    decision.side = side
    decision.small.draft = Draft(Outcome.CALLS) if drafted else None
    await remember_turn(decision)
    memory = await memories.get("digest")
    assert memory is not None
    assert (memory.drafted, memory.served, memory.turns) == (drafted, side == "small", 1)
    assert (memory.large_tokens, memory.large_turns_left) == ((105, 2) if side == "large" else (0, 0))


async def test_metrics_count_tokens_money_and_seconds_of_both_sides() -> None:
    metrics, decision, builder = Metrics(), decided(), DraftBuilder()
    builder.add(protocol.Started(prompt_tokens=7, cached_tokens=0, queue_s=2.0, prefill_s=3.0))
    builder.add(protocol.Done(text="", finish="stop", decode_s=4.0, steps=1, tokens=0))
    decision.small.builder = builder
    await count_metrics(metrics, decision)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"smallcall_{name}", labels)

    told = {"side": "large", "reason": "low_confidence", "stage": "before", "status": "200"}
    assert value("decisions_total", **told) == 1
    assert value("latency_seconds_count", side="large") == 1
    tokens = [value("tokens_total", side="large", kind=kind) for kind in ("prompt", "cached", "completion")]
    assert tokens == [100, 40, 5]
    assert value("tokens_total", side="small", kind="prompt") == 7
    assert value("large_cost_usd_total") == pytest.approx(0.001)
    assert [value("draft_seconds_sum", part=part) for part in ("queue", "prefill", "decode")] == [2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("cost_usd", "status", "disconnected", "spent_usd"),
    [
        (0.25, 200, False, 0.25),
        (None, 200, False, 0.1),  # a provider that reports nothing
        (None, 499, True, 0.1),  # a stream that its client left
        (None, 429, False, 0.0),  # refused
        (0.25, 502, False, 0.25),  # broken off, and reported all the same
    ],
)
async def test_a_budget_is_charged_with_what_the_large_answer_cost(
    cost_usd: float | None, status: int, disconnected: bool, spent_usd: float
) -> None:
    policy = Budgeted()
    decision = decided(policy)
    decision.large.cost_usd, decision.status, decision.client_disconnected = cost_usd, status, disconnected
    await charge_budget(decision)
    assert policy.budget.spent_usd() == pytest.approx(spent_usd)


async def test_a_budget_is_not_charged_where_the_large_model_was_not_asked() -> None:
    policy = Budgeted()
    decision = decided(policy)
    decision.large.model = None
    await charge_budget(decision)
    assert policy.budget.spent_usd() == 0.0


async def test_the_log_line_names_the_decision_and_nothing_of_the_prompt() -> None:
    decision = decided()
    decision.fail(502, "upstream_unavailable")
    with structlog.testing.capture_logs() as lines:
        await log_decision(decision)
    (line,) = lines
    kept = (line["decision_id"], line["side"], line["status"], line["error"], line["key"])
    assert kept == (decision.decision_id, "large", 502, "upstream_unavailable", None)
    assert "Paris" not in str(line)


def test_the_order_is_keys_conversation_metrics_budget_log() -> None:
    """The key is free before anything slower is done; the log line says that all is over."""
    hooks = end_hooks(Metrics())
    assert [getattr(hook, "func", hook) for hook in hooks] == [
        settle_key,
        remember_turn,
        count_metrics,
        charge_budget,
        log_decision,
    ]


async def test_the_row_is_committed_before_the_first_hook(ledger_url: str) -> None:
    """Once: a second call records nothing and runs no hook."""
    seen: list[tuple[str, int]] = []
    async with Ledger.open(ledger_url) as ledger:

        async def first(decision: Decision) -> None:
            seen.append(("first", await ledger.count()))

        async def second(decision: Decision) -> None:
            seen.append(("second", await ledger.count()))

        recorder, decision = Recorder(ledger, [first, second], store_content=False), decided()
        await recorder.record(decision)
        await recorder.record(decision)
        (row,) = await ledger.page()
    assert seen == [("first", 1), ("second", 1)]
    assert (row.decision_id, row.large_cost_nusd, row.content) == (decision.decision_id, 1_000_000, None)


async def test_hooks_run_where_the_row_cannot_be_committed(ledger_url: str) -> None:
    """The client gets a 503, and what was held for its key comes free all the same."""
    statuses: list[int] = []

    async def hook(decision: Decision) -> None:
        statuses.append(decision.status)

    async with Ledger.open(ledger_url) as ledger:
        decision = decided()
        await Recorder(ledger, [], store_content=False).record(decision)
        decision.recorded = False  # the same id once more cannot be inserted
        with pytest.raises(ClientError) as failed:
            await Recorder(ledger, [hook], store_content=False).record(decision)
    assert (failed.value.status, failed.value.code, statuses) == (503, "ledger_unavailable", [503])
