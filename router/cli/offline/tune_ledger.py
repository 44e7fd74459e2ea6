"""`smallcall tune --ledger`: a threshold of the score that a gateway gave, from what became of its own decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from router.cli.offline.ledger_source import KnownBy, LedgerDays, observed_traces
from router.cli.output.tables import show

if TYPE_CHECKING:
    from evaluation.tuning.tune import Goal

console = Console()


def tune_ledger(
    days: LedgerDays,
    goal: Goal,
    target: float,
    *,
    delta: float,
    small_usd_per_hour: float,
) -> None:
    """Choose on one part of a sample of the decisions, tell on the other, print both.

    Raises ValueError where nothing is known, ReplayError where a part has no score.
    """
    from evaluation.tuning.rows import AsDecided
    from evaluation.tuning.tune import tune
    from policies.rules.scores import SCORES
    from router.cli.offline.tune_tables import choices_sheet

    found = observed_traces(days, labels=KnownBy.SAMPLE, command="smallcall tune --ledger …")
    tuning = tune(
        found.cases,
        found.small,
        found.large,
        goal=goal,
        target=target,
        delta=delta,
        judge=AsDecided(found.judge),
        on_no_call=found.on_no_call,
        on_ask=found.on_no_call,
        small_usd_per_hour=small_usd_per_hour,
    )
    show(choices_sheet(tuning), console)
    for remark in found.remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    threshold = tuning.chosen.operating.threshold
    if threshold is None:
        console.print("nothing can be chosen: let everything go large (policy: {kind: large_only})", markup=False)
    elif found.judge in SCORES:
        policy = {"policy": {"kind": "threshold", "score": found.judge, "threshold": threshold}}
        console.print("policy for the configuration file, without a certificate:")
        console.print(yaml.safe_dump(policy, sort_keys=False), markup=False, highlight=False)
    else:
        console.print(
            f"threshold {threshold:.6g} of {found.judge}: a bundle is never changed; a new one, with a certificate, is "
            "made of traces (smallcall study collect, smallcall tune --out)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
