"""Observed decisions as the cases and traces that reports and `tune` take, and as a judge: the score of the time.

Token signals are not in a ledger: nothing but the score that the gateway gave can be held against a threshold. Tools
stand without their schemas, since drafts were held against those when they were made; a draft that went large is not
kept, and stands by its outcome alone. Where the ledger keeps no content, decisions of one conversation are not known to
belong together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.cases.case import Case, ToldGold, data_hash
from evaluation.live.decisions import NO_TOOL, Chosen, Labels, Observed
from evaluation.metrics import Floats
from evaluation.replay.plans import Score
from evaluation.replay.scorers import Part, Scorer, TrainableJudge, platt
from evaluation.traces.table import Trace, TraceInfo, TraceRow, calls_text
from evaluation.traces.wire import TextCall
from policies.rules.single import OnOther

NOT_KEPT = "(not kept)"
SCORE = "as_decided"


@dataclass(frozen=True, slots=True)
class Kept:
    """The content that a ledger with content keeps of one decision beside its row."""

    messages: Sequence[Mapping[str, Any]] = ()
    """Messages of the request, as chat completions have them."""
    tools: Sequence[str] = ()
    """Names of those offered."""
    conversation: str | None = None
    answer: Sequence[TextCall] = ()
    """Calls that the client got."""
    audit: Sequence[TextCall] = ()
    """Calls of the large model, asked behind a small answer."""


@dataclass(frozen=True, slots=True)
class ObservedTraces:
    """The rows of a study."""

    cases: Sequence[Case]
    small: Trace
    large: Trace
    run: Trace
    """The gateway's own decisions on the cases."""
    judge: str
    """Name of the judge that gave the scores."""
    probabilities: Mapping[str, float]
    """Case id → P(right) as it was given at the time, where it was."""
    prompts_kept: bool
    """True if the requests' messages were kept."""
    on_no_call: OnOther
    """The gateway's treatment of drafts without a call, and of those that ask back."""
    remarks: Sequence[str]

    def score(self) -> TrainableJudge:
        """The gateway's own score as a judge of a report; its probability is the one of the time, else a logistic curve
        of the score."""
        known = self.probabilities

        def fit(part: Part) -> Scorer:
            curve = None if known else platt(_scores(part), part.arms.small_pass)

            def scores(other: Part) -> Score:
                values = _scores(other)
                given = np.array([known.get(case.id, np.nan) for case in other.arms.cases])
                probability = given if curve is None else curve(values)
                return Score(SCORE, f"score of {self.judge}", values, probability=probability)

            return scores

        return TrainableJudge(SCORE, f"score of {self.judge}", fit, ours=True)


def _scores(part: Part) -> Floats:
    given = [row.score for row in part.arms.small_rows]
    scores = np.array([-np.inf if score is None else score for score in given], dtype=np.float64)
    return np.where(part.servable, scores, -np.inf)


def traces_of(chosen: Chosen, kept: Mapping[str, Kept], labels: Labels, *, command: str) -> ObservedTraces:
    """Rows as traces. Raises ValueError where there are none, saying what became of the decisions."""
    if not chosen.rows:
        raise ValueError("no decision is known to be right or wrong: " + (_left_out(chosen) or "the ledger has none"))
    cases, small, large, run = [], [], [], []
    for row in chosen.rows:
        stored = kept.get(row.decision_id, Kept())
        case = _case(row, stored)
        cases.append(case)
        small.append(_small(case, row, stored))
        large.append(_large(case, row, stored))
        run.append(_run(case, row))
    digest = data_hash(cases)

    def trace(arm: str, rows: Sequence[TraceRow]) -> Trace:
        return Trace(TraceInfo(arm=arm, command=command, data_sha256=digest), rows)

    large_models = Counter(row.large_model for row in chosen.rows if row.large_model)
    return ObservedTraces(
        cases=cases,
        small=trace(_name((row.small_model for row in chosen.rows), "small model"), small),
        large=trace(_name(large_models, "large model"), large),
        run=trace("gateway", run),
        judge=chosen.rows[-1].judge,
        probabilities={row.decision_id: row.probability for row in chosen.rows if row.probability is not None},
        prompts_kept=any(one.messages for one in kept.values()),
        on_no_call="answer" if any(row.small and row.outcome != "calls" for row in chosen.rows) else "escalate",
        remarks=_remarks(chosen, kept, labels),
    )


