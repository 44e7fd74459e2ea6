"""`smallcall ledger`: list, show, prune and export; and what all commands share that read the ledger."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evaluation.report.sheet import Sheet
from router.cli.output.tables import AsForm, Form, show, visible, write_data
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


_COLUMNS = ("id", "at (UTC)", "side", "reason", "tool", "score", "threshold", "status", "key", "arm", "$", "s")


@ledger_app.command("list")
def list_decisions(
    config: Config = None,
    side: Annotated[str | None, typer.Option(help="small, large or none")] = None,
    reason: Annotated[str | None, typer.Option(help="as docs/api.md has them")] = None,
    tool: Annotated[str | None, typer.Option(help="the first that the answer calls")] = None,
    key: Annotated[str | None, typer.Option(help="a key's id or name")] = None,
    arm: Annotated[str | None, typer.Option(help="of an experiment: ARM or EXPERIMENT:ARM")] = None,
    since: Annotated[str | None, typer.Option(help="first day, such as 2026-11-01; UTC")] = None,
    error: Annotated[str | None, typer.Option(help="part of an error's code or of a finding")] = None,
    before: Annotated[str | None, typer.Option(help="older than the decision of this id: the next page")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    form: AsForm = Form.TABLE,
) -> None:
    """Decisions, the newest first; `ledger show ID` explains one. Exit code 1: no ledger, or no such key."""
    settings = reading(config)
    experiment, _, only = (arm or "").rpartition(":")
    first = day_option("--since", since)
    found = asyncio.run(
        _listed(
            settings,
            key,
            limit,
            {
                "side": side,
                "reason": reason,
                "tool": tool,
                "experiment": experiment or None,
                "arm": only or None,
                "since": None if first is None else datetime.combine(first, time(), UTC),
                "error": error,
                "before": before,
            },
        )
    )
    if write_data(form, False, found, found):
        return
    show(Sheet(_COLUMNS, [_cells(one) for one in found], folds=("reason", "tool", "key", "arm")), console)
    if len(found) == limit:
        console.print(f"older ones: --before {found[-1]['decision_id']}", highlight=False)


async def _listed(settings: Settings, key: str | None, limit: int, filters: dict[str, Any]) -> list[dict[str, Any]]:
    from router.access.store import KeyStore
    from router.ledger.queries.decisions import Wanted, listed
    from router.ledger.store import Ledger, LedgerUnavailableError

    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            ring = await KeyStore(ledger.engine).ring()
            key_id = None if key is None else _key_id(key, {one.key_id: one.name for one in ring.by_id.values()})
            found = await listed(ledger.engine, Wanted(key_id=key_id, **filters), limit)
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None
    return [{**one, "key": ring.by_id[one["key_id"]].name if one["key_id"] in ring.by_id else None} for one in found]


def _key_id(asked: str, names: dict[str, str]) -> str:
    if asked in names:
        return asked
    named = [key_id for key_id, name in names.items() if name == asked]
    if len(named) != 1:
        several = f"{len(named)} keys have this name: give an id" if named else "there is no such key"
        raise fail(f"--key: {asked}: {several} (smallcall keys list)", 1)
    return named[0]


def _cells(one: dict[str, Any]) -> list[str]:
    from router.ledger.row import NANO

    known = [one[name] for name in ("large_cost_nusd", "small_cost_nusd") if one[name] is not None]
    arm = f"{one['experiment']}:{one['arm']}" if one["experiment"] else ""
    return [
        one["decision_id"],
        f"{one['created_at']:%Y-%m-%d %H:%M:%S}",
        one["side"],
        one["reason"],
        one["tool"] or "",
        *("–" if one[name] is None else f"{one[name]:.4f}" for name in ("score", "threshold")),
        f"{one['status']} {one['error_code'] or ''}".rstrip(),
        one["key"] or one["key_id"] or "",
        arm,
        f"{sum(known) / NANO:.6f}" if known else "–",
        f"{one['latency_s']:.3f}",
    ]


@ledger_app.command("show")
def show_decision(
    decision_id: Annotated[str, typer.Argument(help="as `ledger list` and x-smallcall-decision-id tell it")],
    config: Config = None,
) -> None:
    """Explain one decision in words: who answered, why, what it cost, what came of it. Exit code 1: there is none."""
    for sentence in asyncio.run(_described(reading(config), decision_id)):
        console.print(visible(sentence), highlight=False, markup=False, soft_wrap=True)


async def _described(settings: Settings, decision_id: str) -> list[str]:
    from router.access.store import KeyStore
    from router.cli.output.decision_text import described
    from router.ledger.outcomes import of_decision
    from router.ledger.queries.decisions import audit_of
    from router.ledger.store import Ledger, LedgerUnavailableError

    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            row = await ledger.get(decision_id)
            if row is None:
                raise fail(f"{decision_id}: there is no such decision (smallcall ledger list)", 1)
            key = (await KeyStore(ledger.engine).ring()).by_id.get(row.key_id or "")
            found = await of_decision(ledger.engine, decision_id), await audit_of(ledger.engine, decision_id)
            return list(described(row, *found, key.name if key else None))
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None


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
