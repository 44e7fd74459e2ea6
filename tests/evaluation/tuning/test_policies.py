"""Tool classes, stages and money tuned on traces, and the bundles that come of it, through `smallcall tune`."""

from collections.abc import Sequence
from dataclasses import replace as put
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from evaluation.replay.replay import join
from evaluation.replay.replay import replay as replayed
from evaluation.traces.small_side import Serving
from evaluation.traces.table import Trace, write_trace
from evaluation.tuning.bundle import Money, Origin, class_manifest, staged_manifest, threshold_manifest
from evaluation.tuning.by_stage import StagedTuning, tune_stages
from evaluation.tuning.by_tool_class import tune_classes
from evaluation.tuning.rows import TuningRows, calibration_of, prices_of
from evaluation.tuning.tune import always_right, tune
from policies.bundle.bundle import load, save
from policies.bundle.manifest import (
    Budget,
    Classes,
    ClassifierEntry,
    GainRule,
    ScoreEntry,
    Stages,
    Threshold,
    ToolsJudge,
)
from policies.rules.judge import FewTools, Judge, NamedScore
from policies.types import Draft, Request, Span
from router.__main__ import app
from router.cli.provenance import commit
from tests.evaluation.tuning.test_tune import CASES, SMALL

SERVING = Serving(weights_sha256="0" * 64, adapter_sha256=None, pattern_version="1", dtype="float32", grammar=True)
SERVED = Trace(replace(SMALL.info, serving=SERVING), SMALL.rows)
LARGE = always_right(SMALL, usd_a_request=0.001, latency_s=2.0)
SCORE = NamedScore("weakest_token")
ORIGIN = Origin(ScoreEntry(score="weakest_token"), SERVING, None, 0.1, "test")


def rows_of(cases: Sequence = CASES, small: Trace = SMALL, judge: Judge = SCORE) -> TuningRows:
    return TuningRows.of(
        cases, small, LARGE, judge, on_no_call="escalate", on_ask="escalate", small_usd_per_hour=0.1, seed=0
    )


@pytest.fixture(scope="module")
def tuning():
    return tune(CASES, SERVED, LARGE, goal="max_harm", target=0.1, delta=0.1, small_usd_per_hour=0.1)


# ── classes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_class_has_a_threshold_of_its_own(tuning) -> None:
    """A looser class answers more; together they are what their bundle does on the holdout part."""
    alphas = {"*": 0.08, "[a-m]*": 0.2}
    made = tune_classes(tuning.selection, tuning.holdout, alphas, delta=0.1)
    by_pattern = {one.pattern: one for one in made.classes}
    loose, rest = by_pattern["[a-m]*"], by_pattern["*"]
    assert loose.certificate is not None
    assert rest.certificate is not None
    assert loose.certificate.delta == rest.certificate.delta == 0.05
    assert loose.certificate.threshold < rest.certificate.threshold
    assert loose.rows + rest.rows == len(tuning.selection.one_each)
    assert rest.operating is not None
    assert rest.operating.harmed.value is not None
    assert rest.operating.harmed.value < 0.12

    manifest = class_manifest(made, tuning, ORIGIN)
    assert isinstance(manifest.policy, Classes)
    assert {shown.scope for shown in manifest.certificates} == {"*", "[a-m]*"}
    assert manifest.made_for is not None
    assert manifest.made_for.tools
    assert manifest.expected is not None
    assert manifest.expected.share_small == made.together.share_small


def test_a_class_of_too_few_rows_gets_no_threshold(tuning) -> None:
    """Nothing can be shown of it, so its drafts go large."""
    made = tune_classes(tuning.selection, tuning.holdout, {"*": 0.1, "nobody_*": 0.1}, delta=0.1)
    (empty,) = [one for one in made.classes if one.pattern == "nobody_*"]
    assert (empty.certificate, empty.rows, empty.operating) == (None, 0, None)


# ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Oracle:
    """An early stage that knows: nobody has it, but if one had, it should pay."""

    name = "oracle"

    def __init__(self, wrong: set[str]) -> None:
        self._wrong = wrong

    def score(self, request: Request, draft: Draft) -> float:
        return 0.0 if str(request.messages) in self._wrong else 1.0


