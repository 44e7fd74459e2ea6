"""The cascade study over recorded answers: parts that share nothing, figures that add up, judges that refuse."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from evaluation.cases.case import Case
from evaluation.cases.sets import case_set
from evaluation.cases.splits import split
from evaluation.cases.study_data import StudyData
from evaluation.intervals import cluster_weights
from evaluation.metrics import auroc
from evaluation.recorded.models import LARGE_MODELS, trace_of
from evaluation.recorded.simulated import TokenRates, simulated_large
from evaluation.recorded.trace import trace_of_recording
from evaluation.replay.classifier_scorer import ClassifierJudges
from evaluation.replay.figures import sweep_of
from evaluation.replay.plans import Score
from evaluation.replay.prompt_routers import matrix_factorisation, prompt_logistic
from evaluation.replay.replay import join, servable_drafts
from evaluation.replay.scorers import CannotJudge, Part, crossfit, fit_all, of_signals, platt, require_scores
from evaluation.studies.cascade import procedure
from evaluation.studies.cascade.results import CascadeStudy, render_markdown, study_of, write
from evaluation.studies.cascade.study import SALT, SPLIT, StudyOptions, Table, tables_of
from evaluation.studies.cascade.targets import Material, material_of, merged, study_judges
from evaluation.traces.table import Trace, TraceError
from tests.evaluation.drafts import of_gold, of_recording

OPTIONS = StudyOptions(draws=20)


@cache
def _bfcl() -> list[Case]:
    return StudyData.of_checkout().bfcl()


@cache
def _material() -> Material:
    """A fourth of BFCL with xLAM-1b's recorded answers as drafts, and some training sources."""
    domain = case_set("in_domain")[::14]
    return material_of(
        [of_recording(_bfcl()[::4]), of_gold(domain, 0.7)],
        LARGE_MODELS[:1] + LARGE_MODELS[4:],
        case_set,
        StudyData.of_checkout(),
        qualities=[0.95],
        command="test",
    )


@cache
def _tables() -> tuple[list[Table], list[str]]:
    material = _material()
    return tables_of(
        material.small, material.targets, material.sources, material.sources_large, study_judges(), options=OPTIONS
    )


@cache
def _part() -> Part:
    cases = _bfcl()[::4]
    arms = join(
        cases,
        of_recording(cases),
        trace_of(LARGE_MODELS[0], cases, StudyData.of_checkout(), command="test"),
        small_usd_per_hour=0.1,
    )
    return Part(arms, servable_drafts(arms, "escalate", "escalate"), servable_drafts(arms, "answer", "escalate"))


def test_every_set_has_its_tables_and_what_cannot_be_told_is_said() -> None:
    """Both protocols with each large model; a cold start without rows of its own sources is named as missing."""
    tables, missing = _tables()
    assert [(table.set_name, table.large, table.protocol) for table in tables] == [
        ("bfcl", "gpt-4o-2024-08-06", "split"),
        ("bfcl", "gpt-4o-2024-08-06", "cold"),
        ("bfcl", "Salesforce_xLAM-7b-fc-r", "split"),
        ("bfcl", "Salesforce_xLAM-7b-fc-r", "cold"),
        ("in_domain", "simulated, right in 95%", "split"),
    ]
    assert missing == ["in_domain, simulated, right in 95%, cold: no trace of training sources was given"]
    assert _material().missing == [
        f"{name}: no trace holds a case of it" for name in ("bfcl_live", "heldout_tools", "validation")
    ]
    assert [table.simulated for table in tables] == [False] * 4 + [True]


def test_parts_share_no_tool_and_cover_the_set() -> None:
    """The split's parts are those of `splits.split`; together they are all rows."""
    table = _tables()[0][0]
    cases = _material().targets[0].cases
    parts = split(cases, SPLIT, salt=SALT)
    assert table.rows == {name: len(part) for name, part in parts.items()}
    assert sum(table.rows.values()) == len(cases)
    tools = [{name for case in part for name in case.gold_names} for part in parts.values()]
    assert not tools[0] & tools[1] | tools[0] & tools[2] | tools[1] & tools[2]
    cold = _tables()[0][1]
    assert cold.rows["report"] == len(cases)


