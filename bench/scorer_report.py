"""The scorer check as Markdown for a reader and as JSON for a machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from bench.scorer_check import CheckedCell, ScorerCheck

EXPLAIN_POINTS = 2.0
"""A category in which our rate differs by more than this many percentage points is called out."""


def render_markdown(check: ScorerCheck, *, command: str, commit: str) -> str:
    """Tables: agreement, one table a category, causes, every differing row."""
    parts = [
        "# The scorer against BFCL's published verdicts",
        f"Command: `{command}`. Commit: `{commit}`.\n"
        f"Cases: SHA-256 `{check.cases_sha256}`. Recordings: SHA-256 `{check.recordings_sha256}`.",
        _summary(check),
        "## Pass rates, %\n\n"
        "*ours*: `evaluation/cases/scoring.py` with today's gold. *gold of the day*: the same with the gold that BFCL "
        "scored "
        "with on 2024-08-11. *published*: BFCL's verdicts on the same cases. *published, all*: BFCL's own rate on all "
        "its cases of the category, of which some are left out here because their question changed later. *simple "
        "check*: the data set's own check (names and acceptable values, no types).",
    ]
    for category in dict.fromkeys(cell.category for cell in check.cells):
        parts.append(_category(category, [cell for cell in check.cells if cell.category == category]))
    parts += [_called_out(check), _causes(check), _differences(check), _simple(check)]
    return "\n\n".join(parts) + "\n"


def write(check: ScorerCheck, folder: Path, *, command: str, commit: str) -> tuple[Path, Path]:
    """Write `scorer.md` and `scorer.json` into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table = folder / "scorer.md", folder / "scorer.json"
    markdown.write_text(render_markdown(check, command=command, commit=commit), encoding="utf-8")
    content = {"command": command, "commit": commit} | msgspec.to_builtins(check)
    table.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    return markdown, table


def _summary(check: ScorerCheck) -> str:
    return (
        f"{check.answers:,} recorded answers. Our verdict is the published one on {check.agree:,} "
        f"({_percent(check.agree, check.answers, 2)} %) with today's gold and on {check.agree_gold_of_publication:,} "
        f"({_percent(check.agree_gold_of_publication, check.answers, 2)} %) with the gold of the day."
    )


def _category(category: str, cells: list[CheckedCell]) -> str:
    lines = [
        f"### {category}\n",
        "| model | cases | ours | gold of the day | published | published, all | simple check |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        rates = [cell.ours, cell.ours_gold_of_publication, cell.published]
        shown = [_percent(passed, cell.cases) for passed in rates]
        shown.append(_percent(cell.published_all_passed, cell.published_all_cases))
        shown.append(_percent(cell.simple_check, cell.cases))
        lines.append(f"| {cell.model} | {cell.cases} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _called_out(check: ScorerCheck) -> str:
    lines = []
    for cell in check.cells:
        rate = 100 * cell.ours / cell.cases
        same = rate - 100 * cell.published / cell.cases
        whole = rate - 100 * cell.published_all_passed / cell.published_all_cases
        if max(abs(same), abs(whole)) > EXPLAIN_POINTS:
            lines.append(f"- {cell.model}, {cell.category}: {same:+.1f} on the same cases, {whole:+.1f} against all.")
    largest = max(abs(cell.ours - cell.published) * 100 / cell.cases for cell in check.cells)
    head = (
        f"## Differences over {EXPLAIN_POINTS:g} points\n\nLargest difference on the same cases: {largest:.1f} points."
    )
    return (
        head + "\n\n" + ("\n".join(lines) or "No category differs by more, neither on the same cases nor against all.")
    )


def _causes(check: ScorerCheck) -> str:
    counts = Counter(difference.cause for difference in check.differences)
    ids = {cause: sorted({row.id for row in check.differences if row.cause is cause}) for cause in counts}
    lines = ["## Causes\n", "| cause | answers | cases |", "| --- | --- | --- |"]
    lines += [f"| {cause} | {count} | {', '.join(ids[cause])} |" for cause, count in counts.most_common()]
    return "\n".join(lines) + "\n\nWhat each cause means and how it is checked: `bench/scorer_check.py`."


def _differences(check: ScorerCheck) -> str:
    lines = [
        "## Every answer on which we differ\n",
        "| case | model | ours | reason | published | cause |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(check.differences, key=lambda row: (row.id, row.model)):
        verdicts = [_verdict(row.passed), row.reason, _verdict(row.published), row.cause]
        lines.append(f"| {row.id} | {row.model} | {' | '.join(verdicts)} |")
    return "\n".join(lines)


def _simple(check: ScorerCheck) -> str:
    lines = ["## Where the data set's simple check says otherwise\n", "| ours | answers |", "| --- | --- |"]
    lines += [f"| {verdict} | {count} |" for verdict, count in check.simple_check_differences.items()]
    return "\n".join(lines)


def _verdict(passed: bool) -> str:
    return "pass" if passed else "fail"


def _percent(part: int, whole: int, digits: int = 1) -> str:
    return f"{100 * part / whole:.{digits}f}"
