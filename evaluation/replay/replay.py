"""Replay of policies: the small and the large arm's traces side by side, and policies run over them.

A replay counts what the gateway does. The small model is paid for wherever a draft was begun, the large one wherever it
was asked; a draft that may not be served escalates. A draft that `during` would cut short is charged in full, and
latencies are those of the traces, under whatever load they were collected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluation.cases.case import Case
from evaluation.cases.splits import components
from evaluation.metrics import Floats
from evaluation.traces.table import Trace, TraceRow, draft_of, request_of
from policies.rules.scores import ScoreFunction
from policies.rules.single import OnOther, before_draft, judge_validity
from policies.types import Action, BoolArray, Draft, Outcome, Policy, Request, Stage, Verdict

Ints = npt.NDArray[np.int64]


class ReplayError(ValueError):
    """Traces that cannot be replayed together."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Cases that are in no figure, counted by reason."""

    without_small: int
    without_large: int
    without_gold: int


@dataclass(frozen=True, slots=True)
class Arms:
    """n cases that both arms were asked; every array has shape (n,)."""

    cases: Sequence[Case]
    small_rows: Sequence[TraceRow]
    large_rows: Sequence[TraceRow]
    requests: Sequence[Request]
    drafts: Sequence[Draft]
    small_pass: BoolArray
    """A request that failed did not pass."""
    large_pass: BoolArray
    small_cost: Floats
    """USD."""
    large_cost: Floats
    """USD."""
    small_latency: Floats
    """Seconds; NaN where not measured."""
    large_latency: Floats
    draftable: BoolArray
    """False where every drafting policy escalates before a draft is begun, such as a request without tools."""
    clusters: Sequence[str]
    """Cases that share a conversation or a gold tool, directly or through others, share a cluster."""
    small_failed: int
    """Requests without an answer, counted as not passed and free of charge."""
    large_failed: int
    small_unpriced: int
    """Drafts of unknown cost, counted as free."""
    left_out: LeftOut

    def __len__(self) -> int:
        return len(self.cases)

    def take(self, rows: Ints) -> Arms:
        """Some of the cases, in the order of `rows` (indices). Failures and free drafts are counted anew."""
        index = rows.tolist()
        small, large = [self.small_rows[i] for i in index], [self.large_rows[i] for i in index]
        return Arms(
            cases=[self.cases[i] for i in index],
            small_rows=small,
            large_rows=large,
            requests=[self.requests[i] for i in index],
            drafts=[self.drafts[i] for i in index],
            small_pass=self.small_pass[rows],
            large_pass=self.large_pass[rows],
            small_cost=self.small_cost[rows],
            large_cost=self.large_cost[rows],
            small_latency=self.small_latency[rows],
            large_latency=self.large_latency[rows],
            draftable=self.draftable[rows],
            clusters=[self.clusters[i] for i in index],
            small_failed=sum(row.passed is None for row in small),
            large_failed=sum(row.passed is None for row in large),
            small_unpriced=sum(row.small_busy_s is None and row.cost_usd is None for row in small),
            left_out=self.left_out,
        )


@dataclass(frozen=True, slots=True)
class Decisions:
    """A policy's decisions on n requests; every array has shape (n,)."""

    answered_small: BoolArray
    drafted: BoolArray
    """False where the request was escalated before a draft was begun."""
    verdicts: Sequence[Verdict]
    """The one that ended each request's judgement."""