def test_pass_rates_are_those_of_the_answers() -> None:
    """Each model alone passes what its recorded answers pass, over the reported rows."""
    for table, target in zip(_tables()[0][1:4:2], _material().targets, strict=False):
        small = {row.case_id: row.passed for row in _material().small.rows}
        large = {row.case_id: row for row in target.large.rows}
        ids = [case.id for case in target.cases]
        assert table.small_passed.value == pytest.approx(np.mean([small[i] for i in ids]))
        assert table.large_passed.value == pytest.approx(np.mean([large[i].passed for i in ids]))
        assert table.large_usd_per_1000 == pytest.approx(1000 * np.mean([large[i].cost_usd for i in ids]))


def test_the_oracle_bounds_every_judge_that_drafts_and_the_coin_is_a_line() -> None:
    """No order of drafts has more area than the oracle's, and a coin recovers half of the gap."""
    for table in _tables()[0]:
        judged = {judge.key: judge for judge in table.judges}
        best = judged["oracle"].figures["apgr"].value
        assert best is not None
        for judge in table.judges:
            value = judge.figures["apgr"].value
            assert value is not None
            assert value <= best + 1e-9
        assert judged["random_mix"].figures["apgr"].value == pytest.approx(0.5)
        assert judged["random_mix"].figures["cpt95"].value == 0.95
        assert judged["random_mix"].figures["auroc"].value == pytest.approx(0.5)


def test_signals_made_to_tell_beat_what_sees_the_prompt_only() -> None:
    """A score that parts right from wrong recovers more of the gap; its cost is set against the best other's."""
    table = _tables()[0][1]
    area = {judge.key: judge.figures["apgr"].value or 0.0 for judge in table.judges}
    assert area["classifier_silent"] > max(area["prompt_logistic"], area["prompt_mf"]) + 0.1
    judged = {judge.key: judge.figures["qnc"].value or np.inf for judge in table.judges}
    shown = {row.figure: row for row in table.against}
    ratio = shown["qnc"].ratio
    assert ratio.value == pytest.approx(
        min(judged["classifier"], judged["classifier_silent"]) / judged[shown["qnc"].other]
    )
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value <= ratio.high


def test_a_chosen_threshold_is_told_on_rows_that_did_not_choose_it() -> None:
    """What the table says of a threshold is what serving at it does on the holdout part, by plain counting."""
    part = _part()
    index = np.arange(len(part))
    selection, holdout = part.take(index[::2]), part.take(index[1::2])
    judge = of_signals("weakest_token", "weakest token")
    scorer = judge.fit(selection)
    selection_score, holdout_score = scorer(selection), scorer(holdout)
    for made in (
        procedure.neutral(selection, selection_score, holdout, holdout_score, draws=30, seed=0),
        procedure.certified(
            selection, selection_score, holdout, holdout_score, alpha=0.05, delta=0.1, draws=30, seed=0
        ),
    ):
        assert made.threshold is not None
        small = holdout_score.values >= made.threshold
        arms = holdout.arms
        assert made.passed.value == pytest.approx(np.where(small, arms.small_pass, arms.large_pass).mean())
        cost = arms.small_cost * arms.draftable + np.where(small, 0, arms.large_cost)
        assert made.cost.value == pytest.approx(cost.sum() / arms.large_cost.sum())
        assert made.escalated == pytest.approx(1 - small.mean())
        assert made.harmed == pytest.approx((small & ~arms.small_pass & arms.large_pass).mean())
        assert made.passed.low is not None
        assert made.passed.value is not None
        assert made.passed.low <= made.passed.value
    chosen = procedure.neutral(selection, selection_score, holdout, holdout_score, draws=30, seed=0).threshold
    accepted = selection_score.values >= chosen
    passed = np.where(accepted, selection.arms.small_pass, selection.arms.large_pass).mean()
    assert passed >= selection.arms.large_pass.mean()