def _case(row: Observed, kept: Kept) -> Case:
    names = dict.fromkeys([*kept.tools, *(call.name for call in _drafted(row, kept))])
    messages = [dict(message) for message in kept.messages] or [{"role": "user", "content": NOT_KEPT}]
    if messages[-1].get("role") not in ("user", "tool"):
        messages.append({"role": "user", "content": ""})
    return Case(
        id=row.decision_id,
        source="ledger",
        split="test",
        category=row.tool or NO_TOOL,
        messages=messages,
        tools=[{"type": "function", "function": {"name": name}} for name in names or (NOT_KEPT,)],
        gold=ToldGold(),
        meta={"conversation": kept.conversation or row.decision_id},
    )


def _drafted(row: Observed, kept: Kept) -> Sequence[TextCall]:
    """Calls of the draft; where they are not kept, one that stands for them."""
    if row.outcome != "calls":
        return ()
    if row.small and kept.answer:
        return kept.answer
    known = row.tool if row.small or row.agreed else None
    return (TextCall(known or NOT_KEPT, "{}"),)


def _small(case: Case, row: Observed, kept: Kept) -> TraceRow:
    assert row.passes is not None
    return TraceRow(
        case_id=case.id,
        source=case.source,
        category=case.category,
        arm=row.small_model or "small",
        started_at=row.created_at,
        decision_id=row.decision_id,
        reason=row.reason,
        score=row.score,
        outcome=row.outcome,
        passed=row.passes[0],
        fail_reason=None if row.passes[0] else "told wrong" if row.small and row.told is False else "unlike the large",
        cost_usd=row.small_usd,
        latency_s=_busy(row),
        small_outcome=row.outcome,
        small_calls=calls_text(_drafted(row, kept)),
        small_complete=row.valid,
        small_queue_s=row.queue_s,
        small_prefill_s=row.prefill_s,
        small_decode_s=row.decode_s,
    )


def _large(case: Case, row: Observed, kept: Kept) -> TraceRow:
    assert row.passes is not None
    waited = row.audit_s if row.small else max(0.0, row.latency_s - (_busy(row) or 0.0))
    return TraceRow(
        case_id=case.id,
        source=case.source,
        category=case.category,
        arm=row.large_model or "large",
        outcome="calls",
        calls=calls_text(kept.audit if row.small else kept.answer),
        passed=row.passes[1],
        cost_usd=row.large_usd,
        latency_s=waited,
    )


def _run(case: Case, row: Observed) -> TraceRow:
    assert row.passes is not None
    return TraceRow(
        case_id=case.id,
        source=case.source,
        category=case.category,
        arm="gateway",
        outcome="calls",
        passed=row.passes[0] if row.small else row.passes[1],
        side="small" if row.small else "large",
        cost_usd=0.0 if row.small else row.large_usd,
        latency_s=row.latency_s,
        small_prefill_s=row.prefill_s,
        small_decode_s=row.decode_s,
    )


def _busy(row: Observed) -> float | None:
    if row.prefill_s is None:
        return None
    return (row.queue_s or 0.0) + row.prefill_s + (row.decode_s or 0.0)


def _name(names: Any, otherwise: str) -> str:
    found = sorted({name for name in names if name})
    return ", ".join(found) or otherwise


def _remarks(chosen: Chosen, kept: Mapping[str, Kept], labels: Labels) -> list[str]:
    notes = [
        f"Decisions that are in no figure, neither as passed nor as failed: {text}."
        for text in [_left_out(chosen)]
        if text
    ]
    if labels == "told":
        notes.append(
            "The rows are answers that somebody or a tool spoke of. Those are unlike the others, so the figures are "
            "theirs and not the traffic's."
        )
    else:
        rows, seen = len(chosen.rows), f"Every decision had the same chance, {chosen.share:.3%}, to be among the "
        others = f", which stand for {rows + chosen.unseen:,}" if chosen.unseen else ""
        notes.append(f"{seen}{rows:,} rows{others} (docs/study.md).")
    notes.append(
        "The large model's answer is taken to be right where nobody said otherwise: audits hold drafts against it, and "
        "agreement is not correctness."
    )
    if all(row.small for row in chosen.rows):
        notes.append(
            "All rows were answered small: the curve shows thresholds that are stricter than those of the time, and "
            "no looser ones."
        )
    if not any(one.conversation for one in kept.values()):
        notes.append(
            "Nothing says which decisions are of one conversation (ledger.store_content keeps that): where agents ask "
            "often in one, intervals are too narrow."
        )
    return notes


def _left_out(chosen: Chosen) -> str:
    return "; ".join(f"{n:,} {reason}" for reason, n in chosen.left_out.items())
