"""`smallcall costs`: what was spent, and what always asking the large model would have cost."""

from __future__ import annotations

import asyncio
import json
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from evaluation.report.sheet import Sheet
from router.cli.ledger import READ_S, day_option, fail, reading
from router.cli.output.tables import csv_text, show
from router.settings import Settings

if TYPE_CHECKING:
    from evaluation.live.cost_report import CostReport

console = Console()


class Grouping(StrEnum):
    """What a row of the report stands for."""

    DAY = "day"
    HOUR = "hour"
    KEY = "key"
    TENANT = "tenant"
    TOOL = "tool"
    MODEL = "model"
    REASON = "reason"
    ARM = "arm"


class Form(StrEnum):
    """The form of the report."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    HTML = "html"


def costs(
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win")] = None,
    by: Annotated[Grouping, typer.Option(help="what a row stands for")] = Grouping.DAY,
    since: Annotated[str | None, typer.Option(help="first day, such as 2026-11-01; UTC")] = None,
    until: Annotated[str | None, typer.Option(help="last day")] = None,
    form: Annotated[Form, typer.Option("--format")] = Form.TABLE,
    out: Annotated[Path | None, typer.Option(help="a file, instead of the terminal")] = None,
) -> None:
    """Spent, what always large would have cost (an estimate), saved, and the share that the small model answered.

    Exit code 1: no ledger.
    """
    from evaluation.live.cost_report import as_html, as_json

    settings = reading(config)
    first, last = day_option("--since", since), day_option("--until", until)
    report = asyncio.run(_report(settings, by, first, last))
    if form is Form.TABLE:
        _show(report, Console(file=out.open("w", encoding="utf-8")) if out else console)
        return
    text = {
        Form.JSON: lambda: json.dumps(as_json(report), indent=1) + "\n",
        Form.CSV: lambda: csv_text(as_json(report)["rows"]),
        Form.HTML: lambda: as_html(report),
    }[form]()
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")


async def _report(settings: Settings, by: Grouping, first: date | None, last: date | None) -> CostReport:
    from evaluation.live.cost_report import cost_report
    from evaluation.live.costs import Owner
    from router.access.store import KeyStore
    from router.ledger.queries.costs import Finer, cost_lines, newest_judgement, span
    from router.ledger.store import Ledger, LedgerUnavailableError

    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            known = await span(ledger.engine)
            start, end = known or (date.today(), date.today())  # noqa: DTZ011 - an empty ledger; any day will do
            start, end = first or start, last or end
            finer: Finer | None = "hour" if by is Grouping.HOUR else "model" if by is Grouping.MODEL else None
            lines = await cost_lines(ledger.engine, start, end, finer)
            keys = (await KeyStore(ledger.engine).ring()).by_id
            policy, certificate = await newest_judgement(ledger.engine)
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None
    return cost_report(
        lines,
        by.value,
        start,
        end,
        small_usd_per_hour=settings.small.usd_per_hour,
        judged_by=policy,
        certificate=certificate,
        owners={key_id: Owner(key.name, key.tenant) for key_id, key in keys.items()},
    )


def _show(report: CostReport, console: Console) -> None:
    from evaluation.live.cost_report import COLUMNS, cells

    title = f"costs by {report.by}, {report.first} to {report.last} (UTC)"
    rows = [(row.label, *cells(row)) for row in report.rows]
    total = ("total", *cells(report.total))
    show(Sheet((report.by, *COLUMNS), rows, title, folds=(report.by,), total=total), console)
    for remark in report.remarks:
        console.print(remark, highlight=False, markup=False, soft_wrap=True)
