"""Geometry of the report's chart: pass rate over relative cost, in the user units of an SVG. Draws nothing itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evaluation.replay.figures import CurveFigures, Point

_LABEL_EM = 0.56
"""Mean width of a character of a sans-serif face, in font sizes: for placing labels, not for clipping them."""


UNLED = ("oracle", "prompt_logistic", "prompt_mf")
"""Curves that never lead a report: they are there to be compared with."""


@dataclass(frozen=True, slots=True)
class Size:
    """The drawing's outer size and margins."""

    name: str
    width: float
    height: float
    font: float
    left: float = 54.0
    right: float = 26.0
    top: float = 34.0
    bottom: float = 52.0


WIDE = Size("wide", 860, 460, 13.5)
NARROW = Size("narrow", 400, 420, 13.5, left=50, right=22)


@dataclass(frozen=True, slots=True)
class Tick:
    """A grid line and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class ChartLine:
    """A series: the part a gateway can be set to, the rest of the way to the small model alone, its band if drawn."""

    key: str
    path: str
    beyond: str
    band: str


@dataclass(frozen=True, slots=True)
class Marker:
    """A point, its intervals as crossed bars, and the place of its label."""

    key: str
    x: float
    y: float
    bars: str
    label: str
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True, slots=True)
class Stop:
    """A place of the chart that can be read out."""

    key: str
    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything a template needs to draw."""

    size: Size
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[ChartLine]
    markers: Sequence[Marker]
    stops: Sequence[Stop]


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 2)


def chart(points: Sequence[Point], curves: Sequence[CurveFigures], size: Size) -> Chart:
    """Lay out the chart: points with intervals and labels, curves with bands, the random mix as a straight line."""
    costs = [p.cost.high or p.cost.value or 0.0 for p in points] + [max(c.cost) for c in curves] + [1.0]
    x_step, x_high = _axis(costs)[0], 1.01 * max(costs)
    qualities = [v for p in points for v in (p.quality.low, p.quality.high, p.quality.value) if v is not None]
    qualities += [v for c in curves for v in (*c.band_low, *c.band_high, *c.quality)]
    y_step, _ = _axis([max(qualities) - min(qualities)])
    y_low = max(0.0, math.floor(min(qualities) / y_step) * y_step)
    y_high = min(1.0, math.ceil(max(qualities) / y_step) * y_step)
    x = _Scale(0.0, x_high, size.left, size.width - size.right)
    y = _Scale(y_low, max(y_high, y_low + y_step), size.height - size.bottom, size.top)
    by_key = {point.key: point for point in points}
    lead = next((curve.key for curve in curves if curve.key not in UNLED), None)
    lines = [_line(curve, x, y, banded=curve.key == lead) for curve in curves]
    if {"small_only", "large_only"} <= by_key.keys():
        ends = [(_x(by_key[key], x), _y(by_key[key], y)) for key in ("small_only", "large_only")]
        lines.insert(0, ChartLine("random_mix", _path(ends), "", ""))
    shown = [point for point in points if point.key != "random_mix" and "@" not in point.key]
    stops = [stop for curve in curves for stop in _stops(curve, x, y)]
    stops += [Stop(point.key, _x(point, x), _y(point, y), point_text(point)) for point in shown]
    return Chart(
        size=size,
        x_ticks=[Tick(x(v), f"{v * 100:.0f} %") for v in _steps(0.0, x_high, x_step)],
        y_ticks=[Tick(y(v), f"{v * 100:.0f} %") for v in _steps(y_low, y_high, y_step)],
        lines=lines,
        markers=_markers(shown, [(stop.x, stop.y) for stop in stops], x, y, size),
        stops=stops,
    )


def point_text(point: Point) -> str:
    """One point in words."""
    return (
        f"{point.label}: passes {(point.quality.value or 0) * 100:.1f} %, costs {(point.cost.value or 0) * 100:.1f} % "
        f"of the large model, escalates {point.escalated * 100:.0f} %"
    )


def _axis(values: Iterable[float]) -> tuple[float, float]:
    """A round step that makes about five intervals up to the largest value, and its first multiple at or above that."""
    top = max(max(values), 1e-6)
    raw = top / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    return step, step * math.ceil(top / step - 1e-9)