def stages(small: Trace, request_judge: Judge, plan_judge: Judge) -> StagedTuning:
    return tune_stages(
        CASES,
        lambda cases: rows_of(cases, small),
        request_judge,
        plan_judge,
        alpha=0.1,
        delta=0.1,
        cost_weight=0.5,
    )


def test_gates_that_know_nothing_are_not_kept() -> None:
    """The number of tools says nothing here and no trace has a plan: the single threshold stays."""
    made = stages(SMALL, FewTools(), SCORE)
    assert made.single is not None
    assert not made.pays
    manifest = staged_manifest(made, ORIGIN, ToolsJudge(), ScoreEntry(score="weakest_token"))
    assert manifest.policy == Threshold(threshold=made.single.draft, certificate=manifest.certificates[0].id)
    assert manifest.certificates[0].kind == "joint"
    assert manifest.certificates[0].delta == 0.05, "two walks share δ"


def test_a_gate_that_knows_is_kept_and_saves_what_it_says() -> None:
    """What it stops early would have been drafted in vain: time is saved, and the harm stays certified."""
    passed = {row.case_id: row.passed for row in SMALL.rows}
    rows = rows_of()
    wrong = {
        str(request.messages)
        for case, request in zip(rows.arms.cases, rows.arms.requests, strict=True)
        if not passed[case.id]
    }
    made = stages(SMALL, Oracle(wrong), SCORE)  # type: ignore[arg-type]
    assert made.pays
    assert made.staged is not None
    assert made.staged.request == 1.0
    assert made.saved is not None
    assert made.saved.low is not None
    assert made.single_operating is not None
    assert made.staged_operating is not None
    assert made.staged_operating.latency_s < made.single_operating.latency_s  # type: ignore[operator]
    assert made.staged_operating.harmed.value == 0.0
    manifest = staged_manifest(made, ORIGIN, ToolsJudge(), ScoreEntry(score="weakest_token"))
    assert isinstance(manifest.policy, Stages)
    assert manifest.policy.request_gate is not None


# ── money, calibration, origin ───────────────────────────────────────────────────────────────────────────────────────


def test_a_calibration_follows_the_pass_rate() -> None:
    """Drafts pass with the probability that their one token has: the knots lie near the diagonal, and never fall."""
    knots = np.array(calibration_of(rows_of()))
    assert len(knots) <= 64
    assert (np.diff(knots, axis=0) >= 0).all()
    middle = knots[(knots[:, 0] > 0.5) & (knots[:, 0] < 0.95)]
    assert np.abs(middle[:, 1] - middle[:, 0]).mean() < 0.1


def test_prices_are_a_line_through_what_was_paid() -> None:
    """Costs made of a base and the characters come back as such."""
    rows = rows_of()
    length = np.array([len(str(request.messages)) for request in rows.arms.requests], dtype=float)
    told = prices_of(rows, 0.1)
    assert told.usd_of_answer == pytest.approx(0.001)
    assert told.usd_per_character == pytest.approx(0.0, abs=1e-12)
    assert told.latency_s == pytest.approx(2.0)
    from policies.rules.price_aware import LargePrices

    characters = np.array([LargePrices(1.0, 0.0, 0.0).usd(request) for request in rows.arms.requests])
    paid = put(rows, arms=put(rows.arms, large_cost=0.002 + 1e-6 * characters))
    told = prices_of(paid, 0.1)
    assert (told.usd_per_character, told.usd_of_answer) == (pytest.approx(1e-6), pytest.approx(0.002))
    assert len(length) == len(rows)


@pytest.mark.parametrize(
    ("money", "kind"),
    [(Money(), Threshold), (Money(usd_per_hour=2.0), Budget), (Money(pass_per_usd=10.0), GainRule)],
)
def test_a_certified_threshold_is_the_floor_of_what_reckons_with_money(tuning, money: Money, kind: type) -> None:
    """The certificate goes along: the accepted set only shrinks. No figure is claimed that was not replayed."""
    manifest = threshold_manifest(tuning, ORIGIN, money)
    assert isinstance(manifest.policy, kind)
    floor = manifest.policy.threshold if kind is Threshold else manifest.policy.floor
    assert floor == tuning.chosen.operating.threshold
    assert manifest.policy.certificate == manifest.certificates[0].id
    assert (manifest.expected is None) == (kind is not Threshold)


