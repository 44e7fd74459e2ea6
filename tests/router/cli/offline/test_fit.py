"""`smallcall fit` from traces to files, and what it refuses."""

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from evaluation.cases.case import CallsGold
from evaluation.replay.feature_table import KINDS, label
from evaluation.traces.table import Trace, TraceError, TraceRow, draft_of, read_trace, request_of, write_trace
from policies.classifier.classifier import Classifier
from policies.classifier.estimator import load_estimator
from policies.features.catalog import COLUMN
from policies.types import HIDDEN_SIZE, HiddenPlace
from router.__main__ import app
from tests.evaluation.tuning.test_tune import CASES, SMALL

SOME = Trace(SMALL.info, SMALL.rows[:180])
CHOSEN = CASES[:180]


def with_insides(trace: Trace) -> Trace:
    """The rows with hidden states that know the outcome a little, some without, and two rows that cannot be used."""
    rng = np.random.default_rng(3)
    rows: list[TraceRow] = []
    for place, row in enumerate(trace.rows):
        states: list[list[float] | None] = rng.normal(size=(len(HiddenPlace), HIDDEN_SIZE)).tolist()
        first = states[0]
        assert first is not None
        first[0] += 1.5 if row.passed else -1.5
        states[3] = None
        rows.append(msgspec.structs.replace(row, layer_agreement=[0.5], hidden=states if place % 9 else None))
    rows[0] = msgspec.structs.replace(rows[0], passed=None)
    rows[1] = msgspec.structs.replace(rows[1], small_calls="[]", small_outcome="no_call", small_plan=[], passed=False)
    rows[2] = msgspec.structs.replace(rows[2], small_calls='[{"name": "x", "arguments": "{"}]', passed=False)
    return Trace(trace.info, rows)


def run(*arguments: str) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, ["fit", *arguments])
    return outcome.exit_code, outcome.output


def test_a_judge_is_fitted_from_traces_and_its_report_says_how_good_it_is(tmp_path: Path) -> None:
    """Two traces in, a judge out that scores drafts as the report promises; figures on known and unseen tools."""
    whole = with_insides(SOME)
    paths = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    write_trace(paths[0], Trace(whole.info, whole.rows[:100]))
    write_trace(paths[1], Trace(whole.info, whole.rows[100:]))
    out = tmp_path / "judge"
    code, said = run(*map(str, paths), "--cases", "bfcl", "--out", str(out))
    assert code == 0, said
    assert "unseen tools" in said
    report = json.loads((out / "fit.json").read_bytes())
    assert (report["rows"], report["without_label"], report["not_drafted"]) == (179, 1, 0)
    valid = 179 - report["invalid"]
    assert 160 < valid < 179
    assert (report["model"], report["calibration"]) == ("logistic regression", "sigmoid")
    assert report["traces"][0]["sha256"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    known, unseen = report["protocols"]
    assert [known["name"], unseen["name"]] == ["known tools", "unseen tools"]
    for protocol in (known, unseen):
        assert protocol["all"]["n"] == valid
        assert 0.6 < protocol["all"]["auroc_low"] < protocol["all"]["auroc"] < protocol["all"]["auroc_high"]
        assert sum(one["n"] for one in protocol["by_kind"]) == valid
        assert {one["name"] for one in protocol["by_kind"]} <= set(KINDS)
        assert sum(one["n"] for one in protocol["reliability"]) == valid
        assert len(protocol["reliability"]) == 15
        assert {one["name"] for one in protocol["baselines"]} >= {"weakest_token", "mean_logprob"}
    assert {one["family"] for one in report["importance"][:4]} & {"hidden", "tokens"}
    assert "key_logprob_min" in report["missing_signals"]
    assert "probe" not in report["missing_signals"]
    text = (out / "fit.md").read_text(encoding="utf-8")
    assert "| single call |" in text
    assert "`hidden (family)`" in text

    judge = Classifier.load(out)
    rows = [row for row in whole.rows if row.passed is not None]
    drafts = [(request_of(case), draft_of(row)) for case, row in zip(CHOSEN, whole.rows, strict=True) if row in rows]
    vectors = np.array([judge.vector(request, draft) for request, draft in drafts])
    raw = judge.scores(vectors)
    columns = [COLUMN[name] for name in judge.names]
    expected = load_estimator(out).predict_proba(vectors[:, columns].astype(np.float64))[:, 1]
    np.testing.assert_allclose(raw, expected, rtol=1e-9)
    passed = np.array([row.passed is True for row in rows])
    assert raw[passed].mean() > raw[~passed].mean() + 0.2
    assert len(judge.explain(vectors[5])) == 3


def test_what_cannot_be_fitted_is_said(tmp_path: Path) -> None:
    """A trace of another set, too few rows, a set that there is not, no trace at all: exit 1 and why."""
    path, out = tmp_path / "t.parquet", str(tmp_path / "out")
    write_trace(path, Trace(SOME.info, SOME.rows[:30]))
    code, said = run(str(path), "--cases", "bfcl", "--out", out)
    assert (code, "a judge needs 50" in said) == (1, True)
    code, said = run(str(path), "--cases", "toolbench", "--out", out)
    assert (code, "is in none of the named sets" in said) == (1, True)
    code, said = run(str(path), "--cases", "nothing", "--out", out)
    assert (code, "no set 'nothing'" in said) == (1, True)
    path.write_bytes(b"x")
    code, said = run(str(path), "--cases", "bfcl", "--out", out)
    assert (code, "not a Parquet table" in said) == (1, True)
    assert not Path(out).exists()


def test_a_case_in_two_traces_is_refused(tmp_path: Path) -> None:
    """It would stand in training and in test."""
    path = tmp_path / "t.parquet"
    write_trace(path, SOME)
    trace = read_trace(path)
    with pytest.raises(TraceError, match="stands in two traces"):
        label(CASES, [trace, trace])


def test_rows_are_tied_by_conversation_and_by_the_tool_that_is_right() -> None:
    """Components are those of the study's splits; requests without tools are left out and counted."""
    bare = msgspec.structs.replace(CHOSEN[0], tools=[])
    made = label([bare, *CHOSEN[1:]], [SOME])
    assert (len(made.table), made.not_drafted) == (179, 1)
    tools: dict[str, set[str]] = {}
    for case, component in zip(made.cases, made.table.components, strict=True):
        assert isinstance(case.gold, CallsGold)
        for name in case.gold_names:
            tools.setdefault(name, set()).add(component)
    assert all(len(found) == 1 for found in tools.values())
    assert len(set(made.table.components)) > 20
