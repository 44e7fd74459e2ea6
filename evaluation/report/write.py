"""A report on disk: JSON for programs and one self-contained HTML page for people, the same figures in both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from evaluation.report.content import Report
from evaluation.report.page import page
from evaluation.report.sheet import Sheet
from evaluation.report.text import percent


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """The files written."""

    html: Path
    json: Path


def write_report(report: Report, folder: Path) -> ReportPaths:
    """Write `report.json` and `report.html` into `folder`, which is made if need be. Equal reports give equal bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = ReportPaths(html=folder / "report.html", json=folder / "report.json")
    paths.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    paths.html.write_text(page(report), encoding="utf-8")
    return paths


def summary(report: Report) -> Sheet:
    """The ways to answer, for a terminal."""
    return Sheet(
        title=f"{report.small.arm} before {report.large.arm}, {report.cases:,} requests",
        headers=("way to answer", "passes (95 %)", "cost", "escalated", "median s"),
        folds=("way to answer",),
        rows=[
            (
                point.label,
                percent(point.quality),
                f"{100 * (point.cost.value or 0.0):.1f} %",
                f"{100 * point.escalated:.1f} %",
                "–" if point.latency_p50_s is None else f"{point.latency_p50_s:.2f}",
            )
            for point in report.points
        ],
        caption="cost: relative to the large model alone",
    )
