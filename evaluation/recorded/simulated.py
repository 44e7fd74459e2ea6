"""A large model that nobody recorded: right for a stated share of requests, at the price of an estimated answer.

Where no answers are recorded (in domain, held-out tools, BFCL live) the gold stands in for the large model. Which
requests it gets wrong is decided by a hash of the case's id, so its failures know nothing of how hard a request is;
a real model fails where requests are hard, and the small one with it. Every figure made with it is marked `simulated`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.cases.case import CallsGold, Case, data_hash
from evaluation.cases.study_data import RecordedAnswer
from evaluation.traces.client import ClientPrices
from evaluation.traces.table import Trace, TraceInfo, TraceRow


@dataclass(frozen=True, slots=True)
class TokenRates:
    """Characters per token of a large model, from recorded answers whose tokens are known."""

    input_chars: float
    """Characters of messages and tools as JSON, for each input token."""
    output_chars: float
    """Characters of the calls as JSON, for each output token."""
    no_call_tokens: float
    """Mean output tokens of an answer without a call."""

    @classmethod
    def of(cls, cases: Sequence[Case], answers: Sequence[RecordedAnswer]) -> TokenRates:
        """Ratios of sums over the answers with tokens. Raises ValueError where there are none of a kind."""
        by_id = {case.id: case for case in cases}
        counted = [a for a in answers if a.id in by_id and a.input_tokens is not None and a.output_tokens is not None]
        calling, silent = [a for a in counted if a.calls], [a for a in counted if not a.calls]
        if not calling or not silent:
            raise ValueError("token rates need recorded answers with calls and without, tokens known")
        shown = sum(_input_chars(by_id[a.id]) for a in counted)
        written = sum(len(call.name) + len(call.arguments_text) for a in calling for call in a.calls or ())
        return cls(
            input_chars=shown / sum(a.input_tokens or 0 for a in counted),
            output_chars=written / sum(a.output_tokens or 0 for a in calling),
            no_call_tokens=sum(a.output_tokens or 0 for a in silent) / len(silent),
        )


def simulated_large(cases: Sequence[Case], *, pass_rate: float, rates: TokenRates, prices: ClientPrices) -> Trace:
    """One row a case. `pass_rate` is P(the large model passes), in (0, 1]."""
    if not 0.0 < pass_rate <= 1.0:
        raise ValueError(f"pass_rate: {pass_rate} is not in (0, 1]")
    arm = f"simulated, right in {pass_rate:.0%}"
    rows = [
        TraceRow(
            case_id=case.id,
            source=case.source,
            category=case.category,
            arm=arm,
            outcome="calls" if case.gold_names else "no_call",
            passed=_unit(case.id) < pass_rate,
            cost_usd=_cost_usd(case, rates, prices),
        )
        for case in cases
    ]
    return Trace(TraceInfo(arm=arm, command="simulated", data_sha256=data_hash(cases)), rows)


def _cost_usd(case: Case, rates: TokenRates, prices: ClientPrices) -> float:
    written = rates.no_call_tokens
    if isinstance(case.gold, CallsGold):
        first = [{name: values[0] for name, values in call.arguments.items() if values} for call in case.gold.calls]
        chars = sum(len(call.name) for call in case.gold.calls) + sum(len(json.dumps(given)) for given in first)
        written = chars / rates.output_chars
    return prices.cost_usd(round(_input_chars(case) / rates.input_chars), round(written))


def _input_chars(case: Case) -> int:
    return len(json.dumps(case.messages, ensure_ascii=False)) + len(json.dumps(case.tools, ensure_ascii=False))


def _unit(case_id: str) -> float:
    """A number in [0, 1) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"simulated\0{case_id}".encode()).digest()[:8], "big") / 2**64
