"""The report over real recordings: its figures, its files, and that hostile text stays text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console

from evaluation.cases.case import Case, data_hash
from evaluation.cases.study_data import StudyData
from evaluation.recorded.server import RecordedServer
from evaluation.recorded.trace import trace_of_recording
from evaluation.report.chart import NARROW, WIDE, Chart, chart
from evaluation.report.content import Options, Report, report_of
from evaluation.report.page import page
from evaluation.report.write import summary, write_report
from evaluation.traces.client import ClientPrices, Endpoint
from evaluation.traces.collect import collect
from evaluation.traces.table import Trace, read_trace
from policies.rules.single import ValidAndSure
from policies.types import Span
from router.cli.output.tables import show

SMALL, LARGE = "Salesforce_xLAM-1b-fc-r", "gpt-4o-2024-08-06-FC"
GPT_4O = ClientPrices(2.5, 10.0)
OPTIONS = Options(command="smallcall report a b", commit="0123abc", version="0.1.0", draws=100)


@cache
def _cases() -> list[Case]:
    return StudyData.of_checkout().bfcl()


@cache
def _recorded(model: str, prices: ClientPrices | None) -> Trace:
    answers = StudyData.of_checkout().recording(model)
    return trace_of_recording(_cases(), answers, arm=model, prices=prices, command="recorded answers")


@cache
def _report() -> Report:
    """xLAM-1b before GPT-4o: real answers, no token signals."""
    return report_of(_cases(), _recorded(SMALL, None), _recorded(LARGE, GPT_4O), options=OPTIONS)


@cache
def _with_signals() -> Trace:
    """The same drafts with made-up signals, surer where the draft was right."""
    rng = np.random.default_rng(0)
    rows = []
    for row in _recorded(SMALL, None).rows:
        n = int(rng.integers(4, 12))
        logprob = -rng.exponential(0.2 if row.passed else 0.8, n)
        rows.append(
            replace(
                row,
                small_outcome=row.outcome,
                small_calls=row.calls,
                small_complete=True,
                small_prefill_s=0.5,
                small_decode_s=float(n) / 20,
                latency_s=1.0,
                logprob=logprob.tolist(),
                margin=np.exp(logprob).tolist(),
                entropy=(-logprob).tolist(),
                feasible_mass=[1.0] * n,
                forced=[False] * n,
                span=[int(Span.PLAN)] + [int(Span.VALUE)] * (n - 1),
            )
        )
    return Trace(_recorded(SMALL, None).info, rows)


@cache
def _signalled() -> Report:
    large = _recorded(LARGE, GPT_4O)
    return report_of(_cases(), _with_signals(), large, options=OPTIONS, policy=ValidAndSure(0.3))


def test_figures_are_those_of_the_recordings() -> None:
    """Pass rates, shares and costs equal what the answers themselves say."""
    report = _report()
    small, large = _recorded(SMALL, None).rows, _recorded(LARGE, GPT_4O).rows
    points = {point.key: point for point in report.points}
    assert report.cases == len(small) == len(large) == 1198
    assert points["small_only"].quality.value == pytest.approx(np.mean([row.passed for row in small]))
    assert points["large_only"].quality.value == pytest.approx(np.mean([row.passed for row in large]))
    spent = sum(2.5 * (row.prompt_tokens or 0) + 10 * (row.completion_tokens or 0) for row in large) / 1e6
    assert points["large_only"].cost_usd_per_1000 == pytest.approx(1000 * spent / 1198)
    assert points["large_only"].cost.value == pytest.approx(1)
    helped = [not ours.passed and theirs.passed for ours, theirs in zip(small, large, strict=True)]
    assert points["oracle"].escalated == pytest.approx(np.mean(helped))
    assert sum(row.n for row in report.outcomes) == 1198
    assert sum(row.n for row in report.categories) == 1198
    served = sum(row.served for row in report.outcomes)
    assert points["schema_valid"].escalated == pytest.approx(1 - served / 1198)
    assert report.mistakes_total > len(report.mistakes) == OPTIONS.max_mistakes
    assert report.data_sha256 == data_hash([case for case in _cases() if case.id in {row.case_id for row in small}])


def test_what_cannot_be_shown_is_said() -> None:
    """Without token signals there is no threshold curve; unpriced drafts and cases left out are told."""
    report = _report()
    assert [curve.key for curve in report.curves] == ["prompt_logistic", "prompt_mf", "oracle"]
    assert report.reliability == []
    said = " ".join(report.remarks)
    for words in ("No curve for weakest token", "No curve for mean log-prob", "1,198 drafts have no", "2,293 cases"):
        assert words in said


def test_with_signals_thresholds_and_the_policy_are_shown() -> None:
    """Scores give curves and points at shares; a live policy is one more point, on its score's curve."""
    report = _signalled()
    assert [curve.key for curve in report.curves] == [
        "weakest_token", "mean_logprob", "prompt_logistic", "prompt_mf", "oracle",
    ]  # fmt: skip
    points = {point.key: point for point in report.points}
    for share in (0.25, 0.5, 0.75):
        assert points[f"weakest_token@{share:g}"].escalated == pytest.approx(share, abs=0.01)
    curve = report.curves[0]
    at = np.interp(points["policy"].escalated, curve.escalated[::-1], curve.quality[::-1])
    assert points["policy"].quality.value == pytest.approx(at, abs=0.005)
    assert all(curve.aiq.value < report.curves[-1].aiq.value for curve in report.curves[:-1])
    surest = [mistake.score for mistake in report.mistakes]
    assert surest == sorted(surest, reverse=True)


