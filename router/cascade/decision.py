"""One decision while it is made: what is known so far, and the row and the `smallcall` object it ends as."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson

from policies.rules.judge import Contribution
from policies.types import Action, Draft, FloatArray, Policy, Stage, TokenSignals, Verdict
from router.access.gate import Grant
from router.access.limits import Need
from router.dialects.request import ChatRequest
from router.ledger.row import DecisionRow, nano_usd
from router.selection.assignment import Exposure
from router.selection.served_bundle import ServedBundle
from router.selection.stickiness import Sticky
from router.small.worker_client import DraftBuilder
from router.upstream.answer_reader import Seen
from router.upstream.attempts import Tries
from router.upstream.estimates import UnitPrices
from router.upstream.large_model import Usage
from slm.protocol import Info

Side = Literal["small", "large", "none"]
_UNDECIDED = Verdict(Action.CONTINUE, Stage.BEFORE, "undecided")
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]
_SIGNALS = ("logprob", "margin", "entropy", "feasible_mass", "forced", "span")


def new_decision_id(unix_ms: int | None = None) -> str:
    """26 characters in the layout of a ULID: 48 bits of Unix milliseconds, 80 random bits, in Crockford's base 32,
    lower case. Sorts by time; cannot be guessed."""
    value = (unix_ms if unix_ms is not None else time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


class Digests(NamedTuple):
    """SHA-256 of what a row does not keep."""

    request: str
    tools: str


@dataclass(slots=True)
class Decision:
    """Mutable, owned by one request's task."""

    chat: ChatRequest
    dialect: str
    judged_by: Policy
    """For the whole request, whatever is swapped meanwhile."""
    clock: Callable[[], float] = time.monotonic
    decision_id: str = field(default_factory=new_decision_id)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    began: float = field(init=False)
    side: Side = "none"
    reason: str = _UNDECIDED.reason
    verdict: Verdict = _UNDECIDED
    builder: DraftBuilder | None = None
    draft: Draft | None = None
    info: Info | None = None
    draft_s: float | None = None
    """From asking for the draft to its end, whatever ended it; None where none was asked for."""
    exposure: Exposure | None = None
    grant: Grant | None = None
    """By which the request was let in; None where there are no keys."""
    sticky: Sticky | None = None
    """The turn of a remembered conversation that the request is."""
    large_model: str | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    """Of the large model; None where it was not asked, or its usage or price is not known."""
    estimate_usd: float | None = None
    """Beyond that, of an answer that was cut short; see `router.upstream.estimates`."""
    tries: Tries = field(default_factory=Tries)
    seen: Seen = field(default_factory=Seen)
    """Of the large model's answer."""
    unit_prices: UnitPrices | None = None
    """Of the large model, where the small one answered in its place."""
    audit_propensity: float | None = None
    status: int = 200
    error_code: str | None = None
    client_disconnected: bool = False
    answer: Mapping[str, Any] | None = None
    """The whole answer, where content is stored; of a streamed answer of the large model only its calls are."""
    explanation: Sequence[Contribution] | None = None
    """Where it was asked for and the policy can tell: the signals that spoke most."""
    recorded: bool = False

    def __post_init__(self) -> None:
        self.began = self.clock()

    @property
    def policy(self) -> str:
        """Its name; `pinned` where the client chose the side."""
        return "pinned" if self.chat.pin else self.judged_by.name

    @property
    def latency_s(self) -> float:
        """Since the request was parsed."""
        return self.clock() - self.began

    def take(self, verdict: Verdict) -> None:
        """The judge's last word."""
        self.verdict, self.reason = verdict, verdict.reason

    def failed(self, status: int, code: str) -> None:
        """The client gets an error, or the rest of its stream is one."""
        self.status, self.error_code = status, code

    def left(self) -> None:
        """The client went away before its answer was complete."""
        self.client_disconnected = True
        self.failed(499, "client_disconnected")

    def headers(self) -> dict[str, str]:
        """The response headers that tell of the decision."""
        told = {"x-smallcall-decision-id": self.decision_id, "x-smallcall-reason": self.reason}
        if self.grant is not None:
            told |= self.grant.headers
        return told | ({"x-smallcall-model": self.side} if self.side != "none" else {})

    def taken(self) -> Need:
        """What the request counts for its key: the usage that was told and its cost. A large answer whose usage was not
        told in full, because its stream was cut short or its provider is silent, counts at least what was held for it.
        """
        usage = self.usage
        tokens = usage.prompt_tokens + usage.completion_tokens if usage else 0
        if self.side == "small":
            tokens += self.small_usage()["total_tokens"]
        cost = nano_usd(self.cost_usd) or 0
        whole = usage is not None and self.status == 200
        if self.side == "large" and not whole and self.grant is not None:
            return Need(max(tokens, self.grant.held.tokens), max(cost, self.grant.held.cost_nusd))
        return Need(tokens, cost)

    def small_usage(self) -> dict[str, int]:
        """The draft's tokens as an OpenAI usage object."""
        prompt = self.builder.started.prompt_tokens if self.builder and self.builder.started else 0
        completion = len(self.builder.tokens) if self.builder else 0
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def extras(self) -> dict[str, Any]:
        """The `smallcall` object of a response."""
        return {
            "decision_id": self.decision_id,
            "side": self.side,
            "reason": self.reason,
            "policy": self.policy,
            "stage": self.verdict.stage,
            "score": self.verdict.score,
            "threshold": self.verdict.threshold,
            "findings": list(self.verdict.findings),
            "probability": self.verdict.probability,
            "bundle": self._bundle_digest(),
            "certificate": self.verdict.certificate,
            "cost_usd": 0.0 if self.large_model is None else self.cost_usd,
            "latency_s": self.latency_s,
            "small": self._small(),
        } | ({"explain": self._explained()} if self.chat.include_explain else {})

    def _explained(self) -> list[dict[str, Any]] | None:
        told = self.explanation
        return None if told is None else [{"signal": name, "contribution": value} for name, value in told]

    def _bundle_digest(self) -> str | None:
        """Of the bundle that judged; None where the client chose the side, or there is none."""
        judge = self.judged_by
        return judge.bundle.digest if isinstance(judge, ServedBundle) and self.chat.pin is None else None

    def _small(self) -> dict[str, Any] | None:
        draft, builder = self.draft, self.builder
        if draft is None or builder is None:
            return None
        started, done = builder.started, builder.done
        told: dict[str, Any] = {
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
        if self.chat.include_signals and draft.signals is not None:
            told["signals"] = _told(draft.signals, draft.hidden)
        return told

    @property
    def tool(self) -> str | None:
        """The first that the answer calls."""
        if self.side == "small" and self.draft is not None and self.draft.calls:
            return self.draft.calls[0].name
        return self.seen.calls[0].tool if self.side == "large" and self.seen.calls else None

    def small_seconds(self) -> float | None:
        """The small model's own work: prefill and decoding, without the time in its queue; None where none was asked.
        Drafts that share their steps with others are each counted in full."""
        builder = self.builder
        if builder is None or self.draft_s is None:
            return None
        if builder.started is None:
            return 0.0
        if builder.done is not None:
            return builder.started.prefill_s + builder.done.decode_s
        return max(0.0, self.draft_s - builder.started.queue_s)

    def _content(self) -> dict[str, Any]:
        told = {"request": self.chat.body, "answer": self.answer}
        return told if self.explanation is None else {**told, "explain": self._explained()}

    def digests(self) -> Digests:
        """Of the request and of its tools; a large body takes tens of milliseconds."""
        return Digests(_sha256(self.chat.body), _sha256(self.chat.tools))

    def row(self, digests: Digests, *, store_content: bool, small_usd_per_hour: float = 0.0) -> DecisionRow:
        """The ledger's row."""
        seconds, prices = self.small_seconds(), self.unit_prices
        chat, builder, usage, exposure = self.chat, self.builder, self.usage, self.exposure
        started = builder.started if builder else None
        done = builder.done if builder else None
        info = self.info if builder else None
        return DecisionRow(
            decision_id=self.decision_id,
            created_at=self.created_at,
            dialect=self.dialect,
            client_model=chat.client_model,
            side=self.side,
            reason=self.reason,
            stage=self.verdict.stage,
            policy=self.policy,
            score=self.verdict.score,
            threshold=self.verdict.threshold,
            propensity=self.verdict.propensity,
            outcome=self.draft.outcome if self.draft else None,
            n_tools=len(chat.tools),
            n_messages=len(chat.view.messages),
            streamed=chat.stream,
            status=self.status,
            error_code=self.error_code,
            client_disconnected=self.client_disconnected,
            key_id=self.grant.key.key_id if self.grant else None,
            tenant=self.grant.key.tenant if self.grant else None,
            charged_nusd=self.taken().cost_nusd if self.grant else None,
            large_model=self.large_model,
            large_prompt_tokens=usage.prompt_tokens if usage else None,
            large_completion_tokens=usage.completion_tokens if usage else None,
            large_cached_tokens=usage.cached_tokens if usage else None,
            large_cost_nusd=nano_usd(self.cost_usd),
            small_model=info.model if info else None,
            small_prompt_tokens=started.prompt_tokens if started else None,
            small_cached_tokens=started.cached_tokens if started else None,
            small_completion_tokens=len(builder.tokens) if builder else None,
            small_steps=done.steps if done else None,
            small_queue_s=started.queue_s if started else None,
            small_prefill_s=started.prefill_s if started else None,
            small_decode_s=done.decode_s if done else None,
            latency_s=self.latency_s,
            request_sha256=digests.request,
            tools_sha256=digests.tools,
            weights_sha256=info.weights_sha256 if info else None,
            adapter_sha256=info.adapter_sha256 if info else None,
            pattern_version=info.pattern_version if info else None,
            findings=self.verdict.findings,
            bundle_sha256=self._bundle_digest(),
            certificate=self.verdict.certificate,
            probability=self.verdict.probability,
            experiment=exposure.experiment if exposure else None,
            arm=exposure.arm if exposure else None,
            arm_propensity=exposure.propensity if exposure else None,
            unit_sha256=exposure.unit_sha256 if exposure else None,
            tool=self.tool,
            request_bytes=chat.size_bytes,
            large_attempts=self.tries.made if self.large_model is not None else None,
            large_estimate_nusd=nano_usd(self.estimate_usd),
            small_cost_nusd=None if seconds is None else nano_usd(seconds / 3600 * small_usd_per_hour),
            large_input_usd_per_mtok=prices.input if prices else None,
            large_cached_input_usd_per_mtok=prices.cached_input if prices else None,
            large_output_usd_per_mtok=prices.output if prices else None,
            audit_propensity=self.audit_propensity,
            content=self._content() if store_content else None,
        )


def _told(signals: TokenSignals, hidden: FloatArray | None) -> dict[str, Any]:
    """Token signals as JSON; what is missing is null, a place of `hidden` that the draft does not have also."""
    agreement = signals.layer_agreement
    return {name: getattr(signals, name).tolist() for name in _SIGNALS} | {
        "layer_agreement": None
        if agreement is None
        else [None if share != share else share for share in agreement.tolist()],
        "hidden": None if hidden is None else [None if np.isnan(row).any() else row.tolist() for row in hidden],
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True, slots=True)
class Terms:
    """None each: no experiment took it in, there are no keys, its conversation is not remembered."""

    exposure: Exposure | None = None
    grant: Grant | None = None
    sticky: Sticky | None = None


NO_TERMS = Terms()
