"""The requests of the engine's bench: real tool calls of BFCL and of multi-turn SGD test rows, half and half.

All of them call for a tool, and are asked for with `tool_choice: required`, so that every contender writes a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.cases.case import CallsGold, Case
from evaluation.cases.sets import case_set, sample
from slm.protocol import DraftCommand

MAX_TOKENS = 192


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request and the request that warms its tools: the same tools and system text, another question."""

    id: str
    command: DraftCommand
    warming: DraftCommand


def requests(count: int) -> list[BenchRequest]:
    """`count` requests, the same on every machine: BFCL and SGD by turns."""
    bfcl = [case for case in case_set("bfcl") if isinstance(case.gold, CallsGold)]
    sgd = [
        case
        for case in case_set("in_domain")
        if case.source == "sgd" and isinstance(case.gold, CallsGold) and len(case.messages) > 2
    ]
    half = (count + 1) // 2
    drawn = (_drawn("bfcl", bfcl, half), _drawn("in_domain", sgd, half))
    return [request_of(case) for pair in zip(*drawn, strict=True) for case in pair][:count]


def _drawn(name: str, cases: Sequence[Case], count: int) -> list[Case]:
    """Return `count` requests, evenly over their groups, otherwise in the order of the sample."""
    for per_group in range(1, len(cases) + 1):
        found = sample(name, cases, per_group)
        if len(found) >= count:
            return found[:: max(1, len(found) // count)][:count]
    raise ValueError(f"{name} has only {len(cases)} such cases")


def request_of(case: Case) -> BenchRequest:
    """The case as the gateway would ask for it, and what comes before."""
    system = [message for message in case.messages if message["role"] in ("system", "developer")]
    return BenchRequest(
        case.id,
        DraftCommand(
            messages=list(case.messages), tools=list(case.tools), tool_choice="required",
            max_tokens=MAX_TOKENS, deadline_s=600.0,
        ),
        DraftCommand(
            messages=[*system, {"role": "user", "content": "Hello."}], tools=list(case.tools), tool_choice="required",
            max_tokens=1, deadline_s=600.0,
        ),
    )  # fmt: skip
