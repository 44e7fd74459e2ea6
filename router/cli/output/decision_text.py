"""One decision in words: who answered, why, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.ledger.outcomes import WHOLE_ANSWER, OutcomeLabel
from router.ledger.row import NANO, DecisionRow

_REFERS = "it refers to what the small model has not seen, or is not shown"
_UNFIT = "it asks for something that the small model does not do"
_NO_DRAFT = "the small model could not draft, or not soon enough"
_CANNOT = "the small model cannot take the request"
REASONS = {
    "accepted": "its draft is valid, and its score reaches the threshold",
    "small_only": "the policy serves every valid draft",
    "random_mix": "the policy of that name drew this side",
    "pinned_small": "the client chose the small model",
    "pinned_large": "the client chose the large model",
    "upstream_unavailable": "the large model could not be had, and serve_draft_if_large_down is set",
    "low_confidence": "the draft's score does not reach the threshold",
    "invalid_call": "the draft is not a valid call",
    "no_call": "the draft makes no call",
    "ask": "the draft asks back",
    "no_signals": "the draft came without what the judge reads",
    "unsure_request": "the gate on requests was not sure enough, before the draft",
    "unsure_plan": "the gate on plans was not sure enough, when the draft's plan stood",
    "gain_of_large": "the large model's gain is worth its price, or the budget allows it",
    "nothing_certified": "no threshold could be certified, for the policy or for the draft's tool class",
    "certificate_void": "the bundle was made for something else than what runs",
    "tool_not_certified": "the bundle was made for other tools",
    "large_only": "the policy sends everything to the large model",
    "sticky": "the conversation went large before",
    "sticky_cache": "the conversation went large before, and the provider still caches it",
    "reasoning_unseen": _REFERS,
    "tool_result_unmatched": _REFERS,
    "tool_result_cut": _REFERS,
    "no_tools": "there is nothing to call",
    "tool_choice_none": "the client forbids calls",
    "schema_unsupported": "a tool's schema leaves its document, is too large or too deep, or cannot be a grammar",
    "prompt_too_long": _CANNOT,
    "draft_refused": _CANNOT,
    **dict.fromkeys(
        (
            "tool_type", "tool_choice_type", "legacy_functions", "several_choices", "response_format", "logprobs",
            "audio", "modalities", "web_search", "content_not_text", "message_role", "item_type", "stored_state",
            "thinking", "mcp_servers", "container", "context_management",
        ),
        _UNFIT,
    ),
    **dict.fromkeys(
        (
            "small_disabled", "worker_unavailable", "worker_lost", "worker_failed", "queue_full", "wait_too_long",
            "draft_timeout", "small_side_crashed",
        ),
        _NO_DRAFT,
    ),
}  # fmt: skip
"""Why a side answered, after "because"; a test holds it against the table in docs/api.md."""
_WHO = {"small": "the small model", "large": "the large model"}
_SAID = {1: "right", 0: "wrong", None: "not known"}
_WHOSE = {"feedback": "somebody said", "implicit": "read off later requests"}


def described(
    row: DecisionRow, outcomes: Sequence[OutcomeLabel], audit: Mapping[str, Any] | None, key_name: str | None
) -> Iterator[str]:
    """Sentences, the most important first."""
    yield f"{row.decision_id}, {row.created_at:%Y-%m-%d %H:%M:%S} UTC, {row.dialect}, asked for {row.client_model}"
    yield from _answer(row)
    yield from _judged(row)
    yield _signals(row)
    if row.findings:
        yield "Findings: " + "; ".join(row.findings) + "."
    yield _draft(row)
    yield _cost(row)
    if row.key_id is not None:
        yield f"Key: {key_name or row.key_id}" + (f", tenant {row.tenant}." if row.tenant else ".")
    if row.experiment is not None:
        yield f"Experiment {row.experiment}, arm {row.arm} (drawn with probability {row.arm_propensity:g})."
    if audit is not None:
        yield _audited(audit)
    for one in outcomes:
        yield _outcome(one)
    if not outcomes:
        yield "What came of it is not known: no feedback, and no later request spoke of it."


def _answer(row: DecisionRow) -> Iterator[str]:
    why = REASONS.get(row.reason)
    because = f"because {why} ({row.reason})" if why else f"for the reason {row.reason}"
    calls = f" with a call of {row.tool}" if row.tool else " without a call"
    if row.side == "none":
        yield f"Nobody answered: HTTP {row.status}, {row.error_code or 'no code'}; the last word was {row.reason}."
    else:
        yield f"{_WHO[row.side].capitalize()} answered{calls}, {because}."
        if row.status >= 400:
            yield f"It ended with HTTP {row.status}, {row.error_code or 'no code'}."
    if row.client_disconnected:
        yield "The client left before the answer was complete."


def _judged(row: DecisionRow) -> Iterator[str]:
    certificate = f" under certificate {row.certificate}" if row.certificate else ", without a certificate"
    bundle = f" of bundle {row.bundle_sha256[:12]}" if row.bundle_sha256 else ""
    yield f"Policy {row.policy}{bundle}{certificate}; its last word fell {row.stage} the draft."
    if row.score is None:
        yield "There was no score: the draft was not judged by one."
        return
    sentence = f"Score {row.score:.4f}"
    if row.threshold is not None:
        sentence += f" {'reaches' if row.score >= row.threshold else 'is below'} the threshold of {row.threshold:.4f}"
    if row.probability is not None:
        sentence += f"; probability of being right {row.probability:.1%}"
    yield sentence + "."


def _signals(row: DecisionRow) -> str:
    explained = (row.content or {}).get("explain")
    if not explained:
        return (
            "The signals that spoke most are not kept: they are where ledger.store_content is set, a bundle judged, "
            'and the client asked for "smallcall": {"include": ["explain"]}.'
        )
    spoken = (f"{one['signal']} {one['contribution']:+.2f}" for one in explained)
    return f"Spoke most, by what each adds to the judge's score: {'; '.join(spoken)}."


def _draft(row: DecisionRow) -> str:
    if row.small_model is None:
        return "No draft was made."
    seconds = [row.small_queue_s, row.small_prefill_s, row.small_decode_s]
    times = ", ".join(
        f"{value:.3f} s {name}"
        for name, value in zip(("waiting", "reading", "writing"), seconds, strict=True)
        if value is not None
    )
    tokens = "" if row.small_completion_tokens is None else f", {row.small_completion_tokens} tokens"
    return f"Draft of {row.small_model}: {row.outcome or 'given up'}{tokens}" + (f"; {times}." if times else ".")


def _cost(row: DecisionRow) -> str:
    large = None if row.large_cost_nusd is None else row.large_cost_nusd + (row.large_estimate_nusd or 0)
    parts = []
    if row.large_model is not None:
        tries = "" if (row.large_attempts or 1) == 1 else f" in {row.large_attempts} attempts"
        parts.append(f"{_usd(large)} for {row.large_model}{tries}")
    if row.small_cost_nusd is not None:
        parts.append(f"{_usd(row.small_cost_nusd)} for the draft")
    return f"Cost: {', '.join(parts) or 'nothing'}; took {row.latency_s:.3f} s."


def _usd(nusd: int | None) -> str:
    return "an unknown amount" if nusd is None else f"${nusd / NANO:.6f}"


def _audited(audit: Mapping[str, Any]) -> str:
    verdict = {True: "agrees", False: "does not agree", None: "could not be compared"}[audit["agreed"]]
    return f"Audit: {audit['large_model']} {verdict} ({audit['reason']}); it cost {_usd(audit['cost_nusd'])}."


def _outcome(one: OutcomeLabel) -> str:
    place = "the answer" if one.call_index == WHOLE_ANSWER else f"call {one.call_index}"
    said = f"OutcomeLabel of {place}: {_SAID[one.label]} ({_WHOSE[one.source]}: {one.reason}, {one.strength}"
    fault = f", fault {one.fault}" if one.fault and one.fault != "none" else ""
    comment = f"; {one.comment!r}" if one.comment else ""
    return f"{said}{fault}{comment})."
