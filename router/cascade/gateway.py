"""The steps of the cascade: begin, judge, serve the draft or escalate, refuse or abandon.
`router.http.completion_endpoint.answer` calls them in order."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from policies.rules.baselines import SmallOnly
from policies.types import Action, Outcome, Stage, Verdict
from policies.validation import check
from router.cascade.decision import NO_ADMISSION, Admission, Decision
from router.cascade.decision_extras import asked_extras, small_usage, to_headers
from router.cascade.drafting import Drafter
from router.cascade.escalation import (
    Forwarder,
    Relay,
    Source,
    Translated,
    estimate_truncated_cost,
    forwarded_answer,
    whole_answer,
)
from router.cascade.recorder import Recorder
from router.cascade.refusals import no_large_model, not_translatable
from router.dialects.chat_completions_answers import chunks_of, small_completion
from router.dialects.errors import ClientError
from router.dialects.exchange import Exchange
from router.dialects.request import ChatRequest, Dialect
from router.selection.serving_policy import PlainPolicy, ServingPolicy
from router.small.worker_client import SmallModelError
from router.upstream.estimates import UnitPrices, unit_prices
from router.upstream.large_model import LargeModel

_UNFIT = frozenset({"draft_refused", "prompt_too_long", "schema_unsupported"})
"""Failures of a draft that lie in the request: asking again would not help."""
_PINNED_SMALL = PlainPolicy(SmallOnly(), "small_only")


@dataclass(slots=True)
class Reply:
    """The client's answer, in its dialect: a whole `body`, or a stream's events. Close it, whatever came of it."""

    decision: Decision
    body: Mapping[str, Any] | None = None
    completion: Mapping[str, Any] | None = None
    """A small answer that is to be streamed."""
    relay: Relay | None = None
    """A stream of the large model, which commits its row itself before its end."""
    auditor: Auditor | None = None
    """Auditor of the large model's answers: called when one has come to its end."""
    audited: bool = False
    """True if the large model is to be asked behind this small answer."""

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, one or several at once, where the client asked for a stream."""
        if self.relay is not None:
            async for event in self.relay.events():
                yield event
        elif self.completion is not None:
            exchange = self.decision.exchange
            chunks = list(chunks_of(self.completion, include_usage=exchange.chat.include_usage))
            yield b"".join(exchange.writer.ending(chunks, asked_extras(self.decision)))

    async def close(self) -> None:
        """Free what the reply holds, and see that its row is written."""
        if self.relay is not None:
            await self.relay.close()
        if self.auditor is not None:
            self.auditor.compare(self.decision)


class Auditor(Protocol):
    """Whatever holds drafts against what the large model says; see `router.outcomes.shadow_audits`."""

    def draw(self, decision: Decision) -> bool:
        """Return True if this answer is to be audited; called before the row is written."""

    def ask(self, decision: Decision) -> None:
        """Do so, in the background."""

    def compare(self, decision: Decision) -> None:
        """Where the large model answered in a whole draft's place, hold that against its answer, in the background."""


class Policies(Protocol):
    """Where the gateway's own policy is had; it may change between two requests."""

    @property
    def own(self) -> ServingPolicy: ...