def test_traces_that_do_not_say_what_made_them_give_no_certificate(tuning) -> None:
    """There would be nothing to hold it against."""
    manifest = threshold_manifest(tuning, put(ORIGIN, serving=None), Money())
    assert (manifest.certificates, manifest.made_for) == ([], None)
    assert manifest.policy.certificate is None


def test_what_a_bundle_promises_is_what_its_policy_does_in_replay(tuning, tmp_path: Path) -> None:
    """The figures of `expected` come out of the loaded bundle's own verdicts."""
    save(tmp_path / "b", threshold_manifest(tuning, ORIGIN, Money()))
    bundle = load(tmp_path / "b")
    arms = tuning.holdout.arms
    done = replayed(bundle.policy(), arms)
    expected = bundle.manifest.expected
    assert expected is not None
    assert done.answered_small.mean() == pytest.approx(expected.share_small)
    passed = np.where(done.answered_small, arms.small_pass, arms.large_pass).mean()
    assert passed == pytest.approx(expected.pass_rate)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def run(*arguments: str, trace: Trace = SERVED, folder: Path) -> str:
    path = folder / "small.parquet"
    write_trace(path, trace)
    outcome = CliRunner().invoke(
        app, ["tune", str(path), "--right-at-usd", "0.001", *arguments], env={"COLUMNS": "220"}
    )
    return f"{outcome.exit_code}\n{outcome.output}"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--max-harm", "0.1"], Threshold),
        (["--min-pass-rate", "0.9"], Threshold),
        (["--quality-of-large", "0.95"], Threshold),
        (["--max-cost", "0.6", "--usd-per-hour", "3"], Budget),
        (["--max-harm", "0.1", "--pass-per-usd", "20"], GainRule),
        (["--max-harm", "0.1", "--tool-class", "get_*=0.2"], Classes),
        (["--max-harm", "0.1", "--staged", "--large-latency-s", "2"], Threshold),
    ],
)
def test_the_command_writes_a_bundle_that_loads(arguments: list[str], kind: type, tmp_path: Path) -> None:
    """Every goal and shape; what is printed is what the bundle holds."""
    said = run(*arguments, "--out", str(tmp_path / "b"), folder=tmp_path)
    assert said.startswith("0\n"), said
    bundle = load(tmp_path / "b")
    assert isinstance(bundle.manifest.policy, kind)
    assert bundle.digest in said
    assert bundle.manifest.certificates
    for shown in bundle.manifest.certificates:
        assert shown.id in said
        assert shown.sentence() in said
    assert "kind: bundle" in said


def test_a_bundle_says_how_it_was_made_and_nothing_of_this_machine(tmp_path: Path) -> None:
    """The options that were given, files and folders by their names alone, and the commit; not where it was written."""
    given = ["--tool-class", "get_*=0.2", "--max-harm", "0.1", "--large-model", "gpt-4o"]
    said = run(*given, "--out", str(tmp_path / "b"), folder=tmp_path)
    assert said.startswith("0\n"), said
    made_by = load(tmp_path / "b").manifest.made_by
    command, _, made_at = made_by.partition(" (commit ")
    assert command == (
        "smallcall tune small.parquet --tool-class 'get_*=0.2' --right-at-usd 0.001 --large-model gpt-4o --max-harm 0.1"
    )
    assert made_at == f"{commit()})"


