"""The cascade: before → draft → during → after → answer or escalate, once; then one durable row.

Rules that hold on every path: nothing of a draft is sent before its verdict; a request is escalated at most once and
never after the first byte; if the small side fails in any way, the large side answers; the row is committed before the
answer's end is told, and also where the client has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from policies.rules.baselines import SmallOnly
from policies.types import Action, Outcome, Policy, Stage, Verdict
from policies.validation import check
from router.cascade.decision import NO_TERMS, Decision, Terms
from router.cascade.drafting import Drafter
from router.cascade.escalation import (
    Forwarder,
    Relay,
    Source,
    Translated,
    asked_extras,
    cut_short,
    forwarded_answer,
    told,
    whole_answer,
)
from router.cascade.recorder import Recorder
from router.cascade.refusals import no_large_model, not_servable_small, not_translatable
from router.dialects.chat_completions_answers import chunks_of, small_completion
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest, Dialect, Writer
from router.small.worker_client import SmallModelError
from router.telemetry import where
from router.upstream.attempts import TRIES
from router.upstream.estimates import UnitPrices, unit_prices
from router.upstream.large_model import LargeModel, UpstreamError, UpstreamRejected

_log = structlog.get_logger("gateway")
_UNFIT = frozenset({"draft_refused", "prompt_too_long", "schema_unsupported"})
"""Failures of a draft that lie in the request: asking again would not help."""


@dataclass(slots=True)
class Reply:
    """What the client gets, in its dialect: a whole `body`, or a stream's events. Close it, whatever came of it."""

    decision: Decision
    writer: Writer
    """Of the stream, where the client asked for one."""
    body: Mapping[str, Any] | None = None
    completion: Mapping[str, Any] | None = None
    """A small answer that is to be streamed."""
    relay: Relay | None = None
    auditor: Auditor | None = None
    """Of the large model's answers: told when one has come to its end."""

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events, one or several at once, where the client asked for a stream."""
        if self.relay is not None:
            async for event in self.relay.events():
                yield event
        elif self.completion is not None:
            chunks = list(chunks_of(self.completion, include_usage=self.decision.chat.include_usage))
            yield b"".join(self.writer.ending(chunks, asked_extras(self.decision)))

    async def close(self) -> None:
        """Free what the reply holds, and see that its row is written."""
        if self.relay is not None:
            await self.relay.close()
        if self.auditor is not None:
            self.auditor.compare(self.decision)


class Auditor(Protocol):
    """Whatever holds drafts against what the large model says; see `router.outcomes.shadow_audits`."""

    def draw(self, decision: Decision) -> bool:
        """Whether to, before the row is written."""

    def ask(self, decision: Decision) -> None:
        """Do so, in the background."""

    def compare(self, decision: Decision) -> None:
        """Where the large model answered in a whole draft's place, hold that against its answer, in the background."""


class Policies(Protocol):
    """Where the gateway's own policy is had; it may change between two requests."""

    @property
    def own(self) -> Policy: ...


