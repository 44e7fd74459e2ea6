"""The cascade: before → draft → during → after → answer or escalate, once; then one durable row.

Rules that hold on every path: nothing of a draft is sent before its verdict; a request is escalated at most once and
never after the first byte; if the small side fails in any way, the large side answers; the row is committed before the
last byte, and also where the client has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import structlog

from policies.baselines import SmallOnly
from policies.policy import Action, Draft, Policy, Verdict
from router.decision import Decision
from router.dialects.chat import ChatRequest, ClientError
from router.dialects.chat_completions import DIALECT, DONE, chunks_of, small_completion, sse
from router.ledger import Ledger, LedgerUnavailableError
from router.local import DraftBuilder, SmallModel, SmallModelError
from router.settings import Settings
from router.telemetry import Metrics
from router.upstream import LargeModel, UpstreamError, usage_of
from slm import protocol

_log = structlog.get_logger("gateway")
_PERMANENT = frozenset({"bad_request", "prompt_too_long", "schema_unsupported"})
"""Codes of drafts that will fail again."""
_GRACE_S = 2.0
"""What a draft may take beyond its deadline before the worker counts as hung."""


@dataclass(slots=True)
class Reply:
    """What the client gets: a whole `body`, or `events` whose first is at hand."""

    decision: Decision
    body: dict[str, Any] | None = None
    events: AsyncIterator[bytes] | None = None


class Gateway:
    """Decides and answers. Backends are passed in; `small` and `large` may be missing."""

    def __init__(
        self,
        settings: Settings,
        policy: Policy,
        ledger: Ledger,
        metrics: Metrics,
        small: SmallModel | None,
        large: LargeModel | None,
    ) -> None:
        self._settings, self._policy, self._ledger, self._metrics = settings, policy, ledger, metrics
        self._small, self._large = small, large

    async def answer(self, chat: ChatRequest) -> Reply:
        """Answer one request.

        Raises:
            ClientError: its row is committed already.
        """
        decision = Decision(chat, DIALECT, "pinned" if chat.pin else self._policy.name)
        try:
            verdict = await self._judge(decision)
            decision.verdict, decision.reason = verdict, verdict.reason
            if verdict.action is Action.ANSWER:
                return await self._answer_small(decision)
            return await self._escalate(decision)
        except ClientError as error:
            decision.side, decision.status, decision.error_code = "none", error.status, error.code
            await self._record(decision)
            raise
        except asyncio.CancelledError:
            decision.client_disconnected, decision.status, decision.error_code = True, 499, "client_disconnected"
            await self._record(decision)
            raise

    # ── the small side ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _judge(self, decision: Decision) -> Verdict:
        chat = decision.chat
        before = self._policy.before(chat.view)
        if chat.pin == "large":
            return _escalated(before, "pinned_large")
        if chat.pin == "small":
            return await self._pinned_small(decision)
        if chat.large_reason:
            return _escalated(before, chat.large_reason)
        if before.action is Action.ESCALATE:
            return before
        try:
            return await self._draft(decision, give_up=True) or self._policy.after(chat.view, _drafted(decision))
        except SmallModelError as error:
            _log.info("draft_failed", code=error.code, decision_id=decision.decision_id)
            return _escalated(before, error.code)

    async def _pinned_small(self, decision: Decision) -> Verdict:
        chat, serve = decision.chat, SmallOnly()
        before = serve.before(chat.view)
        if chat.large_reason or before.action is Action.ESCALATE:
            reason = chat.large_reason or before.reason
            detail = "; ".join(before.findings) or reason
            raise ClientError(400, f"the small model cannot take this request: {detail}", reason, param="tools")
        try:
            await self._draft(decision, give_up=False)
        except SmallModelError as error:
            raise ClientError(
                503, f"the small model cannot draft: {error}", error.code, type_="server_error"
            ) from error
        decision.verdict = serve.after(chat.view, _drafted(decision))
        if decision.verdict.action is Action.ESCALATE:
            found = "; ".join(decision.verdict.findings) or decision.verdict.reason
            failure = ClientError(422, f"the small model's draft is not valid: {found}", "small_draft_invalid")
            decision.reason = decision.verdict.reason
            raise _WithExtras(failure, decision) if chat.include_decision else failure
        verdict = decision.verdict
        return Verdict(Action.ANSWER, verdict.stage, "pinned_small", verdict.score, verdict.threshold)

    async def _draft(self, decision: Decision, *, give_up: bool) -> Verdict | None:
        """Draft into `decision`; the verdict where the policy gave up when the plan stood."""
        if self._small is None:
            raise SmallModelError("small_disabled", "no small model is configured")
        chat, small = decision.chat, self._settings.small
        choice = chat.view.tool_choice
        command = protocol.DraftCommand(
            messages=list(map(dict, chat.view.messages)),
            tools=chat.tools,
            tool_choice="auto" if choice == "none" else choice,
            forced_tool=chat.view.forced_tool,
            parallel_tool_calls=chat.view.parallel_tool_calls,
            max_tokens=small.max_tokens,
            deadline_s=small.deadline_s,
            grammar=small.grammar,
        )
        builder = decision.builder = DraftBuilder()
        decision.info = self._small.info
        try:
            async with asyncio.timeout(small.deadline_s + _GRACE_S), self._small.events(command) as events:
                async for event in events:
                    builder.add(event)
                    if give_up and isinstance(event, protocol.PlanMade):
                        verdict = self._policy.during(chat.view, builder.plan_names, builder.signals())
                        if verdict.action is Action.ESCALATE:
                            decision.draft = builder.draft()
                            return verdict
        except TimeoutError as error:
            raise SmallModelError("draft_timeout", "the draft took too long") from error
        decision.draft = builder.draft()
        return None

    async def _answer_small(self, decision: Decision) -> Reply:
        chat = decision.chat
        decision.side = "small"
        calls = _drafted(decision).calls
        body = small_completion(decision.decision_id, chat.client_model, calls, decision.small_usage())
        if chat.include_decision:
            body["smallcall"] = decision.extras()
        decision.answer = body
        await self._record(decision)
        if not chat.stream:
            return Reply(decision, body=body)
        return Reply(decision, events=_small_events(body, include_usage=chat.include_usage))

    # ── the large side ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _escalate(self, decision: Decision) -> Reply:
        if self._large is None:
            message = (
                "the small model's draft was not accepted and no large model is configured: "
                "set large.model (or SMALLCALL_LARGE__MODEL) and its key"
            )
            raise ClientError(503, message, "large_not_configured", type_="server_error")
        decision.side, decision.large_model = "large", self._large.model
        try:
            if decision.chat.stream:
                chunks = await self._large.stream(decision.chat.body)
                first = await anext(chunks, None)
                return Reply(decision, events=self._large_events(decision, first, chunks))
            body = await self._large.complete(decision.chat.body)
        except UpstreamError as error:
            if self._may_serve_draft(decision):
                decision.reason = "upstream_unavailable"
                return await self._answer_small(decision)
            kind = "invalid_request_error" if error.status < 500 and error.status != 429 else "server_error"
            raise ClientError(
                error.status, error.message, error.code, type_=kind, retry_after_s=error.retry_after_s
            ) from error
        self._count(decision, body)
        body["model"] = decision.chat.client_model
        if decision.chat.include_decision:
            body["smallcall"] = decision.extras()
        decision.answer = body
        await self._record(decision)
        return Reply(decision, body=body)

    async def _large_events(
        self, decision: Decision, first: dict[str, Any] | None, rest: AsyncIterator[dict[str, Any]]
    ) -> AsyncIterator[bytes]:
        """The large model's chunks; its row is committed before the end is told, and also where the client leaves."""
        chat = decision.chat
        finished = False
        try:
            chunk = first
            while chunk is not None:
                self._count(decision, chunk)
                chunk["model"] = chat.client_model
                if not chat.include_usage:
                    chunk.pop("usage", None)
                if chunk.get("choices") or chat.include_usage:
                    yield sse(chunk)
                chunk = await anext(rest, None)
            if chat.include_decision:
                yield sse({"object": "chat.completion.chunk", "choices": [], "smallcall": decision.extras()})
            await self._record(decision)
            finished = True
            yield DONE
        except UpstreamError as error:
            decision.status, decision.error_code = error.status, error.code
            await self._record(decision)
            finished = True
            yield sse(ClientError(error.status, error.message, error.code, type_="server_error").body())
        finally:
            if not finished:
                decision.client_disconnected, decision.error_code = True, "client_disconnected"
                await asyncio.shield(asyncio.create_task(self._record(decision)))

    def _may_serve_draft(self, decision: Decision) -> bool:
        draft = decision.draft
        allowed = self._settings.serve_draft_if_large_down and decision.verdict.reason == "low_confidence"
        return allowed and draft is not None and draft.complete

    def _count(self, decision: Decision, answer: dict[str, Any]) -> None:
        usage = usage_of(answer)
        if usage is not None and self._large is not None:
            decision.usage, decision.cost_usd = usage, self._large.cost_usd(usage)

    # ── the record ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _record(self, decision: Decision) -> None:
        """Commit the row, once. A ledger that is down turns the answer into an error: no answer without a row."""
        if decision.recorded:
            return
        decision.recorded = True
        decision.latency_s = time.monotonic() - decision.began
        self._metrics.decisions.labels(decision.side, decision.reason, str(decision.status)).inc()
        self._metrics.latency.labels(decision.side).observe(decision.latency_s)
        if decision.usage is not None:
            self._metrics.tokens.labels("large", "prompt").inc(decision.usage.prompt_tokens)
            self._metrics.tokens.labels("large", "completion").inc(decision.usage.completion_tokens)
        self._metrics.cost.inc(decision.cost_usd or 0.0)
        try:
            await self._ledger.write(decision.row(store_content=self._settings.ledger.store_content))
        except LedgerUnavailableError as error:
            _log.error("ledger_unavailable", decision_id=decision.decision_id, error=str(error))
            raise ClientError(
                503, "the decision could not be recorded", "ledger_unavailable", type_="server_error"
            ) from error
        _log.info(
            "decided",
            decision_id=decision.decision_id,
            side=decision.side,
            reason=decision.reason,
            status=decision.status,
            latency_s=round(decision.latency_s, 4),
        )


class _WithExtras(ClientError):
    """An error whose body tells of the decision, where the request asked for it."""

    def __init__(self, error: ClientError, decision: Decision) -> None:
        super().__init__(error.status, error.message, error.code)
        self._decision = decision

    def body(self) -> dict[str, Any]:
        return {**super().body(), "smallcall": self._decision.extras()}


def _escalated(verdict: Verdict, reason: str) -> Verdict:
    return Verdict(Action.ESCALATE, verdict.stage, reason, findings=verdict.findings)


def _drafted(decision: Decision) -> Draft:
    assert decision.draft is not None
    return decision.draft


async def _small_events(body: dict[str, Any], *, include_usage: bool) -> AsyncIterator[bytes]:
    for chunk in chunks_of(body, include_usage=include_usage):
        yield sse(chunk)
    yield DONE
