"""The report as one HTML page that loads nothing: styles, script, chart and data are in the file.

Prompts and answers are hostile: every value is escaped, control and direction characters are made visible, and a
content security policy names the page's own style and script by hash, so that nothing else could run.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from evaluation.replay.figures import CurveFigures, Point
from evaluation.report.chart import NARROW, UNLED, WIDE, chart
from evaluation.report.content import ArmFacts, Report
from evaluation.report.diagrams import reliability_diagram, risk_diagram
from evaluation.report.text import number, percent
from policies.rules.scores import SCORES

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_COLOURS = {
    "random_mix": 0,
    "small_only": 0,
    "large_only": 0,
    "weakest_token": 1,
    "mean_logprob": 2,
    "oracle": 3,
    "schema_valid": 4,
    "policy": 5,
    "gateway": 6,
    "prompt_logistic": 7,
    "prompt_mf": 8,
    "classifier": 9,
}
_DASHES = {
    "random_mix": "dashed",
    "mean_logprob": "dashdot",
    "oracle": "dotted",
    "prompt_logistic": "dashed",
    "prompt_mf": "dashdot",
}


@dataclass(frozen=True, slots=True)
class _LegendItem:
    key: str
    label: str
    line: bool


@dataclass(frozen=True, slots=True)
class _Card:
    title: str
    figure: str
    note: str


def page(report: Report) -> str:
    """The page's HTML."""
    style, script = _asset("report.css"), _asset("report.js")
    charts = [chart(report.points, report.curves, size) for size in (WIDE, NARROW)]
    data: dict[str, Any] = {drawn.size.name: [asdict(stop) for stop in drawn.stops] for drawn in charts}
    data["operate"] = [_operating(curve) for curve in report.curves if curve.key != "oracle" and any(curve.reachable)]
    legend = _legend(report)
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_visible)
    template = environment.from_string(_asset("report.html.j2"))
    return template.render(
        report=report,
        charts=charts,
        legend=legend,
        colour={item.key: _COLOURS.get(item.key, 7) for item in legend},
        dash={item.key: _DASHES.get(item.key, "") for item in legend},
        cards=_cards(report),
        facts=_facts(report),
        percent=percent,
        number=number,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        stops=data,
        diagrams=[reliability_diagram(report.reliability), risk_diagram(report.risk)] if report.risk else [],
    )


def _operating(curve: CurveFigures) -> dict[str, Any]:
    """Return the slider's positions: the thresholds that a gateway can be set to, in the order of the chart's stops."""
    columns = ("thresholds", "escalated", "quality", "low", "high", "cost", "harmed")
    rows = zip(curve.reachable, *(getattr(curve, name) for name in columns), strict=True)
    return {
        "key": curve.key,
        "label": _visible(curve.label),
        "configurable": curve.key in SCORES,
        "points": [[values[0], *(round(v, 6) for v in values[1:])] for ok, *values in rows if ok],
    }


def _asset(name: str) -> str:
    return files("evaluation.report").joinpath("assets", name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _visible(value: Any) -> Any:
    """Text with a sign in place of each character that shows nothing or turns the direction of writing."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSEEN.sub("\ufffd", value)
    return value


def _legend(report: Report) -> list[_LegendItem]:
    points = {point.key: point for point in report.points}
    items = [_LegendItem(curve.key, curve.label, line=True) for curve in report.curves]
    items.append(_LegendItem("random_mix", "random mix", line=True))
    drawn = {item.key for item in items}
    items += [
        _LegendItem(key, point.label, line=False)
        for key, point in points.items()
        if key not in drawn and "@" not in key
    ]
    return items


def _cards(report: Report) -> list[_Card]:
    points = {point.key: point for point in report.points}
    cards = [
        _pass_card("large model alone", points["large_only"], report.large.arm),
        _pass_card("small model alone", points["small_only"], report.small.arm),
    ]
    shown = points.get("gateway") or points.get("policy") or points["schema_valid"]
    saved = 1.0 - (shown.cost.value or 0.0)
    change = f"{100 * abs(saved):.0f} % {'cheaper' if saved >= 0 else 'dearer'} than the large model alone"
    cards.append(_pass_card(shown.label, shown, f"{100 - 100 * shown.escalated:.0f} % answered small, {change}"))
    first = report.curves[0]
    if first.key in UNLED:
        return cards
    cards.append(
        _Card(
            "large model's pass rate, cheapest",
            "–" if first.qnc.value is None else f"{100 * first.qnc.value:.0f} % of its cost",
            f"{first.label}, by hindsight",
        )
    )
    return cards


def _pass_card(title: str, point: Point, note: str) -> _Card:
    low, high = point.quality.low, point.quality.high
    interval = "" if low is None or high is None else f"{100 * low:.1f}–{100 * high:.1f} %; "
    return _Card(title, f"{100 * (point.quality.value or 0.0):.1f} %", interval + note)


def _facts(report: Report) -> list[tuple[str, str]]:
    facts = [
        ("made by", f"{report.command} (smallcall {report.version}, commit {report.commit or 'unknown'})"),
        ("cases", f"{report.cases:,}; SHA-256 of their content {report.data_sha256}"),
        ("groups", f"{report.clusters:,}: cases that share a conversation or a tool of the right answer are one group"),
        ("intervals", f"95 %, percentile, {report.draws:,} draws, seed {report.seed}"),
        (
            "drafts that may be served",
            "those that are complete and valid by the tools' full JSON Schema; a draft without a call: "
            f"{report.on_no_call}; a draft that asks back: {report.on_ask}",
        ),
        (
            "price of the small model",
            f"{report.small_usd_per_hour:g} USD an hour of its machine, an assumption, for the seconds in which it "
            "works on a request; idle hours are not counted",
        ),
    ]
    arms = [("small arm", report.small), ("large arm", report.large), ("gateway", report.gateway)]
    return facts + [(name, _arm(arm)) for name, arm in arms if arm is not None]


def _arm(arm: ArmFacts) -> str:
    parts = [f"{arm.arm}, {arm.rows:,} rows, {arm.failed:,} without an answer", f"collected by {arm.command}"]
    if arm.endpoint:
        parts.append(f"endpoint {json.dumps(arm.endpoint, ensure_ascii=False)}")
    parts.append(f"SHA-256 of its cases {arm.data_sha256}")
    return "; ".join(parts)
