"""A draft asked for and judged: before, during and after. Whatever fails here is a `SmallModelError`, and the large
model answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from policies.types import Action, Verdict
from router.cascade.decision import Decision
from router.dialects.request import ChatRequest
from router.selection.serving_policy import ServingPolicy
from router.settings import OFFLOAD_BYTES, Small
from router.small.worker_client import DraftBuilder, SmallModel, SmallModelError
from router.telemetry import where
from slm import protocol

_log = structlog.get_logger("gateway")
T = TypeVar("T")

GRACE_S = 2.0
"""Seconds a draft may take beyond its deadline before the worker counts as hung."""


class Drafter:
    """Drafts with one small model.

    Args:
        small: may be missing.
        grammar: whether drafts are made under the grammar of their tools; studies draft without it, too.
    """

    def __init__(self, small: SmallModel | None, settings: Small, *, grammar: bool = True) -> None:
        self._small, self._settings, self._grammar = small, settings, grammar

    async def verdict(self, decision: Decision, policy: ServingPolicy) -> Verdict:
        """The policy's verdict on the request; what was drafted stands in `decision` then.

        Raises:
            SmallModelError: the small side failed, in whatever way.
        """
        try:
            return await self._verdict(decision, policy)
        except SmallModelError as error:
            if self._small is not None:
                _log.info("draft_failed", code=error.code, decision_id=decision.decision_id)
            raise
        except Exception as error:
            _log.error("small_side_crashed", where=where(error), decision_id=decision.decision_id)
            raise SmallModelError("small_side_crashed", "the small side failed") from error

    async def _verdict(self, decision: Decision, policy: ServingPolicy) -> Verdict:
        chat = decision.chat
        before = await _judged(chat, lambda: policy.before(chat.view))
        if before.action is Action.ESCALATE:
            return before
        given_up = await self._draft(decision, policy)
        if given_up is not None:
            return given_up
        draft = decision.small.draft
        assert draft is not None
        if chat.include_explain:
            decision.small.explanation = await _judged(chat, lambda: policy.explain(chat.view, draft))
        return await _judged(chat, lambda: policy.after(chat.view, draft))

    async def _draft(self, decision: Decision, policy: ServingPolicy) -> Verdict | None:
        """Draft into `decision`; the verdict where the policy gave up when the plan stood: the draft is cancelled."""
        if self._small is None:
            raise SmallModelError("small_disabled", "no small model is configured")
        chat, work, builder = decision.chat, decision.small, DraftBuilder()
        work.builder, work.info = builder, self._small.info
        began = decision.clock()
        try:
            async with (
                asyncio.timeout(self._settings.deadline_s + GRACE_S),
                self._small.events(self._command(chat)) as events,
            ):
                async for event in events:
                    builder.add(event)
                    if isinstance(event, protocol.PlanMade):
                        planned = builder.planned()
                        verdict = await _judged(chat, partial(policy.during, chat.view, planned))
                        if verdict.action is Action.ESCALATE:
                            work.draft = planned
                            return verdict
        except TimeoutError as error:
            raise SmallModelError("draft_timeout", "the draft took too long") from error
        finally:
            work.seconds = decision.clock() - began
        work.draft = builder.draft()
        return None

    def _command(self, chat: ChatRequest) -> protocol.DraftCommand:
        choice, settings = chat.view.tool_choice, self._settings
        if choice == "none":
            raise SmallModelError("draft_refused", "tool_choice: none leaves nothing to draft")
        return protocol.DraftCommand(
            messages=list(map(dict, chat.view.messages)),
            tools=chat.tools,
            tool_choice=choice,
            forced_tool=chat.view.forced_tool,
            parallel_tool_calls=chat.view.parallel_tool_calls,
            max_tokens=settings.max_tokens,
            deadline_s=settings.deadline_s,
            grammar=self._grammar,
        )


async def _judged(chat: ChatRequest, judge: Callable[[], T]) -> T:
    return await asyncio.to_thread(judge) if chat.size_bytes > OFFLOAD_BYTES else judge()
