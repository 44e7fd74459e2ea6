"""Tables of commands: one way to draw them, to print them into a pipe, and to write them as JSON or CSV.

On a terminal, headers and words fold, and figures are never cut: columns that do not fit beside each other stand below
each other, with the first column before each part. Anywhere else a row is one line of columns two blanks apart.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.report.sheet import Sheet

FOLDED = 12
"""Cells of a terminal that a column of words has at least, where its words are that long."""
_GAP = 2
_FIGURE = re.compile(r"[-+<>≤≥$–]?\d.*|–|")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Form(StrEnum):
    """The form in which rows are printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


AsForm = Annotated[Form, typer.Option("--format", help="table: for people; json: everything; csv: one line a row")]
AsJson = Annotated[bool, typer.Option("--json", help="the same as --format json")]


def visible(text: str) -> str:
    """Names come from clients and providers: no control character of theirs reaches the terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def write_data(form: Form, as_json: bool, data: Any, records: Sequence[Mapping[str, Any]]) -> bool:
    """Write `data` as JSON or `records` as CSV where one of them is asked for, and say whether that was so."""
    if as_json or form is Form.JSON:
        print(json.dumps(data, indent=1, default=str))
        return True
    if form is Form.CSV:
        print(csv_text(records), end="")
        return True
    return False


def csv_text(records: Sequence[Mapping[str, Any]]) -> str:
    """A header and one line a record; what a spreadsheet would take for a formula gets a quote in front."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _field(value) for name, value in record.items()})
    return out.getvalue()


def _field(value: Any) -> Any:
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA) else value


def show(sheet: Sheet, console: Console) -> None:
    """Print it as the console can: drawn on a terminal, plain anywhere else."""
    rows = [[visible(cell) for cell in row] for row in [*sheet.rows, *([sheet.total] if sheet.total else [])]]
    parts = _parts(sheet, rows, console.width) if console.is_terminal else []
    if not parts:
        for line in _plain(sheet, rows):
            console.out(line, highlight=False)
        return
    for number, widths in enumerate(parts):
        console.print(_drawn(sheet, rows, widths, first=not number, last=number == len(parts) - 1))


def _plain(sheet: Sheet, rows: Sequence[Sequence[str]]) -> Iterable[str]:
    whole = [list(sheet.headers), *rows]
    widths = [max(cell_len(row[column]) for row in whole) for column in range(len(sheet.headers))]
    right = [_figures(rows, column) for column in range(len(sheet.headers))]
    if sheet.title:
        yield visible(sheet.title)
    for row in whole:
        cells = zip(row, widths, right, strict=True)
        yield (" " * _GAP).join(_padded(cell, width, to_right) for cell, width, to_right in cells).rstrip()
    if sheet.caption:
        yield visible(sheet.caption)


def _padded(cell: str, width: int, right: bool) -> str:
    blank = " " * (width - cell_len(cell))
    return blank + cell if right else cell + blank


def _figures(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(_FIGURE.fullmatch(row[column]) for row in rows)


def _parts(sheet: Sheet, rows: Sequence[Sequence[str]], width: int) -> list[dict[int, int]]:
    """The columns of each part with their widths; none where not even two columns fit beside each other."""
    longest = [
        max([cell_len(row[column]) for row in rows] + [cell_len(word) for word in header.split()] + [1])
        for column, header in enumerate(sheet.headers)
    ]
    least = [
        min(longest[column], max([FOLDED, *(cell_len(word) for word in header.split())]))
        if header in sheet.folds
        else longest[column]
        for column, header in enumerate(sheet.headers)
    ]
    parts: list[list[int]] = [[0]]
    for column in range(1, len(least)):
        if _wide(least, [*parts[-1], column]) > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(column)
    if any(_wide(least, part) > width for part in parts):
        return []
    return [_widths(part, least, longest, width - _wide(least, part)) for part in parts]


def _wide(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[column] + _GAP for column in columns)


def _widths(columns: Sequence[int], least: Sequence[int], longest: Sequence[int], left: int) -> dict[int, int]:
    """What is left of the terminal goes to the columns that would fold, from the left."""
    widths = {}
    for column in columns:
        more = min(left, longest[column] - least[column])
        widths[column], left = least[column] + more, left - more
    return widths


def _drawn(sheet: Sheet, rows: Sequence[Sequence[str]], widths: Mapping[int, int], *, first: bool, last: bool) -> Table:
    table = Table(
        title=Text(visible(sheet.title)) if sheet.title and first else None,
        caption=Text(visible(sheet.caption)) if sheet.caption and last else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column, width in widths.items():
        right = _figures(rows, column)
        table.add_column(
            Text(sheet.headers[column]), justify="right" if right else "left", overflow="fold", width=width
        )
    for number, row in enumerate(rows):
        if sheet.total is not None and number == len(rows) - 1:
            table.add_section()
        table.add_row(*(Text(row[column]) for column in widths))
    return table
