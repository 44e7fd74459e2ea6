"""The steps that run when a decision has ended; `end_hooks` is the order.

Its row comes first; each of these runs after it, also where the row could not be committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog

from router.cascade.decision import Decision
from router.cascade.decision_row import charge_of
from router.telemetry import Metrics

_log = structlog.get_logger("gateway")

EndHook = Callable[[Decision], Awaitable[None]]


def end_hooks(metrics: Metrics) -> tuple[EndHook, ...]:
    """The hooks of a gateway, in the order in which they run."""
    return (settle_key, remember_turn, partial(count_metrics, metrics), charge_budget, log_decision)


async def settle_key(decision: Decision) -> None:
    """Free what the request held of its key's rates and budget, and count what it took."""
    if decision.admission.grant is not None:
        decision.admission.grant.settle(charge_of(decision))


async def remember_turn(decision: Decision) -> None:
    """Remember how the turn of a conversation ended, where conversations are remembered."""
    sticky, drafted = decision.admission.sticky, decision.small.draft is not None
    if sticky is not None:
        await sticky.ended(decision.side, drafted, decision.large.usage, decision.status)


async def count_metrics(metrics: Metrics, decision: Decision) -> None:
    """Count the decision, its latency, tokens and cost in what `/metrics` shows."""
    usage, builder = decision.large.usage, decision.small.builder
    stage, status = str(decision.verdict.stage), str(decision.status)
    metrics.decisions.labels(decision.side, decision.reason, stage, status).inc()
    metrics.latency.labels(decision.side).observe(decision.latency_s)
    if usage is not None:
        metrics.tokens.labels("large", "prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels("large", "cached").inc(usage.cached_tokens)
        metrics.tokens.labels("large", "completion").inc(usage.completion_tokens)
    metrics.cost.inc(decision.large.cost_usd or 0.0)
    if builder is not None and builder.started is not None:
        metrics.tokens.labels("small", "prompt").inc(builder.started.prompt_tokens)
        metrics.tokens.labels("small", "completion").inc(len(builder.tokens))
        metrics.draft.labels("queue").observe(builder.started.queue_s)
        metrics.draft.labels("prefill").observe(builder.started.prefill_s)
    if builder is not None and builder.done is not None:
        metrics.draft.labels("decode").observe(builder.done.decode_s)


async def charge_budget(decision: Decision) -> None:
    """Charge the policy's budget, where it keeps one, with what the large model's answer cost. One that was refused
    cost nothing; one of unknown cost, such as a stream that was broken off, is charged as a mean one."""
    controller, large = decision.policy.controller, decision.large
    if controller is None or large.model is None:
        return
    if large.cost_usd is not None or decision.status < 400 or decision.client_disconnected:
        controller.spend(large.cost_usd)


async def log_decision(decision: Decision) -> None:
    """Write the decision's one log line: ids, reason and status, nothing of the prompt."""
    grant = decision.admission.grant
    _log.info(
        "decided",
        decision_id=decision.decision_id,
        side=decision.side,
        reason=decision.reason,
        status=decision.status,
        error=decision.error_code,
        key=grant.key.key_id if grant else None,
        latency_s=round(decision.latency_s, 4),
    )
