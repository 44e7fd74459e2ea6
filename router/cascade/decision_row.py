"""A decision as the ledger keeps it: its row, and the tokens, seconds and money that it counts."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import orjson

from router.access.limits import Reservation
from router.cascade.decision import Decision, SmallWork
from router.cascade.decision_extras import bundle_digest, explain_object, policy_name, small_usage
from router.dialects.request import ChatRequest
from router.ledger.row import DecisionRow, nano_usd


class Digests(NamedTuple):
    """SHA-256 of what a row does not keep."""

    request: str
    tools: str


def digests_of(chat: ChatRequest) -> Digests:
    """The digests of a request and of its tools; a large body takes tens of milliseconds."""
    return Digests(_sha256(chat.body), _sha256(chat.tools))


def charge_of(decision: Decision) -> Reservation:
    """Return what a request counts for its key: the reported usage and its cost. A large answer whose usage was
    not reported in full, because its stream was truncated or its provider is silent, counts at least what was held
    for it."""
    usage, grant = decision.large.usage, decision.admission.grant
    tokens = usage.prompt_tokens + usage.completion_tokens if usage else 0
    if decision.side == "small":
        tokens += small_usage(decision.small)["total_tokens"]
    cost = nano_usd(decision.large.cost_usd) or 0
    whole = usage is not None and decision.status == 200
    if decision.side == "large" and not whole and grant is not None:
        return Reservation(max(tokens, grant.reserved.tokens), max(cost, grant.reserved.cost_nusd))
    return Reservation(tokens, cost)


def small_seconds(small: SmallWork) -> float | None:
    """The small model's own work: prefill and decoding, without the time in its queue; None where none was asked.
    Drafts that share their steps with others are each counted in full."""
    builder = small.builder
    if builder is None or small.seconds is None:
        return None
    if builder.started is None:
        return 0.0
    if builder.done is not None:
        return builder.started.prefill_s + builder.done.decode_s
    return max(0.0, small.seconds - builder.started.queue_s)


def first_tool(decision: Decision) -> str | None:
    """The first tool that the answer calls; None where it calls none."""
    draft, calls = decision.small.draft, decision.large.summary.calls
    if decision.side == "small" and draft is not None and draft.calls:
        return draft.calls[0].name
    return calls[0].tool if decision.side == "large" and calls else None


def to_row(
    decision: Decision, digests: Digests, *, store_content: bool, small_usd_per_hour: float = 0.0
) -> DecisionRow:
    """The ledger's row of a decision that has ended.

    Args:
        store_content: keep the request and the answer as well.
        small_usd_per_hour: the price of the small model's machine.
    """
    chat, verdict, small, large = decision.chat, decision.verdict, decision.small, decision.large
    exposure, grant = decision.admission.exposure, decision.admission.grant
    seconds, prices, usage, builder = small_seconds(small), large.unit_prices, large.usage, small.builder
    started = builder.started if builder else None
    done = builder.done if builder else None
    info = small.info if builder else None
    return DecisionRow(
        decision_id=decision.decision_id,
        created_at=decision.exchange.created_at,
        dialect=decision.exchange.dialect.name,
        client_model=chat.client_model,
        side=decision.side,
        reason=decision.reason,
        stage=verdict.stage,
        policy=policy_name(decision),
        score=verdict.score,
        threshold=verdict.threshold,
        propensity=verdict.propensity,
        outcome=small.draft.outcome if small.draft else None,
        n_tools=len(chat.tools),
        n_messages=len(chat.view.messages),
        streamed=chat.stream,
        status=decision.status,
        error_code=decision.error_code,
        client_disconnected=decision.client_disconnected,
        key_id=grant.key.key_id if grant else None,
        tenant=grant.key.tenant if grant else None,
        charged_nusd=charge_of(decision).cost_nusd if grant else None,
        large_model=large.model,
        large_prompt_tokens=usage.prompt_tokens if usage else None,
        large_completion_tokens=usage.completion_tokens if usage else None,
        large_cached_tokens=usage.cached_tokens if usage else None,
        large_cost_nusd=nano_usd(large.cost_usd),
        small_model=info.model if info else None,
        small_prompt_tokens=started.prompt_tokens if started else None,
        small_cached_tokens=started.cached_tokens if started else None,
        small_completion_tokens=len(builder.tokens) if builder else None,
        small_steps=done.steps if done else None,
        small_queue_s=started.queue_s if started else None,
        small_prefill_s=started.prefill_s if started else None,
        small_decode_s=done.decode_s if done else None,
        latency_s=decision.latency_s,
        request_sha256=digests.request,
        tools_sha256=digests.tools,
        weights_sha256=info.weights_sha256 if info else None,
        adapter_sha256=info.adapter_sha256 if info else None,
        pattern_version=info.pattern_version if info else None,
        findings=verdict.findings,
        bundle_sha256=bundle_digest(decision),
        certificate=verdict.certificate,
        probability=verdict.probability,
        experiment=exposure.experiment if exposure else None,
        arm=exposure.arm if exposure else None,
        arm_propensity=exposure.propensity if exposure else None,
        unit_sha256=exposure.unit_sha256 if exposure else None,
        tool=first_tool(decision),
        request_bytes=chat.size_bytes,
        large_attempts=large.tries.made if large.model is not None else None,
        large_estimate_nusd=nano_usd(large.estimate_usd),
        small_cost_nusd=None if seconds is None else nano_usd(seconds / 3600 * small_usd_per_hour),
        large_input_usd_per_mtok=prices.input if prices else None,
        large_cached_input_usd_per_mtok=prices.cached_input if prices else None,
        large_output_usd_per_mtok=prices.output if prices else None,
        audit_propensity=decision.audit_propensity,
        content=_content(decision) if store_content else None,
    )


def _sha256(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _content(decision: Decision) -> dict[str, Any]:
    content = {"request": decision.chat.body, "answer": decision.answer}
    explained = explain_object(decision.small)
    return content if explained is None else {**content, "explain": explained}