def join(cases: Sequence[Case], small: Trace, large: Trace, *, small_usd_per_hour: float) -> Arms:
    """Put the arms' rows of the same cases together.

    A draft costs the seconds in which the small model worked, at `small_usd_per_hour`; where a trace has no such
    seconds, what its row says it cost. Raises ReplayError where no case is common, or a large answer has no cost.
    """
    small_by_id, large_by_id = ({row.case_id: row for row in trace.rows} for trace in (small, large))
    scorable = [case for case in cases if case.scorable]
    both = [case for case in scorable if case.id in small_by_id and case.id in large_by_id]
    if not both:
        raise ReplayError("no case with a gold answer stands in both traces")
    small_rows = [small_by_id[case.id] for case in both]
    large_rows = [large_by_id[case.id] for case in both]
    small_cost = [cost_of_draft(row, small_usd_per_hour) for row in small_rows]
    requests = [request_of(case) for case in both]
    cluster = components(both)
    return Arms(
        cases=both,
        small_rows=small_rows,
        large_rows=large_rows,
        requests=requests,
        drafts=[draft_of(row) for row in small_rows],
        small_pass=np.array([row.passed is True for row in small_rows]),
        large_pass=np.array([row.passed is True for row in large_rows]),
        small_cost=np.array([cost or 0.0 for cost in small_cost]),
        large_cost=_large_costs(large_rows),
        small_latency=_seconds(small_rows),
        large_latency=_seconds(large_rows),
        draftable=np.array([before_draft(request).action is Action.CONTINUE for request in requests]),
        clusters=[cluster[case.id] for case in both],
        small_failed=sum(row.passed is None for row in small_rows),
        large_failed=sum(row.passed is None for row in large_rows),
        small_unpriced=sum(cost is None for cost in small_cost),
        left_out=LeftOut(
            without_small=sum(case.id not in small_by_id for case in scorable),
            without_large=sum(case.id in small_by_id and case.id not in large_by_id for case in scorable),
            without_gold=len(cases) - len(scorable),
        ),
    )


def replay(policy: Policy, arms: Arms) -> Decisions:
    """Run a live policy over the recorded drafts, in the gateway's order: before, during, after."""
    verdicts = [judge(policy, request, draft) for request, draft in zip(arms.requests, arms.drafts, strict=True)]
    return Decisions(
        answered_small=np.array([verdict.action is Action.ANSWER for verdict in verdicts]),
        drafted=np.array([verdict.stage is not Stage.BEFORE for verdict in verdicts]),
        verdicts=verdicts,
    )


def judge(policy: Policy, request: Request, draft: Draft) -> Verdict:
    """The verdict that ends the judgement of one request."""
    verdict = policy.before(request)
    if verdict.action is not Action.CONTINUE:
        return verdict
    if draft.plan or draft.outcome is not Outcome.UNPARSABLE:  # else the plan never stood
        verdict = policy.during(request, draft.at_plan())
        if verdict.action is not Action.CONTINUE:
            return verdict
    return policy.after(request, draft)


def servable_drafts(arms: Arms, on_no_call: OnOther, on_ask: OnOther) -> BoolArray:
    """Which drafts a threshold policy so set may serve at all, whatever their score; shape (n,)."""
    refusals = [
        judge_validity(request, draft, on_no_call, on_ask)
        for request, draft in zip(arms.requests, arms.drafts, strict=True)
    ]
    return np.asarray(arms.draftable & np.array([refusal is None for refusal in refusals]))


def servable_scores(score_of: ScoreFunction, arms: Arms, servable: BoolArray) -> Floats | None:
    """One score a case, −inf where the draft may not be served or has no signals; None where that is all of them."""
    values = np.array(
        [
            score_of(draft.signals) if ok and draft.signals is not None else -np.inf
            for draft, ok in zip(arms.drafts, servable, strict=True)
        ]
    )
    return values if np.isfinite(values).any() else None


def cost_of_draft(row: TraceRow, usd_per_hour: float) -> float | None:
    """USD of the small model's work; what the row says where no seconds were measured; None if unknown."""
    if row.small_busy_s is not None:
        return row.small_busy_s * usd_per_hour / 3600.0
    return row.cost_usd


def _large_costs(rows: Sequence[TraceRow]) -> Floats:
    unpriced = [row.case_id for row in rows if row.cost_usd is None and row.outcome is not None]
    if unpriced:
        raise ReplayError(
            f"{len(unpriced)} answers of the large arm have no cost (first: {unpriced[0]}): collect with prices"
        )
    return np.array([row.cost_usd or 0.0 for row in rows])


def _seconds(rows: Sequence[TraceRow]) -> Floats:
    return np.array([np.nan if row.latency_s is None else row.latency_s for row in rows])
