"""Small-arm traces for tests: real cases and recorded answers, with made-up token signals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from evaluation.cases.case import CallsGold, Case
from evaluation.cases.study_data import StudyData
from evaluation.recorded.trace import trace_of_recording
from evaluation.traces.table import Trace, TraceInfo, TraceRow, calls_text
from evaluation.traces.wire import TextCall
from policies.types import Span

ARM = "smallcall/small"


def signals(passed: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Columns of a draft, surer where it was right."""
    n = int(rng.integers(4, 12))
    logprob = -rng.exponential(0.2 if passed else 0.8, n)
    return {
        "small_complete": True,
        "small_prefill_s": 0.5,
        "small_decode_s": n / 20,
        "latency_s": 1.0,
        "logprob": logprob.tolist(),
        "margin": np.exp(logprob).tolist(),
        "entropy": (-logprob).tolist(),
        "feasible_mass": [1.0] * n,
        "forced": [False] * n,
        "span": [int(Span.PLAN)] + [int(Span.VALUE)] * (n - 1),
    }


def of_recording(cases: Sequence[Case], model: str = "Salesforce_xLAM-1b-fc-r") -> Trace:
    """A recorded model's answers as drafts of a small one."""
    rng = np.random.default_rng(0)
    recorded = trace_of_recording(
        cases, StudyData.of_checkout().recording(model), arm=ARM, prices=None, command="recorded"
    )
    rows = [
        replace(row, small_outcome=row.outcome, small_calls=row.calls, **signals(row.passed is True, rng))
        for row in recorded.rows
    ]
    return Trace(recorded.info, rows)


def of_gold(cases: Sequence[Case], pass_rate: float) -> Trace:
    """Drafts of the gold, said to be right in so many cases."""
    rng = np.random.default_rng(1)
    rows = []
    for case in cases:
        calls = []
        if isinstance(case.gold, CallsGold):
            for call in case.gold.calls:
                given = {name: values[0] for name, values in call.arguments.items() if values and values[0] != ""}
                calls.append(TextCall(call.name, json.dumps(given)))
        passed = bool(rng.random() < pass_rate)
        outcome = "calls" if calls else "no_call"
        rows.append(
            TraceRow(
                case_id=case.id,
                source=case.source,
                category=case.category,
                arm=ARM,
                outcome=outcome,
                calls=calls_text(calls),
                passed=passed,
                small_outcome=outcome,
                small_calls=calls_text(calls),
                **signals(passed, rng),
            )
        )
    return Trace(TraceInfo(arm=ARM, command="made up", data_sha256="0"), rows)
