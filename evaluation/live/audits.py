"""Shadow audits: whether two models made the same calls, and how often they do, estimated from the audited answers.

Not guaranteed: that either model is right. Two models may agree on a mistake, and differ in two good ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.cases.answers import Answer
from evaluation.cases.case import CallsGold, Case, Gold, GoldCall, NoCallGold
from evaluation.cases.scoring import CaseScore, score
from evaluation.live.offpolicy import PolicyEstimate, doubly_robust, importance_weights, ips, snips


@dataclass(frozen=True, slots=True)
class AuditEstimates:
    """Agreement among all answers that could have been audited."""

    eligible: int
    audited: int
    """With a comparison; audits that failed or could not be compared are among the eligible only."""
    agreed: int
    estimates: tuple[PolicyEstimate, ...]
    """IPS, SNIPS and doubly robust; empty where nothing was eligible."""

    @property
    def reliable(self) -> bool:
        """True if there are enough effective rows for a figure."""
        return bool(self.estimates) and all(one.reliable for one in self.estimates)


def audit_estimates(
    propensity: npt.ArrayLike, audited: npt.ArrayLike, agreed: npt.ArrayLike, predicted: npt.ArrayLike
) -> AuditEstimates:
    """Estimate agreement over n answers that could have been audited; all arguments have shape (n,).

    Args:
        propensity: e(x) as it was when the audit was drawn, in (0, 1].
        audited: whether a comparison came of it. agreed: what it showed; anything where there is none.
        predicted: the judge's own probability that the answer passes, by which the doubly robust estimate is steadied.

    Raises:
        MetricError: a propensity of 0, or lengths that differ.
    """
    e, seen = np.asarray(propensity, dtype=np.float64), np.asarray(audited, dtype=np.bool_)
    if not len(e):
        return AuditEstimates(0, 0, 0, ())
    same = np.where(seen, np.asarray(agreed, dtype=np.float64), 0.0)
    weights = importance_weights(np.ones(len(e)), e) * seen
    p = np.asarray(predicted, dtype=np.float64)
    found = (ips(same, weights), snips(same, weights), doubly_robust(same, weights, p, p))
    return AuditEstimates(len(e), int(seen.sum()), int(same.sum()), found)


def agreement(tools: Sequence[Mapping[str, Any]], reference: Answer, other: Answer) -> CaseScore | None:
    """Score `other` by BFCL's rules, taking `reference` as right. None where they cannot be compared: the
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
