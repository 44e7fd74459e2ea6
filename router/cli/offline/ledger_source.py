"""What `report` and `tune` share that read a ledger: its decisions as the rows of a study."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.ledger import READ_S, day_option, fail

if TYPE_CHECKING:
    from evaluation.live.decision_traces import Kept, ObservedTraces
    from evaluation.live.decisions import Chosen

LEDGER_HELP = "your own decisions in place of traces: a ledger's URL, such as sqlite+aiosqlite:///var/ledger.db"


@dataclass(frozen=True, slots=True)
class LedgerDays:
    """Decisions of your own, in place of traces."""

    ledger: Annotated[str | None, typer.Option(help=LEDGER_HELP)] = None
    since: Annotated[str | None, typer.Option(help="first day of the ledger's decisions, such as 2026-11-01")] = None
    until: Annotated[str | None, typer.Option(help="last day")] = None


_OF_LEDGERS = frozenset({"since", "until", "labels"})


class KnownBy(StrEnum):
    """Which decisions become rows; see `evaluation.live.decisions`."""

    SAMPLE = "sample"
    TOLD = "told"


def check_source(context: typer.Context, trace: object, ledger: str | None, with_ledger: Collection[str]) -> None:
    """A trace or a ledger, and no option that nothing would read.

    Args:
        with_ledger: names of the parameters that a ledger goes with.
    """
    if (trace is None) == (ledger is None):
        raise typer.BadParameter("give a trace, or --ledger")
    unread = _OF_LEDGERS if ledger is None else set(context.params) - {*with_ledger, *_OF_LEDGERS, "ledger"}
    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name in unread and getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"{', '.join(given)}: for {'a ledger' if ledger is None else 'traces'} only")


def observed_traces(days: LedgerDays, *, labels: KnownBy, command: str) -> ObservedTraces:
    """The rows of those days. Exit code 1: no ledger; 2: no day.

    Raises ValueError where no decision is known to be right or wrong.
    """
    from evaluation.live.decision_traces import traces_of

    first, last = day_option("--since", days.since), day_option("--until", days.until)
    chosen, kept = asyncio.run(_read(str(days.ledger), first or date(1970, 1, 1), last or date(9998, 12, 31), labels))
    return traces_of(chosen, kept, labels.value, command=command)


async def _read(url: str, first: date, last: date, labels: KnownBy) -> tuple[Chosen, dict[str, Kept]]:
    from evaluation.live.decisions import choose
    from router.ledger.store import Ledger, LedgerUnavailableError
    from router.outcomes.observed_decisions import contents, given_up, observed

    try:
        async with Ledger.open(url, READ_S) as ledger:
            rows = await observed(ledger.engine, first, last)
            chosen = choose(rows, labels.value, given_up=await given_up(ledger.engine, first, last))
            return chosen, await contents(ledger.engine, chosen.rows)
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None
