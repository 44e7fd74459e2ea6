"""Fixed ways to answer the requests of a study: one model alone, the baselines, a score held against a threshold.

A plan is worked out request by request, so that its pass rate, cost and latency are means and medians over arrays.
Thresholds are chosen from the scores, never from the labels; the oracle looks at the labels and says what is possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import Floats
from evaluation.replay.replay import Arms, Decisions, ReplayError, cost_of_draft, replay
from evaluation.traces.table import Trace
from policies.rules.baselines import SchemaValidOnly

SHARES = (0.25, 0.5, 0.75)
"""Shares escalated at which a score's operating points stand in the table."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One way to answer; every array has shape (n,)."""

    key: str
    label: str
    escalated: Floats
    """Probability that the large model answers."""
    passes: Floats
    """Probability that the answer passes."""
    cost_usd: Floats
    latency_s: Floats
    """Draft plus, where escalated, answer; NaN where not measured or a matter of chance."""
    threshold: float | None = None
    """Answered small iff score ≥ threshold."""


@dataclass(frozen=True, slots=True)
class Score:
    """One score to sweep: −inf where the draft may not be served."""

    key: str
    label: str
    values: Floats
    probability: Floats | None = None
    """(n,) what the score says of P(the small model's answer passes), NaN where nothing; None for a mere order."""
    routes: bool = False
    """Decided before anything is drafted: an escalated request costs no draft, and what the small model answers to the
    others is served as it is."""


def plan(
    arms: Arms, key: str, label: str, drafted: Floats, escalated: Floats, *, threshold: float | None = None
) -> Plan:
    """The plan that drafts and escalates each request with these probabilities."""
    decided = np.isin(drafted, (0.0, 1.0)) & np.isin(escalated, (0.0, 1.0))
    spent = np.where(drafted > 0, arms.small_latency, 0.0) + np.where(escalated > 0, arms.large_latency, 0.0)
    return Plan(
        key,
        label,
        escalated,
        arms.small_pass * (1.0 - escalated) + arms.large_pass * escalated,
        arms.small_cost * drafted + arms.large_cost * escalated,
        np.where(decided, spent, np.nan),
        threshold,
    )


def baselines(arms: Arms) -> list[Plan]:
    """The ways without a threshold: each model alone, a random mix, valid drafts, the oracle.

    The small model alone is pinned: what it drafts is the answer. The random mix is decided by a fair coin before
    anything is drafted, and is worked out in expectation.
    """
    n = len(arms)
    ones, zeros, half = np.ones(n), np.zeros(n), np.full(n, 0.5)
    helped = (arms.large_pass & ~arms.small_pass).astype(np.float64)
    return [
        plan(arms, "small_only", "small only", ones, zeros),
        plan(arms, "large_only", "large only", zeros, ones),
        plan(arms, "random_mix", "random mix, 50 : 50", half, half),
        plan_of(arms, "schema_valid", "schema-valid drafts", replay(SchemaValidOnly(), arms)),
        plan(arms, "oracle", "oracle", ones, helped),
    ]


def plan_of(arms: Arms, key: str, label: str, decisions: Decisions) -> Plan:
    """The plan of a replayed policy."""
    return plan(arms, key, label, decisions.drafted.astype(np.float64), (~decisions.answered_small).astype(np.float64))


def plans_at_shares(arms: Arms, score: Score, shares: Sequence[float] = SHARES) -> list[Plan]:
    """The score's thresholds nearest to the shares escalated, each once; only those that a gateway can be set to."""
    values, counts = np.unique(score.values[np.isfinite(score.values)], return_counts=True)
    escalated = 1.0 - np.cumsum(counts[::-1])[::-1] / len(arms)
    nearest = {share: float(values[np.argmin(np.abs(escalated - share))]) for share in shares}
    first = {threshold: share for share, threshold in reversed(nearest.items())}
    return [
        plan(
            arms,
            f"{score.key}@{first[threshold]:g}",
            f"{score.label} ≥ {threshold:.4g}",
            np.asarray(score.values >= threshold if score.routes else arms.draftable, dtype=np.float64),
            np.asarray(score.values < threshold, dtype=np.float64),
            threshold=threshold,
        )
        for threshold in dict.fromkeys(nearest.values())
    ]


def plan_of_run(arms: Arms, run: Trace, *, small_usd_per_hour: float) -> Plan:
    """Return the plan of a running gateway: what it did with the same requests, as it was measured.

    Raises ReplayError unless it answered, or failed, every case of the study and says who answered at what cost.
    """
    by_id = {row.case_id: row for row in run.rows}
    missing = [case.id for case in arms.cases if case.id not in by_id]
    if missing:
        raise ReplayError(f"the gateway's trace lacks {len(missing)} cases (first: {missing[0]})")
    rows = [by_id[case.id] for case in arms.cases]
    mute = [row.case_id for row in rows if row.outcome is not None and (row.side is None or row.cost_usd is None)]
    if mute:
        raise ReplayError(
            f"{len(mute)} rows do not say who answered at what cost (first: {mute[0]}): ask for decisions"
        )
    draft_cost = [cost_of_draft(row, small_usd_per_hour) if row.small_busy_s is not None else 0.0 for row in rows]
    return Plan(
        "gateway",
        "gateway as run",
        np.array([float(row.side == "large") for row in rows]),
        np.array([float(row.passed is True) for row in rows]),
        np.array([row.cost_usd or 0.0 for row in rows]) + np.array([cost or 0.0 for cost in draft_cost]),
        np.array([np.nan if row.latency_s is None else row.latency_s for row in rows]),
    )
