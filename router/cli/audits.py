"""`smallcall audits`: how often the large model would have said the same as the small one."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from evaluation.report.sheet import Sheet
from router.cli.ledger import READ_S, day_option, fail, reading
from router.cli.output.tables import AsForm, AsJson, Form, show, write_data
from router.settings import Settings

if TYPE_CHECKING:
    from evaluation.live.audits import AuditEstimates
    from router.ledger.audits import Auditable

console = Console()


def audits(
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win")] = None,
    since: Annotated[str | None, typer.Option(help="first day, such as 2026-11-01; UTC")] = None,
    until: Annotated[str | None, typer.Option(help="last day")] = None,
    form: AsForm = Form.TABLE,
    as_json: AsJson = False,
) -> None:
    """Agreement of the small model's accepted answers with the large model, estimated from shadow audits.

    No figure is given under 30 effective rows. Exit code 1: no ledger.
    """
    settings = reading(config)
    first, last = day_option("--since", since), day_option("--until", until)
    rows = asyncio.run(_rows(settings, first or date(1970, 1, 1), last or date(9998, 12, 31)))
    whole = _estimated(rows)
    by_tool = {tool: _estimated([row for row in rows if row.tool == tool]) for tool in _tools(rows)}
    reasons = Counter(row.reason for row in rows if row.reason is not None)
    spent = sum(row.cost_nusd or 0 for row in rows)
    tools = {tool: _plain(found) for tool, found in by_tool.items()}
    data = {**_plain(whole), "reasons": reasons, "cost_nusd": spent, "tools": tools}
    if write_data(form, as_json, data, [_record(tool, found) for tool, found in by_tool.items()]):
        return
    said = f"{whole.eligible} accepted answers could have been audited; {whole.audited} were; {whole.agreed} agree"
    console.print(f"{said}; audits cost ${spent / 1e9:.4f}", highlight=False, soft_wrap=True)
    for one in whole.estimates:
        console.print(f"  {one.method}: {one}", highlight=False, soft_wrap=True)
    if by_tool:
        headers = ("tool", "answers", "audited", "agree", "snips")
        cells = [
            (tool, *map(str, (found.eligible, found.audited, found.agreed)), _snips(found))
            for tool, found in by_tool.items()
        ]
        show(Sheet(headers, cells, "by tool", folds=("tool", "snips")), console)


async def _rows(settings: Settings, first: date, last: date) -> list[Auditable]:
    from router.ledger.audits import auditable
    from router.ledger.store import Ledger, LedgerUnavailableError

    try:
        async with Ledger.open(settings.ledger.url, READ_S) as ledger:
            return await auditable(ledger.engine, first, last)
    except LedgerUnavailableError as error:
        raise fail(str(error), 1) from None


def _tools(rows: list[Auditable]) -> list[str]:
    return [tool for tool, _ in Counter(row.tool for row in rows if row.tool).most_common(50)]


def _estimated(rows: list[Auditable]) -> AuditEstimates:
    from evaluation.live.audits import audit_estimates

    scores = [row.score for row in rows]
    return audit_estimates(
        [row.propensity for row in rows],
        [row.agreed is not None for row in rows],
        [bool(row.agreed) for row in rows],
        [score if score is not None and 0 <= score <= 1 else 0.5 for score in scores],
    )


def _snips(found: AuditEstimates) -> str:
    return str(found.estimates[1]) if found.estimates else "–"


def _record(tool: str, found: AuditEstimates) -> dict[str, Any]:
    """A tool's line of CSV, with its SNIPS where enough rows stand for it."""
    snips = found.estimates[1] if found.estimates and found.estimates[1].reliable else None
    counts = {"answers": found.eligible, "audited": found.audited, "agreed": found.agreed}
    figures = {"snips": snips and snips.value, "standard_error": snips and snips.standard_error}
    return {"tool": tool, **counts, **figures}


def _plain(found: AuditEstimates) -> dict[str, Any]:
    """A figure that too few rows stand for is left out, not printed."""
    estimates = [
        {**asdict(one), "reliable": one.reliable} | ({} if one.reliable else {"value": None, "standard_error": None})
        for one in found.estimates
    ]
    return {
        "eligible": found.eligible,
        "audited": found.audited,
        "agreed": found.agreed,
        "estimates": estimates,
    }
