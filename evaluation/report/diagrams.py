"""Geometry of the report's two small diagrams: reliability, and risk over coverage. Draws nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.report.reliability import Reliability, RiskCoverage

WIDTH, HEIGHT, FONT = 420.0, 340.0, 13.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 18.0, 30.0, 48.0


@dataclass(frozen=True, slots=True)
class Mark:
    """A dot with its interval, and what it says to whoever points at it."""

    key: str
    x: float
    y: float
    bar: str
    text: str


@dataclass(frozen=True, slots=True)
class Diagram:
    """A square of shares in percent, what is drawn in it, and the same in words."""

    name: str
    title: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    guide: str
    """A line to compare with; empty for none."""
    lines: Sequence[tuple[str, str]]
    """Key and path."""
    marks: Sequence[Mark]


def reliability_diagram(scores: Sequence[Reliability]) -> Diagram:
    """Draw each score's probability against the observed pass rate; on the dashed line the two agree."""
    marks = []
    for score in scores:
        for part in score.bins:
            passed, low, high = (value or 0.0 for value in (part.passed.value, part.passed.low, part.passed.high))
            x = _x(part.probability, 1.0)
            marks.append(
                Mark(
                    score.key,
                    x,
                    _y(passed, 1.0),
                    f"M{x:g} {_y(low, 1.0):g}V{_y(high, 1.0):g}",
                    f"{score.label}: says {part.probability:.0%}, {passed:.0%} of {part.n} passed",
                )
            )
    return Diagram(
        "reliability",
        "Reliability",
        "what the score says",
        "drafts passed",
        _ticks_x(1.0),
        _ticks_y(1.0),
        f"M{_x(0, 1):g} {_y(0, 1):g}L{_x(1, 1):g} {_y(1, 1):g}",
        [],
        marks,
    )


def risk_diagram(curves: Sequence[RiskCoverage]) -> Diagram:
    """Failures among what is answered small, over how much that is."""
    top = max([0.05, *(risk for curve in curves for risk in curve.risk)])
    top = min(1.0, 0.05 * (int(top / 0.05 - 1e-9) + 1))
    lines = [
        (
            curve.key,
            "M" + "L".join(f"{_x(c, 1):g} {_y(r, top):g}" for c, r in zip(curve.coverage, curve.risk, strict=True)),
        )
        for curve in curves
        if curve.coverage
    ]
    return Diagram(
        "risk",
        "Risk over coverage",
        "requests answered small",
        "failures among them",
        _ticks_x(1.0),
        _ticks_y(top),
        "",
        lines,
        [],
    )


def _x(value: float, top: float) -> float:
    return round(LEFT + value / top * (WIDTH - LEFT - RIGHT), 2)


def _y(value: float, top: float) -> float:
    return round(HEIGHT - BOTTOM - min(value, top) / top * (HEIGHT - TOP - BOTTOM), 2)


def _ticks_x(top: float) -> list[tuple[float, str]]:
    return [(_x(top * i / 4, top), f"{100 * top * i / 4:.0f} %") for i in range(5)]


def _ticks_y(top: float) -> list[tuple[float, str]]:
    return [(_y(top * i / 4, top), f"{100 * top * i / 4:.3g} %") for i in range(5)]
