"""The cascade study on disk: `cascade.json` with every figure, `cascade.md` with the tables that a reader wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from evaluation.replay.figures import Estimate
from evaluation.report.text import number, percent
from evaluation.studies.cascade.procedure import OperatingPoint
from evaluation.studies.cascade.study import JudgeFigures, StudyOptions, Table

_SETS = {
    "bfcl": "BFCL, cases with recorded answers",
    "bfcl_live": "BFCL live",
    "in_domain": "In domain (other conversations, known tools)",
    "heldout_tools": "Held-out tools (in no training row)",
}


class CascadeStudy(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found, and of what."""

    command: str
    commit: str
    version: str
    small: list[dict[str, str]]
    """The small arm's traces: name, command, SHA-256 of their cases."""
    asked: dict[str, int]
    draws: int
    seed: int
    alpha: float
    delta: float
    small_usd_per_hour: float
    median_busy_s: float | None
    """Median seconds that the small model works on a request."""
    assumptions: list[str]
    missing: list[str]
    tables: list[Table]


def study_of(
    tables: Sequence[Table],
    *,
    facts: Mapping[str, str],
    small: Sequence[dict[str, str]],
    asked: Mapping[str, int],
    options: StudyOptions,
    median_busy_s: float | None,
    assumptions: Sequence[str],
    missing: Sequence[str],
) -> CascadeStudy:
    """Put together what the files hold. `facts` are `command`, `commit` and `version`."""
    return CascadeStudy(
        **facts,
        small=list(small),
        asked=dict(asked),
        draws=options.draws,
        seed=options.seed,
        alpha=options.alpha,
        delta=options.delta,
        small_usd_per_hour=options.small_usd_per_hour,
        median_busy_s=median_busy_s,
        assumptions=list(assumptions),
        missing=list(missing),
        tables=list(tables),
    )


