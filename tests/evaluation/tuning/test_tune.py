"""Thresholds chosen on one part of a trace: what they promise, what they do on the other, and what is refused."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from evaluation.cases.case import CallsGold, Case
from evaluation.cases.sets import case_set
from evaluation.cases.splits import split
from evaluation.replay.replay import ReplayError
from evaluation.traces.table import Trace, TraceInfo, TraceRow, write_trace
from evaluation.tuning.tune import SALT, SHARES, Goal, Tuning, always_right, tune
from policies.types import Span
from router.__main__ import app

CASES = [case for case in case_set("bfcl") if case.category == "live_multiple"]


def small_trace(cases: list[Case], *, signals: bool = True) -> Trace:
    """Drafts that repeat the gold, with a confidence p that is their chance to be counted as right."""
    rng = np.random.default_rng(5)
    rows = []
    for case in cases:
        assert isinstance(case.gold, CallsGold)
        confidence = float(rng.beta(4, 1))
        calls = []
        for call in case.gold.calls:
            properties = case.parameters_of(call.name).get("properties") or {}
            given = {key: values[0] for key, values in call.arguments.items() if key in properties and "" not in values}
            calls.append({"name": call.name, "arguments": json.dumps(given)})
        told = {
            "logprob": [float(np.log(confidence))], "margin": [confidence], "entropy": [0.1], "feasible_mass": [1.0],
            "forced": [False], "span": [int(Span.VALUE)],
        }  # fmt: skip
        rows.append(
            TraceRow(
                case_id=case.id, source=case.source, category=case.category, arm="s", outcome="calls",
                calls=json.dumps(calls), passed=bool(rng.random() < confidence), small_outcome="calls",
                small_calls=json.dumps(calls), small_plan=[call["name"] for call in calls], small_complete=True,
                small_prefill_s=0.3, small_decode_s=0.6, **(told if signals else {}),
            )
        )  # fmt: skip
    return Trace(TraceInfo(arm="s", command="test", data_sha256=""), rows)


SMALL = small_trace(CASES)


def made(goal: Goal, target: float, **fields: float) -> Tuning:
    """A tuning against a large model that is always right."""
    large = always_right(SMALL, usd_a_request=0.001)
    return tune(CASES, SMALL, large, goal=goal, target=target, delta=0.1, small_usd_per_hour=0.1, **fields)  # type: ignore[arg-type]


def test_goals_are_told_between_a_better_and_a_worse_one() -> None:
    """The better first, so that shares answered small never fall; quality is over the large model's pass rate."""
    for goal, target in (("max_harm", 0.05), ("min_pass_rate", 0.9), ("quality_of_large", 0.9), ("max_cost", 0.5)):
        tuning = made(goal, target)  # type: ignore[arg-type]
        shares = [choice.operating.share_small for choice in tuning.choices]
        assert len(shares) == 3
        assert shares == sorted(shares), goal
        assert tuning.chosen is tuning.choices[1]
    same = [made(goal, 0.9).chosen.operating.threshold for goal in ("min_pass_rate", "quality_of_large")]  # type: ignore[arg-type]
    assert same[0] == same[1], "the large model is always right here"


def test_a_certified_threshold_keeps_its_promise_on_the_other_part() -> None:
    """A looser goal answers more, the bound holds, and pass rate, harm and cost are those of one replay."""
    tuning = made("max_harm", 0.05)
    assert [choice.target for choice in tuning.choices] == [0.025, 0.05, 0.1]
    shares = [choice.operating.share_small for choice in tuning.choices]
    assert shares == sorted(shares)
    assert 0.1 < shares[1] < 0.9
    certificate, at = tuning.chosen.certificate, tuning.chosen.operating
    assert certificate is not None
    assert certificate.bound <= 0.05
    assert certificate.rows == len(tuning.certifying.one_each) <= len(tuning.selection)
    assert at.harmed.value is not None
    assert at.harmed.value < 0.08
    assert at.passed.value == pytest.approx(1 - at.harmed.value)
    draft_usd = 0.9 * 0.1 / 3600
    assert at.cost == pytest.approx(1 - at.share_small + draft_usd / 0.001, abs=0.01)


def test_the_parts_share_no_tool() -> None:
    """What chooses is not what tells."""
    parts = split(CASES, SHARES, salt=SALT)
    names = [{name for case in parts[part] for name in case.gold_names} for part in ("choose", "tell")]
    assert not names[0] & names[1]
    tuning = made("max_harm", 0.05)
    assert (len(tuning.selection), len(tuning.holdout)) == (len(parts["choose"]), len(parts["tell"]))


def test_goals_as_observed_are_told_with_a_bound_on_their_harm() -> None:
    """The pass rate or cost asked for holds on the selection part, about; the harm is bounded from the other part."""
    by_rate, by_cost = made("min_pass_rate", 0.9), made("max_cost", 0.5)
    for tuning in (by_rate, by_cost):
        shown, at = tuning.chosen.certificate, tuning.chosen.operating
        assert shown is not None
        assert tuning.certifying is tuning.holdout
        accepted = tuning.holdout.accepted(at.threshold)[tuning.holdout.one_each]
        wrong = tuning.holdout.harmed_if_accepted[tuning.holdout.one_each]
        assert shown.errors == (accepted & wrong).sum()
        assert shown.alpha == shown.bound > shown.errors / shown.rows
    assert by_rate.chosen.operating.passed.value == pytest.approx(0.9, abs=0.04)
    assert by_cost.chosen.operating.cost == pytest.approx(0.5, abs=0.08)


