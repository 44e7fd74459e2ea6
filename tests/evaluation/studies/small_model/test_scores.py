"""The score table: every arm on the same cases, intervals and failures told, nothing missing told as a figure."""

import json
from pathlib import Path

import msgspec
import pytest

from evaluation.cases.case import Case, ToolNamesGold
from evaluation.cases.sets import case_set, sample
from evaluation.cases.study_data import StudyData
from evaluation.studies.small_model.scores import ALL, first_calls, render_markdown, set_scores, write
from evaluation.traces.collect import INVALID_DRAFT, scored
from evaluation.traces.table import Trace, TraceInfo, TraceRow, calls_text
from evaluation.traces.wire import TextCall

MODEL = "gpt-4o-2024-08-06-FC"
CASES = [case for case in sample("bfcl", case_set("bfcl"), 8) if case.category in ("multiple", "simple_python")]


def trace(cases: list[Case], passing: int) -> Trace:
    """A table whose first rows pass, whose next is an invalid draft, and whose others are wrong."""
    rows = []
    for index, case in enumerate(cases):
        passed = index < passing
        error = INVALID_DRAFT if index == passing else None
        reason = None if passed or error else "wrong_value"
        rows.append(
            TraceRow(
                case_id=case.id, source="bfcl", category=case.category, arm="a", passed=passed, error=error,
                fail_reason=reason,
            )
        )  # fmt: skip
    return Trace(TraceInfo(arm="a", command="test", data_sha256=""), rows)


def test_counts_by_group_add_up_and_invalid_drafts_are_failures() -> None:
    """The group `all` is the sum of the others; an invalid draft is neither valid nor passed."""
    scores = set_scores("bfcl", CASES, {"small": trace(CASES, 5)})
    whole = next(cell for cell in scores.cells if cell.group == ALL)
    parts = [cell for cell in scores.cells if cell.group != ALL]
    assert (whole.n, whole.passed, whole.valid) == (16, 5, 15)
    assert [sum(getattr(cell, name) or 0 for cell in parts) for name in ("n", "passed", "valid")] == [16, 5, 15]
    assert whole.reasons == {"passed": 5, "wrong_value": 10, INVALID_DRAFT: 1}
    assert whole.low < 5 / 16 < whole.high


def test_what_was_not_drafted_is_no_invalid_draft() -> None:
    """A refused request lowers the pass rate and leaves the share of valid drafts alone."""
    whole = trace(CASES, 5)
    rows = [msgspec.structs.replace(row, error="no_tools", passed=None) if row.error else row for row in whole.rows]
    (cell,) = (c for c in set_scores("bfcl", CASES, {"small": Trace(whole.info, rows)}).cells if c.group == ALL)
    assert (cell.n, cell.passed, cell.drafted, cell.valid) == (16, 5, 15, 15)
    page = render_markdown([set_scores("bfcl", CASES, {"small": whole})], {})
    assert "- small: 93.8 % (71.7–98.9) of 16 drafts valid; wrong_value 10, passed 5" in page


def test_a_first_call_is_scored_by_itself() -> None:
    """ToolBench's recordings hold one call: so does what stands beside them."""
    case = next(case for case in case_set("toolbench") if isinstance(case.gold, ToolNamesGold))
    assert isinstance(case.gold, ToolNamesGold)
    other = next(name for name in case.tool_names if name not in case.gold.names)
    calls = calls_text([TextCall(name=name, arguments="{}") for name in (case.gold.names[0], other)])
    row = TraceRow(case_id=case.id, source="t", category="c", arm="a", outcome="calls", calls=calls)
    both = Trace(TraceInfo(arm="a", command="test", data_sha256=""), [scored(case, row)])
    assert [one.rows[0].passed for one in (both, first_calls([case], both))] == [False, True]


def test_a_recorded_model_is_scored_on_the_cases_that_it_answered() -> None:
    """Its figures are those of the scorer; a group that was not recorded is left out."""
    data = StudyData.of_checkout()
    recording = data.recording(MODEL)
    scores = set_scores("bfcl", CASES, {}, {MODEL: recording})
    answered = {answer.id for answer in recording}
    assert sum(cell.n for cell in scores.cells if cell.group == ALL) == sum(c.id in answered for c in CASES)
    assert all(cell.valid is None for cell in scores.cells)
    live = [case for case in case_set("bfcl") if case.category == "live_simple"][:3]
    assert set_scores("bfcl", live, {}, {MODEL: recording}).cells == []


def test_a_case_without_an_answer_is_an_error() -> None:
    """A table of other cases is not told as if it were of these."""
    with pytest.raises(LookupError, match="small has no answer to 1 cases"):
        set_scores("bfcl", CASES, {"small": trace(CASES[1:], 3)})


def test_the_table_and_its_json_say_the_same(tmp_path: Path) -> None:
    """Rate, interval, n and share of valid drafts stand in the Markdown; the JSON holds the counts."""
    scores = [set_scores("bfcl", CASES, {"small": trace(CASES, 16)})]
    markdown, table = write(scores, tmp_path, {"command": "c", "commit": "d"})
    assert markdown.read_text(encoding="utf-8") == render_markdown(scores, {"command": "c", "commit": "d"})
    assert "| all | 100.0 (81–100) of 16, valid 100 |" in markdown.read_text(encoding="utf-8")
    content = json.loads(table.read_text(encoding="utf-8"))
    assert content["command"] == "c"
    assert sum(cell["passed"] for cell in content["sets"][0]["cells"] if cell["group"] == ALL) == 16
