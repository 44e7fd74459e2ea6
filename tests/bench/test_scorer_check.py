"""The scorer against BFCL's own published verdicts on 14,376 recorded answers."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.scorer_check import Cause, ScorerCheck, run
from bench.scorer_report import render_markdown, write
from evaluation.cases.study_data import StudyData

RESULTS = Path(__file__).parents[2] / "evaluation" / "results"


@pytest.fixture(scope="module")
def check() -> ScorerCheck:
    """The whole comparison, once."""
    return run(StudyData.of_checkout())


def test_each_model_agrees_with_the_published_verdicts(check: ScorerCheck) -> None:
    """At least 98.8 % of each model's verdicts with today's gold, and 99.9 % of all with the gold of the day."""
    assert check.answers == 12 * 1198
    differing = Counter(difference.model for difference in check.differences)
    assert max(differing.values()) <= 0.012 * 1198
    assert check.agree == check.answers - len(check.differences)
    assert check.agree_gold_of_publication >= 0.999 * check.answers


def test_models_that_call_tools_natively_agree_in_every_verdict_of_the_day(check: ScorerCheck) -> None:
    """With the gold of the day only the one model that writes Python text differs at all."""
    for cell in check.cells:
        if not cell.model.startswith("meta-llama"):
            assert cell.ours_gold_of_publication == cell.published, cell


def test_no_category_differs_by_over_two_points(check: ScorerCheck) -> None:
    """Sixty cells, on the same cases and against the rate published for all cases."""
    assert len(check.cells) == 60
    for cell in check.cells:
        rate = 100 * cell.ours / cell.cases
        assert abs(rate - 100 * cell.published / cell.cases) <= 2, cell
        assert abs(rate - 100 * cell.published_all_passed / cell.published_all_cases) <= 2, cell


def test_every_difference_has_a_cause(check: ScorerCheck) -> None:
    """The causes are counted; none is unexplained."""
    assert Counter(difference.cause for difference in check.differences) == {
        Cause.GOLD_CORRECTED: 39,
        Cause.CALL_WITHOUT_ARGUMENTS: 5,
        Cause.UNCLOSED_LIST: 4,
        Cause.EMPTY_LIST: 1,
        Cause.UNDERSCORE_FOR_DOT: 1,
        Cause.POSITIONAL_ARGUMENT: 1,
    }


def test_the_committed_table_is_this_one(check: ScorerCheck, tmp_path: Path) -> None:
    """What stands in `evaluation/results` is what the code says today, but for command and commit."""
    committed = json.loads((RESULTS / "scorer.json").read_text())
    named = {key: committed.pop(key) for key in ("command", "commit")}
    assert committed == msgspec.to_builtins(check)
    markdown, table = write(check, tmp_path / "new", command=named["command"], commit=named["commit"])
    assert markdown.read_text() == (RESULTS / "scorer.md").read_text()
    assert json.loads(table.read_text())["commit"] == named["commit"]


def test_a_large_difference_is_called_out(check: ScorerCheck) -> None:
    """A cell that is off by more than two points is named with its size."""
    cell = msgspec.structs.replace(check.cells[0], ours=check.cells[0].published - 20)
    text = render_markdown(msgspec.structs.replace(check, cells=[cell]), command="c", commit="d")
    assert f"- {cell.model}, {cell.category}: -5.2 on the same cases" in text


def study(folder: Path, **recorded: Any) -> StudyData:
    """Study data of one case (no call is right) and one recorded answer to it: a call of a native model."""
    case = {
        "id": "irrelevance_0",
        "source": "bfcl",
        "split": "test",
        "category": "irrelevance",
        "messages": [{"role": "user", "content": "?"}],
        "tools": [],
        "gold": {"kind": "no_call"},
    }
    answer = {"id": case["id"], "model": "m", "calls": [{"name": "f", "arguments": {"a": 1}}], "raw": [{}]} | recorded
    (folder / "bfcl_recorded").mkdir()
    for name, rows in (("bfcl", [case]), ("bfcl_gold_2024-08-11", []), ("bfcl_recorded/m", [answer])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "bfcl_published_2024-08-11.json").write_text('{"m": {"irrelevance": {"passed": 1, "cases": 1}}}')
    return StudyData(folder)


@pytest.mark.parametrize("raw", [[{}], "f(a=1)"])
def test_a_wrong_verdict_of_ours_would_be_unexplained(tmp_path: Path, raw: Any) -> None:
    """A call that BFCL passed and we fail fits none of the causes, whether the model wrote JSON or Python text."""
    found = run(study(tmp_path, raw=raw, pass_published=True, pass_current_gold=False))
    assert [difference.cause for difference in found.differences] == [Cause.UNEXPLAINED]
    assert "| unexplained | 1 | irrelevance_0 |" in render_markdown(found, command="c", commit="d")


def test_an_answer_without_a_published_verdict_is_refused(tmp_path: Path) -> None:
    """A recording of one's own has no verdict to be held against."""
    with pytest.raises(ValueError, match="m on irrelevance_0 has no published verdict"):
        run(study(tmp_path))
