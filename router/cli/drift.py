"""`smallcall drift`: has the traffic moved since a period that is known to be good?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from evaluation.report.sheet import Sheet
from router.cli.ledger import READ_S, day_option, fail, reading
from router.cli.output.tables import AsForm, AsJson, Form, show, write_data
from router.settings import Settings

if TYPE_CHECKING:
    from evaluation.live.drift import Change, Shift

console = Console()


@dataclass(frozen=True, slots=True)
class _Found:
    then: tuple[date, date]
    now: tuple[date, date]
    shifts: tuple[Shift, ...]
    requests: int
    new_tools: int
    audited: int
    changes: tuple[Change, ...]


def drift(
    since: Annotated[str, typer.Option(help="first day that is looked at, such as 2026-11-01; UTC")],
    until: Annotated[str | None, typer.Option(help="last day that is looked at; today")] = None,
    against: Annotated[int, typer.Option(min=1, help="days before --since that it is held against")] = 28,
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win")] = None,
    form: AsForm = Form.TABLE,
    as_json: AsJson = False,
) -> None:
    """Shifted signals (PSI, KS), sets of tools that are new, and changes of the audited disagreement (ADWIN).

    A shift is a hint; a disagreement that rose among audited answers is a fact. Exit code 1: no ledger.
    """
    settings = reading(config)
    first = day_option("--since", since)
    last = day_option("--until", until) or datetime.now(UTC).date()
    assert first is not None
    then = (first - timedelta(days=against), first - timedelta(days=1))
    found = asyncio.run(_drift(settings, then, (first, last)))
    if write_data(form, as_json, asdict(found), [asdict(one) for one in found.shifts]):
        return
    rows = [
        (
            one.name,
            *(f"{one.psi:.3f}", f"{one.ks:.3f}", f"{one.q_value:.2g}"),
            *(f"{one.missing_then:.1%}", f"{one.missing_now:.1%}"),
        )
        for one in found.shifts
    ]
    title = f"{found.now[0]} to {found.now[1]} against {then[0]} to {then[1]}"
    show(Sheet(("signal", "PSI", "KS", "q", "missing then", "missing now"), rows, title, folds=("signal",)), console)
    console.print(f"{found.new_tools} of {found.requests} requests offer a set of tools that is new", highlight=False)
    said = f"{found.audited} audited answers of both periods; their disagreement changed {len(found.changes)} times"
    console.print(said, highlight=False)
    for change in found.changes:
        console.print(f"  from {change.before:.3f} to {change.after:.3f} at answer {change.began}", highlight=False)


async def _drift(settings: Settings, then: tuple[date, date], now: tuple[date, date]) -> _Found:
    from evaluation.live.drift import changes, shifts
    from router.ledger.audits import auditable
    from router.ledger.queries.drift import new_tool_sets, signals
    from router.ledger.store import Ledger, LedgerUnavailableError

    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            before, after = await signals(ledger.engine, *then), await signals(ledger.engine, *now)
            requests, new = await new_tool_sets(ledger.engine, then, now)
            rows = await auditable(ledger.engine, then[0], now[1])
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None
    disagreed = [float(not row.agreed) for row in rows if row.agreed is not None]
    return _Found(then, now, shifts(before, after), requests, new, len(disagreed), changes(disagreed[-5000:]))