def _steps(low: float, high: float, step: float) -> list[float]:
    return [low + i * step for i in range(math.floor((high - low) / step + 1e-6) + 1)]


def _x(point: Point, x: _Scale) -> float:
    return x(point.cost.value or 0.0)


def _y(point: Point, y: _Scale) -> float:
    return y(point.quality.value or 0.0)


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{px:g} {py:g}" for px, py in places) if places else ""


def _line(curve: CurveFigures, x: _Scale, y: _Scale, *, banded: bool) -> ChartLine:
    places = [(x(c), y(q)) for c, q in zip(curve.cost, curve.quality, strict=True)]
    reach = sum(curve.reachable)
    low = [(x(c), y(q)) for c, q in zip(curve.grid_cost, curve.band_low, strict=True)]
    high = [(x(c), y(q)) for c, q in zip(curve.grid_cost, curve.band_high, strict=True)]
    band = _path([*low, *reversed(high)]) + "Z" if banded else ""
    return ChartLine(curve.key, _path(places[:reach]), _path(places[reach - 1 :]), band)


def _stops(curve: CurveFigures, x: _Scale, y: _Scale) -> list[Stop]:
    stops = []
    rows = zip(curve.cost, curve.quality, curve.escalated, curve.thresholds, curve.reachable, strict=True)
    for cost, quality, escalated, threshold, reachable in rows:
        if not reachable:
            continue
        at = "escalate all" if threshold is None else f"≥ {threshold:.4g}"
        text = f"{curve.label} {at}: passes {quality * 100:.1f} %, costs {cost * 100:.1f} % of the large model, "
        stops.append(Stop(curve.key, x(cost), y(quality), text + f"escalates {escalated * 100:.0f} %"))
    return stops


def _markers(
    points: Sequence[Point], busy: Sequence[tuple[float, float]], x: _Scale, y: _Scale, size: Size
) -> list[Marker]:
    """Markers with labels that keep off each other and, if they can, off the lines through `busy`."""
    places = [(_x(point, x), _y(point, y)) for point in points]
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in places]
    lines = [(px - 2, py - 2, px + 2, py + 2) for px, py in busy]
    markers = []
    for point, (px, py) in zip(points, places, strict=True):
        label = point.label.split(":")[0]
        width, height = len(label) * size.font * _LABEL_EM, size.font
        anchor, lx, ly, box = _place(px, py, width, height, taken, lines, size)
        taken.append(box)
        bars = [
            _path([(px, y(point.quality.low or 0.0)), (px, y(point.quality.high or 0.0))]),
            _path([(x(point.cost.low or 0.0), py), (x(point.cost.high or 0.0), py)]),
        ]
        markers.append(Marker(point.key, px, py, "".join(bars), label, round(lx, 2), round(ly, 2), anchor))
    return markers


_Box = tuple[float, float, float, float]


def _place(
    px: float, py: float, width: float, height: float, taken: Sequence[_Box], lines: Sequence[_Box], size: Size
) -> tuple[str, float, float, _Box]:
    """The first of some places around a point where a label overlaps least."""
    spots = []
    for dy in (-6, height + 8, height / 3, -24, height + 26):
        for anchor, dx, left in (("start", 10, 0.0), ("end", -10, width), ("middle", 0, width / 2)):
            lx, ly = px + dx, py + dy
            spots.append((anchor, lx, ly, (lx - left, ly - height, lx - left + width, ly + 3)))

    def cost(spot: tuple[str, float, float, _Box]) -> float:
        x0, y0, x1, y1 = spot[3]
        outside = max(0.0, size.left - x0) + max(0.0, x1 - size.width) + max(0.0, y1 - (size.height - size.bottom))
        outside += max(0.0, 2 - y0)
        return 50 * outside + 20 * _overlap(spot[3], taken) + _overlap(spot[3], lines)

    return min(spots, key=cost)


def _overlap(box: _Box, others: Sequence[_Box]) -> float:
    """The area that the others cover of the box, counted once for each."""
    x0, y0, x1, y1 = box
    return sum(max(0.0, min(x1, b[2]) - max(x0, b[0])) * max(0.0, min(y1, b[3]) - max(y0, b[1])) for b in others)