class Gateway:
    """The parts that decide and answer; `large` may be missing.

    Args:
        forwarder: the same large model, for dialects that its provider speaks itself.
        auditor: asks the large model behind some of the answers.
        draft_if_down: serve a valid draft that the policy did not accept where the large model cannot be had.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        policies: Policies,
        drafter: Drafter,
        large: LargeModel | None,
        recorder: Recorder,
        *,
        forwarder: Forwarder | None = None,
        draft_if_down: bool,
        auditor: Auditor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policies, self._drafter, self._large, self._recorder = policies, drafter, large, recorder
        self._forwarder, self._draft_if_down, self._clock = forwarder, draft_if_down, clock
        self._prices: UnitPrices | None = None
        self._auditor = auditor
        self._prices_asked = False

    def begin(self, chat: ChatRequest, dialect: Dialect, admission: Admission = NO_ADMISSION) -> Decision:
        """Begin the decision on one request; where an experiment has taken it in, by the policy of its arm. Its end
        settles the grant."""
        exposure, grant = admission.exposure, admission.grant
        policy = exposure.policy if exposure and exposure.policy else self._policies.own
        decision = Decision(Exchange(chat, dialect), policy, admission, self._clock)
        if grant is not None:
            grant.begun = True
        return decision

    async def judge(self, decision: Decision) -> Verdict:
        """The verdict on a request: by its pin, by what only the large model can do, by its conversation, else by the
        policy, with a draft where it wants one. Raises ClientError where a request is pinned to a draft that cannot
        be had."""
        chat, sticky = decision.chat, decision.admission.sticky
        if chat.pin == "large":
            return Verdict(Action.ESCALATE, Stage.BEFORE, "pinned_large")
        if chat.large_only is not None:
            return Verdict(Action.ESCALATE, Stage.BEFORE, chat.large_only.reason)
        if sticky is not None and sticky.keeps_large is not None and chat.pin is None:
            return Verdict(Action.ESCALATE, Stage.BEFORE, sticky.keeps_large)
        try:
            return await self._drafter.verdict(decision, _PINNED_SMALL if chat.pin == "small" else decision.policy)
        except SmallModelError as error:
            if chat.pin == "small":
                decision.reason = error.code
                status = 400 if error.code in _UNFIT else 503
                raise ClientError(status, f"the small model cannot draft: {error}", error.code) from error
            return Verdict(Action.ESCALATE, Stage.BEFORE, error.code)

    def serve_draft(self, decision: Decision) -> Reply:
        """The draft as the client's answer. Raises ClientError where it cannot be written in the client's dialect."""
        exchange, draft = decision.exchange, decision.small.draft
        chat = exchange.chat
        assert draft is not None
        if chat.pin == "small":
            decision.reason = "pinned_small"
        decision.side, decision.large.unit_prices = "small", self._unit_prices()
        created, usage = int(exchange.created_at.timestamp()), small_usage(decision.small)
        completion = small_completion(exchange.decision_id, created, chat.client_model, draft.calls, usage)
        body = None
        if not chat.stream:
            body = exchange.dialect.whole(chat, exchange.decision_id, completion, asked_extras(decision))
        decision.answer = completion
        audited = self._auditor is not None and self._auditor.draw(decision)
        return Reply(decision, body, completion, audited=audited)

    async def escalate(self, decision: Decision) -> Reply:
        """The large model's whole answer, or its stream. Raises UpstreamError, ClientError."""
        exchange, work, large, forwarder = decision.exchange, decision.large, self._large, self._forwarder
        if large is None:
            raise no_large_model(decision.verdict)
        decision.side, work.model = "large", large.model
        work.summary.keep = self._recorder.store_content or self._auditor is not None
        chat = exchange.chat
        body: Mapping[str, Any] | None = None
        relay: Relay | None = None
        if forwarder is not None and forwarder.speaks(exchange.dialect.name):
            if chat.stream:
                source: Source = await forwarder.stream(exchange, work.tries)
                relay = Relay(decision, source, forwarder, self._recorder)
            else:
                body = await forwarded_answer(decision, forwarder)
        elif chat.native_only is not None:
            raise not_translatable(chat.native_only)
        elif chat.stream:
            source = Translated(await large.stream(chat.body, work.tries), exchange.writer)
            relay = Relay(decision, source, large, self._recorder)
        else:
            body = await whole_answer(decision, large)
        return Reply(decision, body, relay=relay, auditor=self._auditor)

    def may_stand_in(self, decision: Decision) -> bool:
        """Return True if a draft is there that is valid, though the policy was not sure enough of it."""
        draft = decision.small.draft
        if not self._draft_if_down or draft is None or draft.outcome is not Outcome.CALLS:
            return False
        return not check(decision.chat.view, draft)

    async def record(self, reply: Reply) -> None:
        """Commit the row of a reply that is whole, and have it audited where that was drawn; a stream of the large
        model commits its own, before its end. Raises ClientError: 503."""
        if reply.relay is not None:
            return
        await self._recorder.record(reply.decision)
        if reply.audited and self._auditor is not None:
            self._auditor.ask(reply.decision)

    async def refuse(self, decision: Decision, error: ClientError) -> None:
        """Commit the row of an error, and put the decision into its headers. Raises ClientError: 503."""
        decision.side = "none"
        decision.fail(error.status, error.code)
        error.extra_headers = to_headers(decision)
        error.extras = asked_extras(decision)
        await self._recorder.record(decision)

    async def abandon(self, decision: Decision) -> None:
        """Commit the row of a request whose client went away before its answer was ready."""
        estimate_truncated_cost(decision, self._large)
        decision.mark_disconnected()
        await self._recorder.record(decision)

    def _unit_prices(self) -> UnitPrices | None:
        """Prices of the large model. Not asked for again once its price map is there and does not know it."""
        if self._prices is None and self._large is not None and not self._prices_asked:
            self._prices_asked = self._large.ready
            self._prices = unit_prices(self._large)
        return self._prices