def test_the_command_says_why_there_is_no_certificate(tmp_path: Path) -> None:
    """A trace of an endpoint that does not say what it runs."""
    said = run("--max-harm", "0.1", "--out", str(tmp_path / "b"), trace=SMALL, folder=tmp_path)
    assert "no certificate" in said
    assert load(tmp_path / "b").manifest.certificates == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-harm", "0.1", "--staged"], "latenc"),
        (["--max-harm", "0.1", "--staged", "--usd-per-hour", "1"], "exclude"),
        (["--max-cost", "0.5", "--tool-class", "a=0.1"], "--max-harm"),
        (["--max-harm", "0.1", "--tool-class", "=0.1"], "PATTERN=RATE"),
        (["--max-harm", "0.1", "--tool-class", "a=much"], "much"),
        (["--max-harm", "0.1", "--tool-class", "a=2"], "alpha 2"),
        (["--max-harm", "0.1", "--out", "{folder}"], "never changed"),
        (["--max-harm", "0.1", "--judge", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_tuned_is_said(arguments: list[str], message: str, tmp_path: Path) -> None:
    """By option or by what is missing; no trace of a stack."""
    said = run(*[one.format(folder=tmp_path) for one in arguments], folder=tmp_path)
    assert not said.startswith("0\n")
    assert message in said


def test_a_plan_costs_its_share_of_a_draft() -> None:
    """A gate on the plan saves the arguments' decoding and not the prefill."""
    judged = rows_of()
    row = judged.arms.small_rows[int(np.argmax(judged.scores))]
    two = replace(
        row, logprob=[-0.1] * 4, margin=[0.9] * 4, entropy=[0.1] * 4, feasible_mass=[1.0] * 4, forced=[False] * 4,
        span=[Span.PLAN, Span.VALUE, Span.VALUE, Span.VALUE], small_prefill_s=0.5, small_decode_s=2.0,
    )  # fmt: skip
    trace = Trace(SMALL.info, [two if one.case_id == row.case_id else one for one in SMALL.rows])
    (case,) = [case for case in CASES if case.id == row.case_id]
    rows = rows_of([case], trace)
    from evaluation.tuning.by_stage import NONE, Combination, _Seen

    seen = _Seen.of(rows, FewTools(), SCORE)
    stopped = Combination(NONE, 2.0, NONE)
    assert seen.drafted(stopped)[0] == pytest.approx((0.5 + 0.25 * 2.0) / 2.5)
    assert len(join([case], trace, LARGE, small_usd_per_hour=0.1)) == 1


def test_a_fitted_classifier_is_tuned_and_served_from_its_bundle(tmp_path: Path) -> None:
    """`smallcall fit` on one trace, `smallcall tune --judge` on another: the loaded bundle judges, with probabilities
    and three signals that spoke; a classifier of another stage is refused."""
    middle = len(CASES) // 3
    ids = {case.id for case in CASES[:middle]}
    first = Trace(SERVED.info, [row for row in SERVED.rows if row.case_id in ids])
    rest = Trace(SERVED.info, [row for row in SERVED.rows if row.case_id not in ids])
    write_trace(tmp_path / "first.parquet", first)
    fitting = ["fit", str(tmp_path / "first.parquet"), "--cases", "bfcl", "--out", str(tmp_path / "judge")]
    fitted = CliRunner().invoke(app, fitting)
    assert fitted.exit_code == 0, fitted.output
    judge = ["--judge", str(tmp_path / "judge"), "--out", str(tmp_path / "b")]
    said = run("--max-harm", "0.2", *judge, trace=rest, folder=tmp_path)
    assert said.startswith("0\n"), said
    bundle = load(tmp_path / "b")
    assert isinstance(bundle.manifest.judge, ClassifierEntry)
    arms = rows_of(CASES[middle:], rest).arms
    policy = bundle.policy()
    verdicts = [policy.after(request, draft) for request, draft in zip(arms.requests, arms.drafts, strict=True)]
    scored = [verdict for verdict in verdicts if verdict.score is not None]
    assert scored
    assert all(0.0 <= (verdict.probability or -1.0) <= 1.0 for verdict in scored)
    assert len(bundle.judge.explain(arms.requests[0], arms.drafts[0])) == 3
    said = run(
        "--max-harm", "0.2", "--staged", "--large-latency-s", "1", "--judge-plan", judge[1], trace=rest, folder=tmp_path
    )
    assert "judges at stage after, and not during" in said