def test_no_call_can_be_an_answer() -> None:
    """With on_no_call: answer fewer requests escalate at the loosest threshold, and the page says so."""
    large = _recorded(LARGE, GPT_4O)
    options = Options(command="c", commit=None, version="0", draws=20, on_no_call="answer")
    answered = report_of(_cases(), _with_signals(), large, options=options)

    def least(report: Report) -> float:
        curve = report.curves[0]
        return min(share for share, ok in zip(curve.escalated, curve.reachable, strict=True) if ok)

    assert least(answered) < least(_signalled()) - 0.1
    assert "on_no_call: answer" in page(answered)


def test_files_are_the_same_each_time_and_hold_the_report(tmp_path: Path) -> None:
    """Equal inputs give equal bytes; the JSON reads back as the report."""
    again = report_of(_cases(), _recorded(SMALL, None), _recorded(LARGE, GPT_4O), options=OPTIONS)
    first, second = write_report(_report(), tmp_path / "a" / "b"), write_report(again, tmp_path / "c")
    assert first.html.read_bytes() == second.html.read_bytes()
    assert first.json.read_bytes() == second.json.read_bytes()
    assert msgspec.json.decode(first.json.read_bytes(), type=Report) == _report()


class Reader(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        for tag in set(self.inside[-1:]):
            self.text.setdefault(tag, []).append(data)


def _acts(reader: Reader) -> None:
    """Nothing is loaded, nothing runs but our own script, no attribute is code."""
    scripts = [attributes for tag, attributes in reader.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "stops"}, {}]
    assert len([tag for tag, _ in reader.tags if tag == "style"]) == 1
    assert not {"img", "iframe", "link", "object", "embed", "form", "base", "a"} & {tag for tag, _ in reader.tags}
    for _, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on") or name in {"src", "href", "style"}]
    policy = next(a["content"] or "" for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy")
    for kind, text in (("style", reader.text["style"]), ("script", reader.text["script"][-1:])):
        digest = base64.b64encode(hashlib.sha256("".join(text).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_the_page_acts_alone() -> None:
    """A page of real data loads nothing and runs only the script whose hash its policy names."""
    for report in (_report(), _signalled()):
        _acts(Reader(page(report)))


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}\u202egnp\x00&amp;'\""


def test_hostile_text_stays_text() -> None:
    """Prompts, names, models and commands cannot become markup, template code or invisible characters."""
    mistake = _signalled().mistakes[0]
    fields = {name: HOSTILE for name in ("case_id", "asked", "gold", "small", "large", "reason")}
    curve = replace(_signalled().curves[0], label=HOSTILE)
    report = replace(
        _signalled(),
        small=replace(_signalled().small, arm=HOSTILE, command=HOSTILE, endpoint={HOSTILE: HOSTILE}),
        mistakes=[replace(mistake, **fields, tools=[HOSTILE])],
        remarks=[HOSTILE],
        command=HOSTILE,
        categories=[replace(_signalled().categories[0], category=HOSTILE)],
        points=[replace(point, label=HOSTILE) for point in _signalled().points],
        curves=[curve, *_signalled().curves[1:]],
        category_plans=[HOSTILE],
    )
    html = page(report)
    reader = Reader(html)
    _acts(reader)
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "49" not in "".join(reader.text["li"])
    shown = HOSTILE.replace("\u202e", "\ufffd").replace("\x00", "\ufffd")
    assert shown in reader.text["li"]
    assert shown in reader.text["pre"]
    stops = json.loads(next(text for text in reader.text["script"] if text.startswith("{")))
    assert any(stop["text"].startswith("</script>") for stop in stops["wide"])


def test_the_page_shows_the_figures_of_the_json() -> None:
    """Every way to answer stands in the table with the report's own figures."""
    report = _signalled()
    html = page(report)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td>', html)
    for point in report.points:
        assert point.quality.value is not None
        label = point.label.replace(">", "&gt;")
        assert any(label == name and f"{100 * point.quality.value:.1f} %" in cell for name, cell in rows), label
    assert report.commit is not None
    for fact in (report.commit, report.data_sha256, "0.1 USD an hour"):
        assert fact in html


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=lambda size: size.name)
def test_the_chart_stays_inside_and_labels_keep_apart(size: Any) -> None:
    """All coordinates lie in the drawing, and no two labels of points cover each other."""
    report = _signalled()
    drawn = chart(report.points, report.curves, size)
    paths = [path for line in drawn.lines for path in (line.path, line.beyond, line.band)]
    paths += [marker.bars for marker in drawn.markers]
    for path in paths:
        for x, y in re.findall(r"([\d.]+) ([\d.]+)", path):
            assert size.left - 0.01 <= float(x) <= size.width - size.right + 0.01
            assert size.top - 0.01 <= float(y) <= size.height - size.bottom + 0.01
    boxes = [_label_box(drawn, i) for i in range(len(drawn.markers))]
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])
    assert [line.key for line in drawn.lines if line.band] == ["weakest_token"]


