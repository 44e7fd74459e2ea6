"""The report's chart and diagrams as PNG files, for documents. matplotlib is imported when they are written.

The same figures as on the page: curves with the band of the first one, the ways to answer with their intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.report.chart import UNLED
from evaluation.report.content import Report
from evaluation.report.text import percent

DPI = 130
_STYLES = {"oracle": ":", "prompt_logistic": "--", "prompt_mf": "-."}


class PicturesUnavailableError(RuntimeError):
    """matplotlib is not installed."""


def write_pictures(report: Report, folder: Path) -> list[Path]:
    """Write `curve.png`, `reliability.png` and `risk.png` into `folder`, which exists; those that have content.

    Raises PicturesUnavailableError without matplotlib (`pip install smallcall[report]`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PicturesUnavailableError("matplotlib is not installed: pip install 'smallcall[report]'") from error
    drawings = [("curve", _curve, (8.6, 5.2)), ("reliability", _reliability, (4.6, 4.2)), ("risk", _risk, (4.6, 4.2))]
    written = []
    for name, draw, size in drawings:
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        if draw(report, figure.subplots()):
            path = folder / f"{name}.png"
            figure.savefig(path, metadata={"Software": None})
            written.append(path)
    return written


def _curve(report: Report, axes: Any) -> bool:
    lead = next((curve.key for curve in report.curves if curve.key not in UNLED), None)
    for curve in report.curves:
        (line,) = axes.plot(curve.cost, curve.quality, _STYLES.get(curve.key, "-"), label=_plain(curve.label))
        if curve.key == lead:
            axes.fill_between(
                curve.grid_cost, curve.band_low, curve.band_high, alpha=0.15, linewidth=0, color=line.get_color()
            )
    ends = [point for point in report.points if point.key in ("small_only", "large_only")]
    axes.plot([p.cost.value for p in ends], [p.quality.value for p in ends], "--", color="0.6", label="random mix")
    for point in report.points:
        if point.key == "random_mix" or "@" in point.key:
            continue
        quality, x = point.quality, point.cost.value or 0.0
        y = quality.value or 0.0
        spread = [[max(0.0, y - (quality.low or y))], [max(0.0, (quality.high or y) - y)]]
        axes.errorbar([x], [y], yerr=spread, fmt="o", color="0.25", markersize=4, capsize=2)
        axes.annotate(_plain(point.label.split(":")[0]), (x, y), (5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel="cost, relative to the large model alone", ylabel="requests passed")
    _percent(axes)
    large = next(point for point in report.points if point.key == "large_only")
    axes.set_title(
        _plain(f"{report.small.arm} before {report.large.arm} ({percent(large.quality)}), {report.cases:,} requests"),
        fontsize=10,
    )
    axes.legend(fontsize=8, loc="lower right")
    return True


def _reliability(report: Report, axes: Any) -> bool:
    axes.plot([0, 1], [0, 1], "--", color="0.6")
    for score in report.reliability:
        passed = [part.passed.value or 0.0 for part in score.bins]
        # An interval may end at the value itself, and a hair inside it by rounding.
        low = [max(0.0, value - (part.passed.low or 0.0)) for value, part in zip(passed, score.bins, strict=True)]
        high = [max(0.0, (part.passed.high or 0.0) - value) for value, part in zip(passed, score.bins, strict=True)]
        said = [part.probability for part in score.bins]
        axes.errorbar(said, passed, yerr=[low, high], fmt="o", markersize=4, capsize=2, label=_plain(score.label))
    axes.set(xlabel="what the score says", ylabel="drafts passed", xlim=(0, 1), ylim=(0, 1))
    _percent(axes)
    axes.legend(fontsize=8)
    return bool(report.reliability)


def _risk(report: Report, axes: Any) -> bool:
    for curve in report.risk:
        axes.plot(curve.coverage, curve.risk, _STYLES.get(curve.key, "-"), label=_plain(curve.label))
    axes.set(xlabel="requests answered small", ylabel="failures among them", xlim=(0, 1), ylim=(0, None))
    _percent(axes)
    if report.risk:
        axes.legend(fontsize=8)
    return bool(report.risk)


def _percent(axes: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _plain(text: str) -> str:
    """Names are hostile: matplotlib reads mathematics between dollar signs."""
    return text.replace("$", r"\$")[:80]