def test_where_nothing_can_be_certified_everything_goes_large() -> None:
    """A goal that no draft meets gives no threshold, the large model's pass rate, and its cost without drafts."""
    tuning = made("max_harm", 0.0005)
    at = tuning.chosen.operating
    assert tuning.chosen.certificate is None
    assert (at.threshold, at.share_small, at.cost, at.passed.value) == (None, 0.0, 1.0, 1.0)


def test_traces_without_signals_are_refused() -> None:
    """There is nothing to hold a threshold against."""
    bare = small_trace(CASES, signals=False)
    with pytest.raises(ReplayError, match="collect with signals"):
        tune(
            CASES, bare, always_right(bare, usd_a_request=1), goal="max_harm", target=0.1, delta=0.1,
            small_usd_per_hour=0.1,
        )  # fmt: skip


def test_the_command_prints_the_choice_and_the_policy_to_set(tmp_path: Path) -> None:
    """What is printed is what `tune` chose."""
    path = tmp_path / "small.parquet"
    write_trace(path, SMALL)
    command = ["tune", str(path), "--right-at-usd", "0.001", "--max-harm", "0.05"]
    outcome = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, outcome.output
    threshold = made("max_harm", 0.05, seed=0).chosen.operating.threshold
    assert f"threshold: {threshold}" in outcome.output
    assert "harm ≤ 5.0% with 90%" in outcome.output


def test_the_command_takes_a_file_of_cases_and_the_large_models_own_trace(tmp_path: Path) -> None:
    """Nothing of the choice hangs on where cases and answers come from."""
    small, large, own = tmp_path / "small.parquet", tmp_path / "large.parquet", tmp_path / "own.jsonl"
    write_trace(small, SMALL)
    write_trace(large, always_right(SMALL, usd_a_request=0.001, latency_s=2.0))
    own.write_bytes(b"\n".join(msgspec.json.encode(case) for case in CASES) + b"\n")
    arguments = ["--cases", str(own), "--large", str(large), "--max-harm", "0.05"]
    outcome = CliRunner().invoke(app, ["tune", str(small), *arguments], env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, outcome.output
    assert f"threshold: {made('max_harm', 0.05, seed=0).chosen.operating.threshold}" in outcome.output
    assert "s (2.00)" in outcome.output


def test_rows_that_nobody_answers_are_counted_and_said(tmp_path: Path) -> None:
    """Large answers to all but seven, and cases to all but ten."""
    small, large, own = tmp_path / "small.parquet", tmp_path / "large.parquet", tmp_path / "own.jsonl"
    answered = always_right(SMALL, usd_a_request=0.001)
    write_trace(small, SMALL)
    write_trace(large, Trace(answered.info, answered.rows[:-7]))
    own.write_bytes(b"\n".join(msgspec.json.encode(case) for case in CASES[10:]) + b"\n")
    arguments = ["--cases", str(own), "--large", str(large), "--max-harm", "0.05"]
    outcome = CliRunner().invoke(app, ["tune", str(small), *arguments], env={"COLUMNS": "200"})
    assert outcome.exit_code == 0, outcome.output
    every = len(SMALL.rows)
    assert f"left out: 10 of the {every} rows of the small arm, since no case of --cases is theirs" in outcome.output
    assert f"left out: 7 of the {every} rows of the small arm, since {answered.info.arm} has no" in outcome.output


@pytest.mark.parametrize("shape", [[], ["--tool-class", "get_*=0.0005"], ["--staged", "--large-latency-s", "2"]])
def test_no_bundle_is_written_where_nothing_can_be_chosen(tmp_path: Path, shape: list[str]) -> None:
    """Of whatever shape; the last line says so, and the folder is not made."""
    path, out = tmp_path / "small.parquet", tmp_path / "bundle"
    write_trace(path, SMALL)
    command = ["tune", str(path), "--right-at-usd", "0.001", "--max-harm", "0.0005", *shape, "--out", str(out)]
    outcome = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert outcome.exit_code == 1, outcome.output
    assert outcome.output.splitlines()[-1] == f"error: {out}: no bundle, since there is nothing to serve by (see above)"
    assert not out.exists()


def test_a_latency_is_told_only_where_the_large_models_is_known() -> None:
    """The mean of the requests that are answered small would be no latency of the policy."""
    tuning = made("max_harm", 0.05)
    at = tuning.chosen.operating
    assert (at.latency_s, at.large_latency_s) == (None, None)
    everything = tuning.holdout.operating(np.ones(len(tuning.holdout), dtype=bool), None)
    assert everything.latency_s == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--right-at-usd", "1"], "--max-harm"),
        (["--max-harm", "0.1"], "--right-at-usd"),
        (["--max-harm", "0.1", "--max-cost", "1", "--right-at-usd", "1"], "--max-harm"),
        (["--max-harm", "0.1", "--right-at-usd", "1", "--score", "mood"], "weakest_token"),
        (["--max-harm", "0.1", "--large", "nobody"], "gpt-4o"),
        (["--max-harm", "0.1", "--right-at-usd", "1", "--cases", "in_domain"], "none of the trace's cases"),
        (["--max-harm", "0.1", "--right-at-usd", "1", "--cost-weight", "0.2"], "are for --staged"),
        (["--max-harm", "0.1", "--large", "nobody", "--large-latency-s", "1"], "is for --right-at-usd"),
    ],
)
def test_a_wrong_command_says_what_is_missing(arguments: list[str], message: str, tmp_path: Path) -> None:
    """One goal, one large model, known names."""
    path = tmp_path / "small.parquet"
    write_trace(path, SMALL)
    outcome = CliRunner().invoke(app, ["tune", str(path), *arguments], env={"COLUMNS": "200"})
    assert outcome.exit_code != 0
    assert message in outcome.output