class Gateway:
    """Decides and answers. Parts are passed in; `large` may be missing.

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

    def decision(self, chat: ChatRequest, dialect: Dialect, terms: Terms = NO_TERMS) -> Decision:
        """Begin the decision on one request; where an experiment has taken it in, by the policy of its arm. Its end
        settles the grant."""
        exposure = terms.exposure
        policy = exposure.policy if exposure and exposure.policy else self._policies.own
        decision = Decision(chat, dialect.name, policy, self._clock)
        decision.exposure, decision.grant, decision.sticky = exposure, terms.grant, terms.sticky
        if terms.grant is not None:
            terms.grant.begun = True
        return decision

    async def answer(self, decision: Decision, dialect: Dialect, writer: Writer) -> Reply:
        """Answer one request; `writer` is its stream's, if it has one.

        Raises:
            ClientError: its row is committed already.
        """
        try:
            return await self._answered(decision, dialect, writer)
        except ClientError as error:
            await self._refuse(decision, error)
            raise
        except asyncio.CancelledError:
            cut_short(decision, self._large)
            decision.left()
            await self._recorder.record(decision)
            raise
        except Exception as error:
            _log.error("crashed", where=where(error), decision_id=decision.decision_id)
            failure = ClientError(500, "the gateway failed; the decision id names the log line", "internal_error")
            await self._refuse(decision, failure)
            raise failure from error

    async def _refuse(self, decision: Decision, error: ClientError) -> None:
        """Commit the row of an error, and let the error tell of the decision."""
        decision.side = "none"
        decision.failed(error.status, error.code)
        error.told = decision.headers()
        error.extras = decision.extras() if decision.chat.include_decision else None
        await self._recorder.record(decision)

    async def _answered(self, decision: Decision, dialect: Dialect, writer: Writer) -> Reply:
        decision.take(await self._verdict(decision))
        if decision.verdict.action is Action.ANSWER:
            return await self._serve_draft(decision, dialect, writer)
        if decision.chat.pin == "small":
            raise not_servable_small(decision.chat, decision.verdict)
        try:
            return await self._escalate(decision, dialect, writer)
        except UpstreamError as error:
            if isinstance(error, UpstreamRejected) or not self._may_stand_in(decision):
                raise told(error) from error
        decision.reason = "upstream_unavailable"
        return await self._serve_draft(decision, dialect, writer)

    async def _verdict(self, decision: Decision) -> Verdict:
        chat, policy = decision.chat, decision.judged_by
        if chat.pin == "large":
            return Verdict(Action.ESCALATE, Stage.BEFORE, "pinned_large")
        if chat.large_only is not None:
            return Verdict(Action.ESCALATE, Stage.BEFORE, chat.large_only.reason)
        if decision.sticky is not None and decision.sticky.keeps_large is not None and chat.pin is None:
            return Verdict(Action.ESCALATE, Stage.BEFORE, decision.sticky.keeps_large)
        try:
            return await self._drafter.verdict(decision, SmallOnly() if chat.pin == "small" else policy)
        except SmallModelError as error:
            if chat.pin == "small":
                decision.reason = error.code
                status = 400 if error.code in _UNFIT else 503
                raise ClientError(status, f"the small model cannot draft: {error}", error.code) from error
            return Verdict(Action.ESCALATE, Stage.BEFORE, error.code)

    async def _serve_draft(self, decision: Decision, dialect: Dialect, writer: Writer) -> Reply:
        chat, draft = decision.chat, decision.draft
        assert draft is not None
        if chat.pin == "small":
            decision.reason = "pinned_small"
        decision.side, decision.unit_prices = "small", self._unit_prices()
        created = int(decision.created_at.timestamp())
        usage = decision.small_usage()
        completion = small_completion(decision.decision_id, created, chat.client_model, draft.calls, usage)
        body = None
        if not chat.stream:
            body = dialect.whole(chat, decision.decision_id, completion, asked_extras(decision))
        decision.answer = completion
        audited = self._auditor is not None and self._auditor.draw(decision)
        await self._recorder.record(decision)
        if self._auditor is not None and audited:
            self._auditor.ask(decision)
        return Reply(decision, writer, body, completion)

    async def _escalate(self, decision: Decision, dialect: Dialect, writer: Writer) -> Reply:
        """Raises UpstreamError, ClientError."""
        chat, large, recorder = decision.chat, self._large, self._recorder
        if large is None:
            raise no_large_model(decision.verdict)
        decision.side, decision.large_model = "large", large.model
        decision.seen.keep = recorder.store_content or self._auditor is not None
        TRIES.set(decision.tries)
        forwarder = self._forwarder
        body: Mapping[str, Any] | None = None
        relay: Relay | None = None
        if forwarder is not None and forwarder.speaks(dialect.name):
            if chat.stream:
                source: Source = await forwarder.stream(chat, dialect.name, writer)
                relay = Relay(decision, source, writer, forwarder, recorder)
            else:
                body = await forwarded_answer(decision, dialect, forwarder, recorder)
        elif chat.native_only is not None:
            raise not_translatable(chat.native_only)
        elif chat.stream:
            relay = Relay(decision, Translated(await large.stream(chat.body), writer), writer, large, recorder)
        else:
            body = await whole_answer(decision, dialect, large, recorder)
        return Reply(decision, writer, body, relay=relay, auditor=self._auditor)

    def _unit_prices(self) -> UnitPrices | None:
        """Of the large model. Not asked for again once its price map is there and does not know it."""
        if self._prices is None and self._large is not None and not self._prices_asked:
            self._prices_asked = self._large.ready
            self._prices = unit_prices(self._large)
        return self._prices

    def _may_stand_in(self, decision: Decision) -> bool:
        """Whether a draft is there that is valid, though the policy was not sure enough of it."""
        draft = decision.draft
        if not self._draft_if_down or draft is None or draft.outcome is not Outcome.CALLS:
            return False
        return not check(decision.chat.view, draft)
