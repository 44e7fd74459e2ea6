"""The report in a real browser: the slider tells the report's own figures, and hostile text does nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from msgspec.structs import replace
from playwright.async_api import Page

from evaluation.cases.study_data import StudyData
from evaluation.recorded.models import GPT_4O, trace_of
from evaluation.replay.figures import CurveFigures
from evaluation.report.content import Options, Report, report_of
from evaluation.report.write import write_report
from tests.evaluation.drafts import of_recording

HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>{{ 7*7 }}\u202e"


@cache
def _report() -> Report:
    data = StudyData.of_checkout()
    cases = data.bfcl()[::3]
    large = trace_of(GPT_4O, cases, data, command="recorded")
    options = Options(command="test", commit=None, version="0", draws=20)
    return report_of(cases, of_recording(cases), large, options=options)


async def _open(tab: Page, report: Report, folder: Path) -> None:
    await tab.goto(write_report(report, folder).html.as_uri())


async def _figures(tab: Page) -> dict[str, str]:
    places = await tab.query_selector_all("[data-figure]")
    return {str(await p.get_attribute("data-figure")): (await p.text_content()) or "" for p in places}


async def _ring(tab: Page) -> tuple[float, float]:
    """Where the operating point stands on the chart that is shown."""
    ring = tab.locator("svg.wide .operating")
    return float(await ring.get_attribute("cx") or "nan"), float(await ring.get_attribute("cy") or "nan")


def _close(shown: dict[str, str], curve: CurveFigures, index: int) -> None:
    """The page's figures are the report's, rounded as the page rounds."""
    for name, values in (
        ("quality", curve.quality),
        ("cost", curve.cost),
        ("escalated", curve.escalated),
        ("harmed", curve.harmed),
    ):
        assert float(shown[name].removesuffix(" %")) == pytest.approx(100 * values[index], abs=0.051), name
    threshold = curve.thresholds[index]
    assert (
        shown["threshold"] == "–"
        if threshold is None
        else float(shown["threshold"]) == pytest.approx(threshold, rel=1e-3)
    )


async def test_the_slider_moves_the_operating_point_and_its_figures(tab: Page, tmp_path: Path) -> None:
    """With keys alone: Home escalates all, a step is the curve's next threshold, End serves all that may be served."""
    await _open(tab, _report(), tmp_path)
    curve = _report().curves[0]
    slider = tab.get_by_label("threshold", exact=True)
    await slider.focus()
    await tab.keyboard.press("Home")
    _close(await _figures(tab), curve, 0)
    first = await _ring(tab)
    assert (await _figures(tab))["escalated"] == "100.0 %"
    for step in range(1, 4):
        await tab.keyboard.press("ArrowRight")
        _close(await _figures(tab), curve, step)
    assert "threshold" in (await slider.get_attribute("aria-valuetext") or "")
    assert "policy: {kind: threshold, score: weakest_token, threshold:" in (
        await tab.locator("#operate-said").text_content() or ""
    )
    await tab.keyboard.press("End")
    last = sum(curve.reachable) - 1
    _close(await _figures(tab), curve, last)
    moved = await _ring(tab)
    assert moved[0] < first[0]
    stops = await tab.evaluate("JSON.parse(document.getElementById('stops').textContent).wide")
    mine = [stop for stop in stops if stop["key"] == curve.key]
    assert moved == (mine[last]["x"], mine[last]["y"])
    assert first == (mine[0]["x"], mine[0]["y"])


async def test_another_score_has_figures_of_its_own(tab: Page, tmp_path: Path) -> None:
    """The choice of a score moves slider, figures and ring; a router cannot be put into a configuration."""
    await _open(tab, _report(), tmp_path)
    slider = tab.get_by_label("threshold", exact=True)
    for place, curve in enumerate(c for c in _report().curves if c.key != "oracle"):
        await tab.get_by_label("score", exact=True).select_option(str(place))
        index = int(await slider.input_value())
        _close(await _figures(tab), curve, index)
        assert await slider.get_attribute("max") == str(sum(curve.reachable) - 1)
        said = await tab.locator("#operate-said").text_content() or ""
        assert (curve.key in said) == (curve.key in ("weakest_token", "mean_logprob"))


async def test_the_chart_is_read_with_keys_and_series_can_be_hidden(tab: Page, tmp_path: Path) -> None:
    """Arrow keys read the points out; a legend button takes its line away and says so."""
    await _open(tab, _report(), tmp_path)
    await tab.locator(".plot").focus()
    await tab.keyboard.press("ArrowRight")
    assert "passes" in (await tab.locator("#readout").text_content() or "")
    button = tab.get_by_role("button", name="weakest token")
    await button.click()
    assert await button.get_attribute("aria-pressed") == "false"
    assert not await tab.locator("svg.wide g[data-key=weakest_token]").is_visible()


async def test_hostile_names_run_nothing(tab: Page, tmp_path: Path) -> None:
    """Tools, prompts, models and scores that close scripts and open others stay text, in tables and in the slider."""
    report = _report()
    row = replace(report.tools[0], category=HOSTILE)
    mistakes = [replace(m, asked=HOSTILE, tools=[HOSTILE], gold=HOSTILE, small=HOSTILE) for m in report.mistakes]
    curves = [replace(report.curves[0], label=HOSTILE), *report.curves[1:]]
    hostile = replace(
        report, tools=[row], mistakes=mistakes, curves=curves, command=HOSTILE, small=replace(report.small, arm=HOSTILE)
    )
    await _open(tab, hostile, tmp_path)
    assert await tab.evaluate("window.ran") is None
    assert await tab.locator("img").count() == 0
    assert HOSTILE.replace("\u202e", "\ufffd") in (
        await tab.locator("#tool-title ~ .scroll tbody th").first.text_content() or ""
    )
    note = tab.locator('[data-note="threshold"]')
    assert "<script>" in (await note.text_content() or "")
