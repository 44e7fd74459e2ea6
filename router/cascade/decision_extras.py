"""The parts of a decision that its client is shown: the `smallcall` object of a response, and its headers."""

from __future__ import annotations

from typing import Any

import numpy as np

from policies.types import FloatArray, TokenSignals
from router.cascade.decision import Decision, SmallWork

_SIGNALS = ("logprob", "margin", "entropy", "feasible_mass", "forced", "span")


def policy_name(decision: Decision) -> str:
    """The name of the policy that judged; `pinned` where the client chose the side."""
    return "pinned" if decision.chat.pin else decision.policy.name


def bundle_digest(decision: Decision) -> str | None:
    """SHA-256 of the bundle that judged; None where the client chose the side, or the policy is no bundle."""
    return decision.policy.digest if decision.chat.pin is None else None


def small_usage(small: SmallWork) -> dict[str, int]:
    """The draft's tokens as an OpenAI usage object; zeros where there is no draft."""
    builder = small.builder
    prompt = builder.started.prompt_tokens if builder and builder.started else 0
    completion = len(builder.tokens) if builder else 0
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def to_headers(decision: Decision) -> dict[str, str]:
    """The response headers that say what was decided, and where the key stands."""
    headers = {"x-smallcall-decision-id": decision.decision_id, "x-smallcall-reason": decision.reason}
    if decision.admission.grant is not None:
        headers |= decision.admission.grant.headers
    return headers | ({"x-smallcall-model": decision.side} if decision.side != "none" else {})


def asked_extras(decision: Decision) -> dict[str, Any] | None:
    """The `smallcall` object, where the client asked for it; else None."""
    return to_extras(decision) if decision.chat.include_decision else None


def to_extras(decision: Decision) -> dict[str, Any]:
    """The `smallcall` object of a response, as JSON values."""
    verdict, large = decision.verdict, decision.large
    extras: dict[str, Any] = {
        "decision_id": decision.decision_id,
        "side": decision.side,
        "reason": decision.reason,
        "policy": policy_name(decision),
        "stage": verdict.stage,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "findings": list(verdict.findings),
        "probability": verdict.probability,
        "bundle": bundle_digest(decision),
        "certificate": verdict.certificate,
        "cost_usd": 0.0 if large.model is None else large.cost_usd,
        "latency_s": decision.latency_s,
        "small": _draft_object(decision.small, include_signals=decision.chat.include_signals),
    }
    if decision.chat.include_explain:
        extras["explain"] = explain_object(decision.small)
    return extras


def explain_object(small: SmallWork) -> list[dict[str, Any]] | None:
    """The signals that spoke most, as JSON; None where nothing was explained."""
    if small.explanation is None:
        return None
    return [{"signal": name, "contribution": value} for name, value in small.explanation]


def _draft_object(small: SmallWork, *, include_signals: bool) -> dict[str, Any] | None:
    draft, builder = small.draft, small.builder
    if draft is None or builder is None:
        return None
    started, done = builder.started, builder.done
    shown: dict[str, Any] = {
        "outcome": draft.outcome,
        "plan": list(draft.plan),
        "calls": [{"name": call.name, "arguments": call.arguments} for call in draft.calls],
        "complete": draft.complete,
        "text": draft.text,
        "prompt_tokens": started.prompt_tokens if started else None,
        "completion_tokens": len(builder.tokens),
        "queue_s": started.queue_s if started else None,
        "prefill_s": started.prefill_s if started else None,
        "decode_s": done.decode_s if done else None,
        "steps": done.steps if done else None,
        "signals": None,
    }
    if include_signals and draft.signals is not None:
        shown["signals"] = _signals_object(draft.signals, draft.hidden)
    return shown


def _signals_object(signals: TokenSignals, hidden: FloatArray | None) -> dict[str, Any]:
    """Token signals as JSON; what is missing is null, a place of `hidden` that the draft does not have also."""
    agreement = signals.layer_agreement
    return {name: getattr(signals, name).tolist() for name in _SIGNALS} | {
        "layer_agreement": None
        if agreement is None
        else [None if share != share else share for share in agreement.tolist()],
        "hidden": None if hidden is None else [None if np.isnan(row).any() else row.tolist() for row in hidden],
    }
