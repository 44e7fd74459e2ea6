"""Shadow audits: a small answer is served, and some of the time the large model is asked the same behind it.

What it says is compared and thrown away: it reaches no client, and nobody executes it. The answer is never held up. An
accepted draft is audited with probability e(x) = max(floor, scale·√(p(1 − p))), p the judge's probability that the
draft is right (its score where there is none); the scale is set anew now and then so that a share `rate` is audited on
average (`evaluation.live.offpolicy.plan_audits`). e(x) stands in the decision's row. Where no audit could be made (over
budget, over the rate limit, no large model), the row has no propensity, and estimates leave it out: that hangs on what
was before, not on the request.

Where a whole draft went large, the large model's answer is there already: both are compared, at no cost, and kept as an
audit of propensity 1. So thresholds below the one in force can be judged as well (`evaluation.live.decisions`).

Not guaranteed: the day's budget to the last cent. Audits under way when it runs out are finished, `MAX_INFLIGHT` of
them at most in each gateway; where the price is not known, only the rate limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import datetime
from random import Random
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from evaluation.cases.answers import Answer, Call
from evaluation.live.audits import agreement
from evaluation.live.offpolicy import AuditPlan, plan_audits
from policies.types import Action, Draft, Outcome, Stage
from router.cascade.decision import Decision
from router.ledger.audits import Audit, record_audit, spent_nusd
from router.ledger.outcomes import now
from router.ledger.row import NANO, nano_usd
from router.settings import Audits
from router.telemetry import where
from router.upstream.answer_reader import AnswerSummary
from router.upstream.large_model import LargeModel, UpstreamError, usage_of

_log = structlog.get_logger("audits")
MAX_INFLIGHT = 4
MAX_COMPARING = 64
"""Comparisons that are being written; where there are more, the next ones are let be."""
_PLAN_EVERY = 200
_REMEMBERED = 2_000
_REST_S = 0.05
"""An audit lets the answer go first."""


class ShadowAuditor:
    """Draws and makes audits. Belongs to one event loop; made by `running`.

    Args:
        floor: least probability of an audit; `settings.rate` where that is lower.
        per_minute: audits that are begun in a minute at most.
    """

    def __init__(
        self,
        settings: Audits,
        large: LargeModel,
        engine: AsyncEngine,
        *,
        rng: Random,
        store_content: bool,
        floor: float,
        per_minute: int,
        clock: Callable[[], datetime] = now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._large, self._engine, self._rng = settings, large, engine, rng
        self._store_content, self._clock, self._monotonic = store_content, clock, monotonic
        self._floor, self._per_minute = min(floor, settings.rate), per_minute
        # Until there is something to plan by: at p = 1/2 the rate itself.
        self._plan = AuditPlan(2.0 * settings.rate, self._floor)
        self._probabilities: deque[float] = deque(maxlen=_REMEMBERED)
        self._seen = 0
        self._drawn_at: deque[float] = deque()
        self._day, self._spent_nusd = clock().date(), 0
        self._asking: set[asyncio.Task[None]] = set()
        self._comparing: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ShadowAuditor]:
        """Audits of today are counted from the ledger; those under way at the end are given up."""
        self._spent_nusd = await spent_nusd(self._engine, self._day)
        try:
            yield self
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, *self._comparing, return_exceptions=True)

    def draw(self, decision: Decision) -> bool:
        """True if this answer is to be audited; its propensity stands in the decision then, drawn or not."""
        if decision.verdict.action is not Action.ANSWER or decision.chat.pin is not None or not self._possible():
            return False
        p = probability_of(decision)
        self._probabilities.append(p)
        self._seen += 1
        if self._seen % _PLAN_EVERY == 0:
            self._plan = plan_audits(self._probabilities, rate=self._settings.rate, floor=self._floor)
        decision.audit_propensity = float(self._plan.propensity(p))
        if self._rng.random() >= decision.audit_propensity:
            return False
        self._drawn_at.append(self._monotonic())
        return True

    def ask(self, decision: Decision) -> None:
        """Ask the large model, in the background."""
        self._behind(self._audit(decision), self._asking)

    def compare(self, decision: Decision) -> None:
        """Hold a whole draft that went large against the answer that came in its place, in the background."""
        drafted = decision.verdict.stage is Stage.AFTER and decision.small.draft is not None
        room = len(self._comparing) < MAX_COMPARING
        if drafted and decision.chat.pin is None and room and decision.side == "large" and decision.status == 200:
            self._behind(self._compared(decision), self._comparing)

    def _behind(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work, name="audit")
        among.add(task)
        task.add_done_callback(among.discard)

    def _possible(self) -> bool:
        at, today = self._monotonic(), self._clock().date()
        if today != self._day:
            self._day, self._spent_nusd = today, 0
        while self._drawn_at and self._drawn_at[0] <= at - 60.0:
            self._drawn_at.popleft()
        return (
            self._large.ready
            and len(self._asking) < MAX_INFLIGHT
            and len(self._drawn_at) < self._per_minute
            and self._spent_nusd < self._settings.usd_per_day * NANO
        )

    async def _audit(self, decision: Decision) -> None:
        await asyncio.sleep(_REST_S)
        began = self._monotonic()
        answer: dict[str, Any] = {}
        reason: str | None = None
        try:
            answer = await self._large.complete(decision.chat.body)
        except UpstreamError as error:
            reason = error.code
        except Exception as error:  # noqa: BLE001 - an audit that breaks must not go unseen, and breaks nothing
            _log.warning("audit_failed", decision_id=decision.decision_id, where=where(error))
            reason = "failed"
        usage = usage_of(answer)
        cost = nano_usd(self._large.cost_usd(usage)) if usage else None
        self._spent_nusd += cost or 0
        seen = AnswerSummary(keep=True)
        seen.whole(answer)
        agreed, why = (None, reason) if reason else compared(decision.chat.tools, seen, decision.small.draft)
        audit = Audit(
            decision_id=decision.decision_id,
            at=self._clock(),
            propensity=decision.audit_propensity or 0.0,
            agreed=agreed,
            reason=why or "failed",
            large_model=self._large.model,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cost_nusd=cost,
            latency_s=self._monotonic() - began,
            answer=seen.message() if self._store_content else None,
        )
        await self._record(audit)
        with contextlib.suppress(SQLAlchemyError, OSError):
            # What the other replicas spent counts as well.
            self._spent_nusd = max(self._spent_nusd, await spent_nusd(self._engine, self._day))

    async def _compared(self, decision: Decision) -> None:
        try:
            agreed, why = compared(decision.chat.tools, decision.large.summary, decision.small.draft)
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("audit_failed", decision_id=decision.decision_id, where=where(error))
            agreed, why = None, "failed"
        await self._record(
            Audit(
                decision_id=decision.decision_id,
                at=self._clock(),
                propensity=1.0,
                agreed=agreed,
                reason=why,
                large_model=decision.large.model or "",
                prompt_tokens=None,
                completion_tokens=None,
                cost_nusd=None,
                latency_s=0.0,
                answer=None,
            )
        )

    async def _record(self, audit: Audit) -> None:
        try:
            await record_audit(self._engine, audit)
        except Exception as error:  # noqa: BLE001 - the audit is lost, and nothing else
            _log.warning("audit_not_recorded", decision_id=audit.decision_id, where=where(error))


def probability_of(decision: Decision) -> float:
    """The judge's probability that the draft is right; else its score, where it lies in [0, 1]; else a half."""
    verdict = decision.verdict
    p = verdict.probability if verdict.probability is not None else verdict.score
    return float(p) if p is not None and 0.0 <= p <= 1.0 else 0.5


def compared(
    tools: list[Mapping[str, Any]] | list[dict[str, Any]], seen: AnswerSummary, draft: Draft | None
) -> tuple[bool | None, str]:
    """Return True if the large model said the same (None: not comparable), and the scorer's word for the result."""
    if draft is not None and draft.outcome is Outcome.UNPARSABLE:
        return False, "unparsable"
    large = Answer(tuple(Call.from_text(call.tool, call.arguments or "{}") for call in seen.calls))
    small = Answer(tuple(Call.from_text(call.name, call.arguments) for call in draft.calls) if draft else ())
    found = agreement(tools, large, small)
    return (found.passed, str(found.reason)) if found is not None else (None, "not_comparable")
