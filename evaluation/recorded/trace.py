"""A trace made of recorded answers directly: what asking the recorded server would give, without the asking.

Costs are the recorded tokens at given prices; where a recording has no tokens, the cost is unknown (None).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluation.cases.case import Case, data_hash
from evaluation.cases.study_data import RecordedAnswer
from evaluation.traces.client import ClientPrices
from evaluation.traces.collect import scored
from evaluation.traces.table import Trace, TraceInfo, TraceRow, calls_text
from evaluation.traces.wire import TextCall


def trace_of_recording(
    cases: Sequence[Case], answers: Iterable[RecordedAnswer], *, arm: str, prices: ClientPrices | None, command: str
) -> Trace:
    """One row for every case that has a recorded answer, in the cases' order, scored by today's rules."""
    by_id = {answer.id: answer for answer in answers}
    rows = [scored(case, _row(case, by_id[case.id], arm, prices)) for case in cases if case.id in by_id]
    recorded = [case for case in cases if case.id in by_id]
    return Trace(TraceInfo(arm=arm, command=command, data_sha256=data_hash(recorded)), rows)


def _row(case: Case, answer: RecordedAnswer, arm: str, prices: ClientPrices | None) -> TraceRow:
    cost_usd = None
    if prices is not None and answer.input_tokens is not None and answer.output_tokens is not None:
        cost_usd = prices.cost_usd(answer.input_tokens, answer.output_tokens)
    return TraceRow(
        case_id=case.id,
        source=case.source,
        category=case.category,
        arm=arm,
        latency_s=answer.latency_s,
        outcome="calls" if answer.calls else "no_call",
        calls=calls_text(TextCall(call.name, call.arguments_text) for call in answer.calls or ()),
        text=answer.text,
        prompt_tokens=answer.input_tokens,
        completion_tokens=answer.output_tokens,
        cost_usd=cost_usd,
    )
