"""Tables of commands: no figure is ever cut, whatever the width, and a pipe gets plain columns."""

import asyncio
import csv
import io
import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from evaluation.report.sheet import Sheet
from router.__main__ import app as cli
from router.cli.output.tables import csv_text, show
from router.ledger.store import Ledger
from tests.router.cli.test_costs import DAY, large, small, write

WORDS = "a tool with quite a long name of many words"
FIGURES = ("12,345,678", "99.9%", "1,234.5678", "0.0001", "12,345.6789", "-0.1234", "84.2 % (81.0–87.1)", "7")
SHEET = Sheet(
    headers=("tool", "requests", "small", "large $", "small $", "always large $*", "saved $*", "passes (95 %)", "n"),
    rows=[(WORDS, *FIGURES), ("x", *FIGURES)],
    title="costs by tool",
    folds=("tool",),
    total=("total", *FIGURES),
)


def _drawn(width: int, *, terminal: bool) -> str:
    out = io.StringIO()
    show(SHEET, Console(file=out, width=width, force_terminal=terminal, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("width", [200, 120, 80, 60, 30, 10])
def test_a_terminal_of_any_width_shows_every_figure_whole(width: int) -> None:
    """Three rows, so each figure stands there three times; headers and words fold instead, and no line is too long as
    long as two columns fit beside each other."""
    text = _drawn(width, terminal=True)
    for figure in FIGURES[:-1]:
        assert text.count(figure) == 3, (figure, text)
    for word in " ".join(SHEET.headers).split():
        assert word in text
    assert "…" not in text
    if width > 30:
        assert max(len(line.rstrip()) for line in text.splitlines()) <= width


def test_a_pipe_gets_one_line_a_row() -> None:
    """Columns two blanks apart, whatever the width; figures end below each other."""
    text = _drawn(20, terminal=False)
    title, header, *rows = text.splitlines()
    assert title == "costs by tool"
    assert re.split(r"  +", header.strip()) == list(SHEET.headers)
    assert [re.split(r"  +", row) for row in rows] == [[one[0], *FIGURES] for one in [*SHEET.rows, ("total",)]]


def test_no_name_reaches_the_terminal_with_control_characters_or_markup() -> None:
    """Neither piped nor drawn."""
    for terminal in (True, False):
        out = io.StringIO()
        sheet = Sheet(("tool", "n"), [("[red]\x1b[2Jx\u202e", "1")], title="[bold]")
        show(sheet, Console(file=out, width=80, force_terminal=terminal, color_system=None))
        assert "[red]\ufffd[2Jx\ufffd" in out.getvalue()
        assert "[bold]" in out.getvalue()


def test_csv_keeps_formulas_from_spreadsheets() -> None:
    """Text only: a negative figure is one."""
    text = csv_text([{"tool": "=cmd|calc", "saved": -3, "models": ["a", "b"], "none": None}])
    assert text == "tool,saved,models,none\n'=cmd|calc,-3,a b,\n"
    assert csv_text([]) == "\n"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """The configuration of a ledger with three rows and a key."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"

    async def fill() -> None:
        async with Ledger.open(url) as opened:
            rows = [large("a"), small("b", DAY + timedelta(days=1), audit_propensity=0.1), small("c", tool=None)]
            rows += [large(f"d{i:02}", DAY + timedelta(days=i % 2), large_cost_nusd=i) for i in range(30)]
            await write(opened, rows)

    asyncio.run(fill())
    file = tmp_path / "smallcall.yaml"
    experiment = {"arms": {"control": {}, "bold": {"policy": {"kind": "large_only"}}}, "enabled": False}
    file.write_text(json.dumps({"ledger": {"url": url}, "experiments": {"trial": experiment}}))
    return file


@pytest.mark.parametrize(
    ("asked", "columns"),
    [
        (("costs",), {"label", "requests", "spent_nusd"}),
        (("audits",), {"tool", "audited", "snips"}),
        (("drift", "--since", "2026-05-05", "--until", "2026-05-06"), {"name", "psi"}),
        (("keys", "list"), {"id", "name", "spent_usd", "models"}),
        (("ab", "status", "trial"), {"name", "units", "pass_rate"}),
    ],
)
def test_commands_that_look_tell_tables_json_and_csv(ledger: Path, asked: tuple[str, ...], columns: set[str]) -> None:
    """One option for all of them."""
    run = CliRunner()
    assert run.invoke(cli, ["keys", "create", "--name", "+ci", "--config", str(ledger)]).exit_code == 0
    told = {
        form: run.invoke(cli, [*asked, "--config", str(ledger), "--format", form]) for form in ("table", "json", "csv")
    }
    assert [one.exit_code for one in told.values()] == [0, 0, 0], [(one.output, one.exception) for one in told.values()]
    assert json.loads(told["json"].stdout)
    rows = list(csv.DictReader(io.StringIO(told["csv"].stdout)))
    assert rows
    assert columns <= set(rows[0])
    assert "│" not in told["table"].stdout
    assert run.invoke(cli, [*asked, "--config", str(ledger), "--format", "xml"]).exit_code == 2


def test_costs_at_eighty_columns_are_whole(ledger: Path) -> None:
    """As a terminal shows them, and as a pipe gets them."""
    for environment in ({"COLUMNS": "80", "FORCE_COLOR": "1", "NO_COLOR": "1"}, {"COLUMNS": "80"}):
        shown = CliRunner().invoke(cli, ["costs", "--config", str(ledger)], env=environment).stdout
        for figure in ("2026-05-04", "2026-05-05", "0.0012", "6.2%", "5.9%"):
            assert figure in shown, shown
        assert "…" not in shown