def test_where_nothing_can_be_chosen_all_goes_large_and_nothing_is_drafted() -> None:
    """A score that puts wrong drafts first certifies nothing: cost 1, no loss, no draft."""
    part = _part()
    worst = Score("worst", "worst", np.where(part.arms.small_pass, 0.1, 0.9))
    made = procedure.certified(part, worst, part, worst, alpha=0.02, delta=0.1, draws=30, seed=0)
    assert (made.threshold, made.cost.value, made.loss.value, made.escalated) == (None, 1.0, 0.0, 1.0)
    assert made.certified.startswith("none on ")


def test_a_prompt_router_pays_no_draft_for_what_it_sends_large() -> None:
    """At any threshold its cost is the small model's for some and the large model's for the others."""
    part = _part()
    for judge in (prompt_logistic(), matrix_factorisation()):
        score = judge.fit(part)(part)
        curve = sweep_of(part.arms, score)
        assert curve.cost[0] == pytest.approx(part.arms.large_cost.mean())
        at = len(curve.threshold) // 2
        small = score.values >= curve.threshold[at]
        spent = np.where(small, part.arms.small_cost, part.arms.large_cost).mean()
        assert curve.cost[at] == pytest.approx(spent)


def test_judges_refuse_rows_that_allow_no_fit() -> None:
    """Too few rows, one class only, no signals: the judge is left out and the sentence says why."""
    few = _part().take(np.arange(5))
    right = _part().take(np.flatnonzero(_part().arms.small_pass)[:40])
    drafts = of_gold(_bfcl()[:60], 0.5)
    silent = join(
        _bfcl()[:60],
        Trace(drafts.info, [msgspec.structs.replace(row, logprob=None) for row in drafts.rows]),
        trace_of(LARGE_MODELS[0], _bfcl()[:60], StudyData.of_checkout(), command="test"),
        small_usd_per_hour=0.1,
    )
    unheard = Part(silent, np.ones(len(silent), bool), np.ones(len(silent), bool))
    judges = [prompt_logistic(), of_signals("weakest_token", "weakest token")]
    assert [list(fit_all(judges, part)[0]) for part in (few, right)] == [["weakest_token"], ["weakest_token"]]
    assert fit_all(judges, few)[1] == ["prompt-only logistic: 5 rows to fit on, 20 are needed"]
    assert "came to the same" in fit_all(judges, right)[1][0]
    for told in (lambda: require_scores(judges[1].fit(unheard)(unheard)), lambda: crossfit(judges[1], unheard)):
        with pytest.raises(CannotJudge, match="token probabilities"):
            told()
    with pytest.raises(CannotJudge):
        matrix_factorisation().fit(few)


def test_the_classifier_is_fitted_on_many_drafts_without_any_signal() -> None:
    """A thousand drafts and more of a server that tells no probabilities: form, grounding and request remain."""
    data = StudyData.of_checkout()
    recorded = data.recording("Salesforce_xLAM-1b-fc-r")
    small = trace_of_recording(_bfcl(), recorded, arm="small", prices=None, command="recorded")
    arms = join(_bfcl(), small, trace_of(LARGE_MODELS[0], _bfcl(), data, command="test"), small_usd_per_hour=0.1)
    servable = servable_drafts(arms, "escalate", "escalate")
    part = Part(arms, servable, servable)
    plain, silent = ClassifierJudges().judges()
    score = plain.fit(part)(part)
    assert len(part) > 1000
    assert (np.isfinite(score.values) == servable).all()
    assert auroc(score.values[servable], arms.small_pass[servable]) > 0.7
    few = part.take(np.arange(10))
    with pytest.raises(CannotJudge, match="rows"):
        silent.fit(few)


