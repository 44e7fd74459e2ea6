"""`smallcall ledger`: prune and export; and what all commands share that read the ledger."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from router.settings import Settings, SettingsError, load_settings

ledger_app = typer.Typer(no_args_is_help=True)
console = Console()
READ_S = 600.0
"""What a command waits for one statement; the gateway waits much shorter."""


def fail(message: str, code: int) -> typer.Exit:
    """Say why, and the exit to raise."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(code)


def reading(config: Path | None) -> Settings:
    """The settings, or exit code 2."""
    try:
        return load_settings(config)
    except SettingsError as error:
        raise fail(f"configuration: {error}", 2) from None


def day_option(name: str, text: str | None) -> date | None:
    """A day, or exit code 2 that names the option."""
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise fail(f"{name}: not a day such as 2026-11-01", 2) from None


Config = Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win")]


@ledger_app.command()
def prune(
    config: Config = None,
    keep_days: Annotated[int | None, typer.Option(min=1, help="instead of ledger.keep_days")] = None,
) -> None:
    """Turn days that are old enough into sums, and delete their rows a few at a time. A running gateway is not held up.

    Exit code 1: no ledger; 2: nothing says how many days to keep.
    """
    settings = reading(config)
    days = keep_days if keep_days is not None else settings.ledger.keep_days
    if days is None:
        raise fail("--keep-days: say how many days to keep, here or as ledger.keep_days", 2)
    rolled, rows = asyncio.run(_pruned(settings, days))
    console.print(f"{rolled} days rolled up, {rows} rows deleted", highlight=False)


async def _pruned(settings: Settings, days: int) -> tuple[int, int]:
    from router.ledger.retention import prune as run
    from router.ledger.store import Ledger, LedgerUnavailableError

    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            done = await run(ledger.engine, days, datetime.now(UTC))
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None
    return done.days, done.rows


@ledger_app.command()
def export(
    out: Annotated[Path, typer.Option(help="the Parquet file")],
    config: Config = None,
    since: Annotated[str | None, typer.Option(help="first day, such as 2026-11-01; UTC")] = None,
    until: Annotated[str | None, typer.Option(help="last day")] = None,
) -> None:
    """Write decisions to a Parquet file, with what is known of them afterwards.

    Exit code 1: no ledger, or the file cannot be written.
    """
    settings = reading(config)
    first, last = day_option("--since", since), day_option("--until", until)
    try:
        rows = asyncio.run(_exported(settings, out, first or date.min, last))
    except OSError as error:
        raise fail(f"{out}: {error.strerror or type(error).__name__}", 1) from None
    console.print(f"{rows} decisions in {out}", highlight=False, soft_wrap=True)


async def _exported(settings: Settings, out: Path, first: date, last: date | None) -> int:
    from router.ledger.export import export as run
    from router.ledger.store import Ledger, LedgerUnavailableError

    since = datetime.combine(max(first, date(1970, 1, 1)), time(), UTC)
    until = datetime.combine((last or date(9998, 1, 1)) + timedelta(days=1), time(), UTC)
    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            return await run(ledger.engine, out, since, until)
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None
