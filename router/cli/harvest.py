"""`smallcall harvest`: training rows from the ledger, one folder a tenant."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from router.cli.ledger import READ_S, day_option, fail, reading
from router.cli.output.tables import visible
from router.settings import Settings

if TYPE_CHECKING:
    from router.outcomes.harvest import Tally

console = Console()


def harvest(
    out: Annotated[Path, typer.Option(help="folder; each tenant gets one in it")],
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win")] = None,
    since: Annotated[str | None, typer.Option(help="first day, such as 2026-11-01; UTC")] = None,
    until: Annotated[str | None, typer.Option(help="last day")] = None,
    only_executed: Annotated[bool, typer.Option(help="only calls whose tool's result was seen, and no error")] = False,
) -> None:
    """Write what the large model answered as training rows that `smallcall train --data` takes.

    Needs `ledger.store_content`. Exit code 1: no ledger, nothing to harvest, or a file cannot be written.
    """
    settings = reading(config)
    first, last = day_option("--since", since), day_option("--until", until)
    try:
        tallies = asyncio.run(_harvested(settings, out, first, last, only_executed))
    except OSError as error:
        raise fail(f"{out}: {error.strerror or type(error).__name__}", 1) from None
    for tenant, tally in sorted(tallies.items()):
        taken = f"{tally.escalated} escalated, {tally.replay} replay, {tally.held_out} of them held out"
        console.print(
            f"{visible(tenant) or '(no key)'}: {taken} in {out / tally.folder}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        for reason, count in tally.refused.items():
            console.print(f"  left out: {count}, {reason}", highlight=False, markup=False, soft_wrap=True)
    if not any(tally.escalated + tally.replay for tally in tallies.values()):
        raise fail("nothing to harvest: are requests kept (ledger.store_content)?", 1)


async def _harvested(
    settings: Settings, out: Path, first: date | None, last: date | None, only_executed: bool
) -> dict[str, Tally]:
    from router.ledger.store import Ledger, LedgerUnavailableError
    from router.outcomes.harvest import Harvest

    since = datetime.combine(first or date(1970, 1, 1), time(), UTC)
    until = datetime.combine((last or date(9998, 1, 1)) + timedelta(days=1), time(), UTC)
    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            return await Harvest(out, only_executed=only_executed).run(ledger.engine, since, until)
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None
