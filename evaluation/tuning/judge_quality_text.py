"""A fit's report as Markdown, and its two files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from evaluation.tuning.judge_quality import Figures, FitReport, Importance, Protocol

SHOWN = 20
"""The number of signals whose importance is shown."""


def write_report(report: FitReport, folder: Path) -> tuple[Path, Path]:
    """Write `fit.md` and `fit.json` into a folder that exists; their paths."""
    markdown, table = folder / "fit.md", folder / "fit.json"
    markdown.write_text(render_markdown(report), encoding="utf-8")
    table.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return markdown, table


def render_markdown(report: FitReport) -> str:
    """Everything that the report holds, as tables."""
    parts = ["# A fitted judge", _facts(report)]
    parts.append(
        "Out of fold, valid drafts only. *known tools*: folds share no conversation. *unseen tools*: they share no "
        "called tool either, directly or through others. AUROC with its 95 % interval "
        "(bootstrap over the groups held out)."
    )
    parts.append(_side_by_side(report.protocols))
    for title, choose in (("By outcome", _kinds), ("By source", _sources)):
        parts.append(f"## {title}\n\n" + _by_group(report.protocols, choose))
    for protocol in report.protocols:
        parts.append(f"## Reliability, {protocol.name}\n\n" + _reliability(protocol))
    parts.append("## Importance\n\n" + _importance(report))
    if report.missing_signals:
        parts.append("Signals that no row has: " + ", ".join(f"`{name}`" for name in report.missing_signals) + ".")
    return "\n\n".join(parts) + "\n"


def _facts(report: FitReport) -> str:
    lines = [f"{name}: `{value}`  " for name, value in report.facts.items()]
    lines += [
        f"trace: `{trace['file']}`, {trace['rows']} rows, SHA-256 `{trace['sha256']}`  " for trace in report.traces
    ]
    lines.append(
        f"{report.rows} drafts, {report.passed} right, {report.invalid} invalid; left out: {report.without_label} "
        f"without a label, {report.not_drafted} that escalate before a draft  "
    )
    lines.append(
        f"{report.model}, {report.calibration} calibration, signals of version {report.features_version} that stand "
        f"{report.stage} the draft"
    )
    return "\n".join(lines)


def _side_by_side(protocols: Sequence[Protocol]) -> str:
    lines = ["| | " + " | ".join(protocol.name for protocol in protocols) + " |"]
    lines.append("| --- |" + " --- |" * len(protocols))

    def line(name: str, cells: Iterable[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    line("drafts, right", (f"{p.all.n}, {p.all.passed}" for p in protocols))
    line("groups", (str(p.groups) for p in protocols))
    line("rows by fold", (", ".join(map(str, p.folds)) for p in protocols))
    line("**AUROC**", (auroc_text(p.all) for p in protocols))
    line("AURC", (_number(p.all.aurc) for p in protocols))
    line("**ECE** (15 bins)", (_number(p.all.ece) for p in protocols))
    line("Brier", (_number(p.all.brier) for p in protocols))
    for place, baseline in enumerate(protocols[0].baselines):
        line(f"AUROC of `{baseline.name}`", (auroc_text(p.baselines[place]) for p in protocols))
    return "\n".join(lines)


def _kinds(protocol: Protocol) -> list[Figures]:
    return protocol.by_kind


def _sources(protocol: Protocol) -> list[Figures]:
    return protocol.by_source


def _by_group(protocols: Sequence[Protocol], choose: object) -> str:
    assert callable(choose)
    head = ["| | n | right |", "| --- | --- | --- |"]
    for protocol in protocols:
        head[0] += f" AUROC, {protocol.name} | ECE |"
        head[1] += " --- | --- |"
    columns = [{one.name: one for one in choose(protocol)} for protocol in protocols]
    for name, first in columns[0].items():
        row = f"| {name} | {first.n} | {100 * first.passed / first.n:.1f} % |"
        for column in columns:
            row += f" {auroc_text(column[name])} | {_number(column[name].ece)} |"
        head.append(row)
    return "\n".join(head)


def _reliability(protocol: Protocol) -> str:
    lines = ["| said | came (95 %) | n |", "| --- | --- | --- |"]
    for one in protocol.reliability:
        lines.append(f"| {one.said:.3f} | {one.passed:.3f} ({one.low:.3f}–{one.high:.3f}) | {one.n} |")
    return "\n".join(lines)


def _importance(report: FitReport) -> str:
    heading = "AUROC lost on held-out rows where a signal, or all of a family, is shuffled among them.\n\n"
    return (
        heading
        + _lost("family", report.families, len(report.families))
        + "\n\n"
        + _lost("signal", report.importance, SHOWN)
    )


def _lost(title: str, found: Sequence[Importance], shown: int) -> str:
    lines = [f"| {title} | AUROC lost |", "| --- | --- |"]
    lines += [f"| `{one.name}` | {one.lost:+.4f} |" for one in found[:shown]]
    return "\n".join(lines)


def auroc_text(one: Figures) -> str:
    """`0.912 (0.890–0.931)`; an en dash where it is not defined."""
    if one.auroc is None:
        return "–"
    if one.auroc_low is None or one.auroc_high is None:
        return f"{one.auroc:.3f}"
    return f"{one.auroc:.3f} ({one.auroc_low:.3f}–{one.auroc_high:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
