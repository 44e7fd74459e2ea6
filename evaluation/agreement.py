"""Whether two models made the same calls: one's calls are the gold by which the other's are scored.

Not guaranteed: that either is right. Two models may agree on a mistake, and differ in two good ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.answers import Answer
from evaluation.cases import CallsGold, Case, Gold, GoldCall, NoCallGold
from evaluation.scoring import Score, score


def agreement(tools: Sequence[Mapping[str, Any]], reference: Answer, other: Answer) -> Score | None:
    """How `other` scores by BFCL's rules where `reference` is right; None where they cannot be compared: the
    reference's arguments cannot be decoded, or the tools are none.

    Args:
        tools: as chat completions have them.
    """
    if any(call.arguments is None for call in reference.calls):
        return None
    wanted = [
        GoldCall(call.name, {name: [value] for name, value in (call.arguments or {}).items()})
        for call in reference.calls
    ]
    gold: Gold = CallsGold(wanted) if wanted else NoCallGold()
    try:
        case = Case(
            id="audit", source="audit", split="test", category="audit",
            messages=[{"role": "user", "content": ""}], tools=[dict(tool) for tool in tools], gold=gold,
        )  # fmt: skip
    except ValueError:
        return None
    return score(case, other)
