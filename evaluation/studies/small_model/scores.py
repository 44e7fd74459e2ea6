"""Quality of the small model alone: pass rates by set and group, how many drafts were valid, and how it failed.

An arm is one way to run the small model; recorded large models stand beside it on the same BFCL cases. Intervals are
Wilson's, rows taken as independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from evaluation.cases.case import Case, data_hash
from evaluation.cases.scoring import score
from evaluation.cases.sets import group_of
from evaluation.cases.study_data import RecordedAnswer
from evaluation.intervals import wilson
from evaluation.traces.collect import INVALID_DRAFT, scored
from evaluation.traces.table import Trace, TraceRow, calls_of, calls_text

ALL = "all"


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One arm's figures for one group of a set."""

    arm: str
    group: str
    n: int
    passed: int
    low: float
    """Lower end of the pass rate's 95 % interval, which ends at `high`; in [0, 1]."""
    high: float
    valid: int | None
    """Drafts that follow the pattern and fit the schemas, or make no call; None where that is not known."""
    drafted: int | None
    """Cases that were drafted at all; the others were refused, or failed on the way."""
    reasons: dict[str, int]
    """Answers by what the scorer says of them."""


class SetScores(msgspec.Struct, frozen=True, kw_only=True):
    """All arms on one set."""

    name: str
    data_sha256: str
    cells: list[Cell]


def set_scores(
    name: str,
    cases: Sequence[Case],
    traces: Mapping[str, Trace],
    recordings: Mapping[str, Sequence[RecordedAnswer]] | None = None,
) -> SetScores:
    """The figures of one set. `traces` by arm must answer all cases; `recordings` by model are shown where they do.

    Raises LookupError where an arm's trace lacks a case.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(group_of(name, case), []).append(case)
    groups = {**dict(sorted(groups.items())), ALL: list(cases)}
    cells = []
    for arm, trace in traces.items():
        rows = {row.case_id: row for row in trace.rows}
        if missing := [case.id for case in cases if case.id not in rows]:
            raise LookupError(f"{arm} has no answer to {len(missing)} cases of {name}, {missing[0]!r} among them")
        cells += [_of_rows(arm, group, [rows[case.id] for case in members]) for group, members in groups.items()]
    for model, answers in (recordings or {}).items():
        by_id = {answer.id: answer for answer in answers}
        for group, members in groups.items():
            answered = [(case, by_id[case.id]) for case in members if case.id in by_id]
            if answered:
                verdicts = [score(case, answer.answer) for case, answer in answered]
                reasons = Counter(str(verdict.reason) for verdict in verdicts)
                cells.append(_cell(model, group, [verdict.passed for verdict in verdicts], None, None, reasons))
    return SetScores(name=name, data_sha256=data_hash(cases), cells=cells)


def first_calls(cases: Sequence[Case], trace: Trace) -> Trace:
    """The answers cut down to their first call and scored again: what can stand beside a recorded next action."""
    by_id = {case.id: case for case in cases}
    rows = []
    for row in trace.rows:
        if row.case_id in by_id:
            first = None if row.calls is None else calls_text(calls_of(row.calls)[:1])
            rows.append(scored(by_id[row.case_id], replace(row, calls=first)))
    return Trace(trace.info, rows)


def _of_rows(arm: str, group: str, rows: Sequence[TraceRow]) -> Cell:
    reasons = Counter(row.error or row.fail_reason or "passed" for row in rows)
    valid = sum(row.error is None for row in rows)
    drafted = valid + sum(row.error == INVALID_DRAFT for row in rows)
    return _cell(arm, group, [row.passed is True for row in rows], valid, drafted, reasons)


def _cell(
    arm: str, group: str, passed: Sequence[bool], valid: int | None, drafted: int | None, reasons: Counter[str]
) -> Cell:
    low, high = wilson(sum(passed), len(passed))
    return Cell(
        arm=arm,
        group=group,
        n=len(passed),
        passed=sum(passed),
        low=low,
        high=high,
        valid=valid,
        drafted=drafted,
        reasons=dict(reasons.most_common()),
    )


def render_markdown(sets: Sequence[SetScores], facts: Mapping[str, str]) -> str:
    """Tables: pass rates by group with arms side by side, valid drafts, kinds of failure."""
    parts = ["# The small model alone", "\n".join(f"{name}: `{value}`  " for name, value in facts.items())]
    parts.append(
        "Pass rate in %, AST match by BFCL's rules, its 95 % interval and n. In `toolbench` the tools called must be "
        "relevant ones; in `toolbench_recorded` the one that gpt-3.5-turbo called first, which is agreement and not "
        "correctness. *valid*: share of the drafts that follow the pattern and fit the schemas, or make no call; an "
        f"invalid one (`{INVALID_DRAFT}`) counts as failed. Recorded models did not answer all cases: mind their n."
    )
    for scores in sets:
        parts.append(_table(scores))
        parts.append(_failures(scores))
    return "\n\n".join(parts) + "\n"


def write(sets: Sequence[SetScores], folder: Path, facts: Mapping[str, str]) -> tuple[Path, Path]:
    """Write `slm.md` and `slm.json` into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table = folder / "slm.md", folder / "slm.json"
    markdown.write_text(render_markdown(sets, facts), encoding="utf-8")
    content = {**facts, "sets": msgspec.to_builtins(list(sets))}
    table.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    return markdown, table


def _table(scores: SetScores) -> str:
    arms = list(dict.fromkeys(cell.arm for cell in scores.cells))
    groups = list(dict.fromkeys(cell.group for cell in scores.cells))
    by_place = {(cell.arm, cell.group): cell for cell in scores.cells}
    lines = [f"## {scores.name}\n", f"Cases: SHA-256 `{scores.data_sha256}`.\n"]
    lines.append("| group | " + " | ".join(arms) + " |")
    lines.append("| --- |" + " --- |" * len(arms))
    for group in groups:
        cells = (by_place.get((arm, group)) for arm in arms)
        lines.append(f"| {group} | " + " | ".join(_pass_rate(cell) if cell else "–" for cell in cells) + " |")
    return "\n".join(lines)


def _pass_rate(cell: Cell) -> str:
    rate = f"{100 * cell.passed / cell.n:.1f} ({100 * cell.low:.0f}–{100 * cell.high:.0f}) of {cell.n}"
    return rate if not cell.drafted else f"{rate}, valid {100 * (cell.valid or 0) / cell.drafted:.0f}"


def _validity(cell: Cell) -> str:
    if cell.valid is None or not cell.drafted:
        return ""
    low, high = wilson(cell.valid, cell.drafted)
    share = f"{100 * cell.valid / cell.drafted:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
    return f"{share} of {cell.drafted} drafts valid; "


def _failures(scores: SetScores) -> str:
    whole = [cell for cell in scores.cells if cell.group == ALL]
    lines = []
    for cell in whole:
        kinds = ", ".join(f"{reason} {count}" for reason, count in cell.reasons.items())
        lines.append(f"- {cell.arm}: {_validity(cell)}{kinds}")
    return f"What came of the answers to `{scores.name}`:\n\n" + "\n".join(lines)