def _label_box(drawn: Chart, i: int) -> tuple[float, float, float, float]:
    marker, font = drawn.markers[i], drawn.size.font
    width = len(marker.label) * font * 0.56
    left = marker.label_x - {"start": 0.0, "middle": width / 2, "end": width}[marker.anchor]
    return left, marker.label_y - font, left + width, marker.label_y


def test_a_terminal_gets_the_same_figures() -> None:
    """The table holds one row for each way to answer, and is not cut at 80 columns, nor at 50."""
    shown = io.StringIO()
    for width in (80, 50):
        show(summary(_signalled()), Console(width=width, file=shown, force_terminal=True, color_system=None))
    text = shown.getvalue()
    for point in _signalled().points:
        assert all(word in text for word in point.label.split())
        assert point.quality.value is not None
        assert text.count(f"{100 * point.quality.value:.1f} %") >= 2


async def test_collecting_from_the_recorded_server_gives_the_recordings_trace(tmp_path: Path) -> None:
    """Streamed and whole, over HTTP: the same calls, verdicts and costs as from the recording directly."""
    recorded = _recorded(LARGE, GPT_4O)
    want = {row.case_id: row for row in recorded.rows}
    cases = [case for case in _cases() if case.id in want][::40]
    async with RecordedServer(StudyData.of_checkout().recording(LARGE), _cases()) as server:
        for stream in (False, True):
            endpoint = Endpoint(server.url, LARGE, stream=stream, prices=GPT_4O)
            out = tmp_path / f"{stream}.parquet"
            await collect(cases, endpoint, out, command="test")
            for row in read_trace(out).rows:
                same = want[row.case_id]
                assert (row.calls, row.passed, row.fail_reason) == (same.calls, same.passed, same.fail_reason)
                assert row.cost_usd == pytest.approx(same.cost_usd)


def test_an_unknown_score_is_refused() -> None:
    """The message names those there are."""
    with pytest.raises(ValueError, match=r"hunch is none of weakest_token"):
        Options(command="c", commit=None, version="0", scores=("hunch",))