def write(study: CascadeStudy, folder: Path) -> tuple[Path, Path]:
    """Write both files into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table = folder / "cascade.md", folder / "cascade.json"
    markdown.write_text(render_markdown(study), encoding="utf-8")
    table.write_bytes(msgspec.json.format(msgspec.json.encode(study), indent=1) + b"\n")
    return markdown, table


def render_markdown(study: CascadeStudy) -> str:
    """Head, what is missing, a summary of all tables, and each table."""
    parts = ["# The cascade study: pass rate and cost of asking the small model first", _head(study)]
    if study.missing:
        parts.append("**Missing**\n\n" + "\n".join(f"- {line}" for line in study.missing))
    if study.tables:
        parts += ["## Summary", _SUMMARY_NOTE, _summary(study.tables)]
    for name, title in _SETS.items():
        tables = [table for table in study.tables if table.set_name == name]
        if tables:
            parts += [f"## {title}", *(_table(table) for table in tables)]
    return "\n\n".join(parts) + "\n"


def _head(study: CascadeStudy) -> str:
    asked = ", ".join(f"{name} {n:,}" for name, n in study.asked.items() if n) or "none"
    busy = "not measured" if study.median_busy_s is None else f"{study.median_busy_s:.2f} s a request in the median"
    traces = "\n".join(
        f"- small: `{trace['name']}`, collected by `{trace['command']}`, cases `{trace['data_sha256'][:12]}`"
        for trace in study.small
    )
    assumed = "\n".join(f"- {line}" for line in study.assumptions)
    return (
        f"command: `{study.command}`  \ncommit: `{study.commit}`, smallcall {study.version}  \n"
        f"cases in the small traces: {asked}  \n"
        f"intervals: 95 %, {study.draws:,} bootstrap draws of whole groups (tool, then conversation), seed {study.seed}"
        f"\n\n{traces}\n- the small model costs {study.small_usd_per_hour:g} USD for every hour in which it works "
        f"({busy})\n"
        f"{assumed}"
    )


_SUMMARY_NOTE = (
    "Pass rates in %; costs in % of the large model alone, the draft included. *QNC*: least cost at the large model's "
    "pass rate, the threshold found on the reported rows themselves (hindsight). *Chosen*: the threshold that lost "
    "nothing on other rows, told on these. *Against*: our QNC over that of the best other judge. **split**: fitted, "
    "certified and reported on parts of the set that share no tool and no conversation (in domain: no conversation); "
    "**cold**: fitted and certified on rows of the training sources only, reported on the whole set."
)


def _summary(tables: Sequence[Table]) -> str:
    lines = [
        "| set | large model | protocol | n | small | large | oracle | our QNC | chosen: pass rate | chosen: cost "
        "| against |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for table in tables:
        ours = _best_of_ours(table)
        chosen = None if ours is None else ours.neutral
        cells = [
            table.set_name,
            table.large + (" (simulated)" if table.simulated else ""),
            table.protocol,
            f"{table.rows['report']:,}",
            _short(table.small_passed),
            _short(table.large_passed),
            _short(table.oracle_passed),
            "–" if ours is None else _bare(ours.figures["qnc"]),
            "–" if chosen is None else _bare(chosen.passed),
            "–" if chosen is None else _bare(chosen.cost),
            next((f"{number(row.ratio)} of {row.other}" for row in table.against if row.figure == "qnc"), "–"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _best_of_ours(table: Table) -> JudgeFigures | None:
    ours = next((row.ours for row in table.against if row.figure == "qnc"), None)
    return next((judge for judge in table.judges if judge.key == ours), None)


_COLUMNS = {
    "qnc": "QNC",
    "cost95": "cost at 95 % of the gap",
    "cpt95": "CPT(0.95)",
    "cpt100": "CPT(1.0)",
    "apgr": "APGR",
    "aiq": "AIQ",
    "audc": "AUDC",
    "auroc": "AUROC",
    "aurc": "AURC",
    "e_aurc": "E-AURC",
}
_IN_PERCENT = ("qnc", "cost95", "cpt95", "cpt100")


def _table(table: Table) -> str:
    rows = ", ".join(f"{name} {n:,}" for name, n in table.rows.items())
    simulated = ", **simulated**" if table.simulated else ""
    head = (
        f"### {table.large}{simulated}, {table.protocol}\n\n"
        f"Rows: {rows}; {table.clusters:,} groups. Small only passes {percent(table.small_passed)} at "
        f"{percent(table.small_cost)} of the cost, large only {percent(table.large_passed)} at "
        f"{table.large_usd_per_1000:.3f} USD per 1,000, schema-valid drafts {percent(table.schema_valid_passed)}, the "
        f"oracle {percent(table.oracle_passed)}."
    )
    remarks = "\n".join(f"- {line}" for line in table.remarks)
    against = "\n".join(
        f"- {_COLUMNS[row.figure]}: {row.ours} costs {number(row.ratio)} of the best other judge's ({row.other})"
        for row in table.against
    )
    return "\n\n".join(part for part in (head, remarks, _curves(table), _operating_point(table), against) if part)


def _curves(table: Table) -> str:
    lines = [
        f"| judge | {' | '.join(_COLUMNS.values())} | ECE | Brier |",
        "| --- |" + " --: |" * (len(_COLUMNS) + 2),
    ]
    for judge in table.judges:
        cells = [
            percent(judge.figures[name]) if name in _IN_PERCENT else number(judge.figures[name]) for name in _COLUMNS
        ]
        if judge.key == "oracle":
            cells[-3:] = ["–"] * 3
        cells += ["–" if value is None else f"{value:.3f}" for value in (judge.ece, judge.brier)]
        lines.append(f"| {_named(judge)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _operating_point(table: Table) -> str:
    lines = [
        "| threshold chosen on other rows | passes | cost | escalated | harmed | certified: passes | cost | escalated "
        "| harmed | certificate |",
        "| --- |" + " --: |" * 9,
    ]
    for judge in table.judges:
        if judge.neutral is None or judge.certified is None:
            continue
        cells = [*_operating_cells(judge.neutral), *_operating_cells(judge.certified), judge.certified.certified]
        lines.append(f"| {_named(judge)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _operating_cells(at: OperatingPoint) -> list[str]:
    return [percent(at.passed), percent(at.cost), f"{100 * at.escalated:.1f} %", f"{100 * at.harmed:.1f} %"]


def _named(judge: JudgeFigures) -> str:
    return f"**{judge.label}**" if judge.ours else judge.label


def _short(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{100 * estimate.value:.1f}"


def _bare(estimate: Estimate) -> str:
    return percent(estimate).replace(" %", "")