def test_platt_gives_probabilities_that_rise_with_the_score() -> None:
    """And none where the score says that the draft may not be served."""
    rng = np.random.default_rng(0)
    scores = rng.random(400)
    curve = platt(scores, rng.random(400) < scores)
    assert curve is not None
    told = curve(np.array([-np.inf, 0.1, 0.5, 0.9]))
    assert np.isnan(told[0])
    assert told[1:] == pytest.approx([0.1, 0.5, 0.9], abs=0.12)
    assert platt(scores, np.ones(400, bool)) is None


def test_a_simulated_large_model_is_right_as_often_as_it_is_said_to_be() -> None:
    """The same requests fail each time, and GPT-4o's own tokens are met within a tenth."""
    data = StudyData.of_checkout()
    recorded = data.recording("gpt-4o-2024-08-06-FC")
    rates = TokenRates.of(_bfcl(), recorded)
    prices = LARGE_MODELS[0].prices
    ids = {answer.id for answer in recorded}
    cases = [case for case in _bfcl() if case.id in ids]
    made = simulated_large(cases, pass_rate=0.9, rates=rates, prices=prices)
    assert np.mean([row.passed for row in made.rows]) == pytest.approx(0.9, abs=0.03)
    assert [row.passed for row in made.rows] == [
        row.passed for row in simulated_large(cases, pass_rate=0.9, rates=rates, prices=prices).rows
    ]
    real = trace_of(LARGE_MODELS[0], cases, data, command="test")
    cost = [sum(row.cost_usd or 0 for row in trace.rows) for trace in (made, real)]
    assert cost[0] == pytest.approx(cost[1], rel=0.1)
    with pytest.raises(ValueError, match="pass_rate"):
        simulated_large(cases, pass_rate=0.0, rates=rates, prices=prices)


def test_xlam_is_priced_by_a_stated_assumption() -> None:
    """Its answers carry GPT-4o-mini's tokens, and the study says so."""
    mini, xlam = LARGE_MODELS[1], LARGE_MODELS[4]
    data = StudyData.of_checkout()
    tokens = {row.case_id: row.prompt_tokens for row in trace_of(mini, _bfcl(), data, command="t").rows}
    rows = trace_of(xlam, _bfcl(), data, command="t").rows
    assert len(rows) == 1198
    assert all(row.prompt_tokens == tokens[row.case_id] and row.cost_usd for row in rows)
    assert any("assumed are GPT-4o-mini's tokens" in line for line in _material().assumptions)


def test_a_case_in_two_traces_is_refused() -> None:
    """Whose answer would count is nothing to guess at."""
    trace = of_gold(case_set("in_domain")[:3], 1.0)
    with pytest.raises(TraceError, match="stands in two traces"):
        merged([trace, trace], "test")


def test_a_bootstrap_draw_takes_whole_groups_and_as_many_as_there_are() -> None:
    """Rows of a group count alike, and the groups' counts sum to their number."""
    clusters = ["a", "a", "b", "c", "c", "c"]
    weights = np.concatenate(list(cluster_weights(clusters, 50, np.random.default_rng(0))))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()


def _study() -> CascadeStudy:
    tables, missing = _tables()
    return study_of(
        tables,
        facts={"command": "smallcall study cascade", "commit": "0123abc", "version": "0"},
        small=[{"name": "a.parquet", "command": "collect", "data_sha256": "0" * 64}],
        asked=_material().asked,
        options=OPTIONS,
        median_busy_s=0.9,
        assumptions=_material().assumptions,
        missing=missing,
    )


def test_the_files_hold_every_figure_and_say_what_is_missing(tmp_path: Path) -> None:
    """The JSON reads back as the study; the tables of the page show its judges, ours in bold, simulated ones marked."""
    study = _study()
    markdown, table = write(study, tmp_path)
    assert msgspec.json.decode(table.read_bytes(), type=CascadeStudy) == study
    text = markdown.read_text(encoding="utf-8")
    assert text == render_markdown(study)
    for words in (
        "**Missing**",
        "cold: no trace of training sources",
        "**simulated**",
        "**classifier**",
        "0123abc",
    ):
        assert words in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") in (12, 14, 11) for line in rows)
    assert sum(line.startswith("| random mix") for line in rows) == len(study.tables)
