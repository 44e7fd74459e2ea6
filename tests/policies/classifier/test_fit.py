"""Fitting out of fold: what is learned of rows does not flatter them, and the judge finds what is there."""

import dataclasses

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier

from policies.classifier.context import learn_context, learned_out_of_fold
from policies.classifier.estimator import TREES
from policies.classifier.fit import FitError, cross_validate, fit, fit_and_check
from policies.classifier.models import Linear, Trees
from policies.features.catalog import COLUMN, standing_at
from policies.types import Stage
from tests.policies.classifier.judged import made_table


def auroc(raw: np.ndarray, passed: np.ndarray) -> float:
    """By counting pairs."""
    above = raw[passed][:, None] - raw[~passed][None, :]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def test_the_judge_finds_what_decides() -> None:
    """A token signal and the probe are learned; figures on unseen tools are those of the rule, not better."""
    table = made_table(400)
    fitted = fit_and_check(table, seed=0)
    assert isinstance(fitted.classifier.model, Linear)
    assert fitted.unseen_tools is not None
    for scored in (fitted.unseen_tools, fitted.known_tools):
        assert 0.75 < auroc(scored.raw, table.passed) < 0.97
        assert sorted(np.concatenate([fold.held_out for fold in scored.folds]).tolist()) == list(range(400))
        assert np.isfinite(scored.probability).all()
    again = fit(table, seed=0)
    assert (again.scores(table.vectors) == fitted.classifier.scores(table.vectors)).all()
    draft = np.nan_to_num(table.vectors[0])
    high, low = draft.copy(), draft.copy()
    high[COLUMN["value_logprob_min"]], low[COLUMN["value_logprob_min"]] = 2.0, -2.0
    assert fitted.classifier.score(high) > fitted.classifier.score(low) + 0.2


def test_many_rows_are_fitted_by_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a thousand rows on; scores of held-out tools find the rule, and a signal that nobody has is not read."""
    monkeypatch.setitem(TREES, "max_iter", 25)
    table = made_table(1250, hidden=False)
    fitted = fit_and_check(table, seed=0)
    assert isinstance(fitted.classifier.model, Trees)
    assert isinstance(fitted.known_tools.folds[0].estimator, HistGradientBoostingClassifier)
    assert fitted.unseen_tools is not None
    assert auroc(fitted.unseen_tools.raw, table.passed) > 0.75
    assert fitted.classifier.context.probe is None
    assert "probe" not in fitted.classifier.names


def test_groups_are_never_parted() -> None:
    """No tool of a held-out row is among those that its classifier was fitted on."""
    table = made_table(300)
    scored = cross_validate(table, table.components, seed=0)
    for fold in scored.folds:
        inside = {table.components[row] for row in fold.held_out}
        outside = {table.components[row] for row in range(300) if row not in set(fold.held_out.tolist())}
        assert not inside & outside


def test_a_leak_through_learned_signals_does_not_help() -> None:
    """Hidden states and records of pure noise, one tool a conversation: out of fold they tell nothing of the row."""
    table = made_table(400, hidden=False, tools=200)
    rng = np.random.default_rng(7)
    noise = dataclasses.replace(
        table,
        vectors=np.full_like(table.vectors, np.nan),
        hidden=rng.normal(size=table.hidden.shape).astype(np.float32),
        passed=rng.random(400) < 0.5,
    )
    whole = learn_context(noise)
    assert whole.probe is not None
    seen = whole.probe.read_all(noise.hidden)[0]
    honest = learned_out_of_fold(noise, seed=0)
    assert auroc(seen, noise.passed) > 0.7
    assert auroc(honest[:, COLUMN["probe"]], noise.passed) < 0.6
    assert np.isnan(honest[:, COLUMN["tool_rate"]]).all()
    scored = cross_validate(noise, noise.components, seed=0)
    assert 0.38 < auroc(scored.raw, noise.passed) < 0.62


def test_a_tools_record_is_learned_and_half_of_the_tools_count_as_unknown() -> None:
    """Rows of one tool get its rate from other conversations; a withheld tool has none."""
    table = made_table(600, tools=10)
    good = np.array([int(component[1:]) < 5 for component in table.components])
    table = dataclasses.replace(table, passed=good.copy())
    rates = learned_out_of_fold(table, seed=0)[:, COLUMN["tool_rate"]]
    told = ~np.isnan(rates)
    assert 0 < told.sum() < 600
    assert {table.components[row] for row in np.flatnonzero(told)}.isdisjoint(
        {table.components[row] for row in np.flatnonzero(~told)}
    )
    assert rates[told & good].min() > 0.7 > 0.3 > rates[told & ~good].max()
    records = learn_context(table).tool_records
    assert records["t0"].rows == 60
    assert records["t0"].rate == pytest.approx((60 + 5) / 70)


def test_a_stage_reads_only_what_stands_then() -> None:
    """A judge of the plan ignores the values."""
    judge = fit(made_table(200), seed=0, stage=Stage.DURING)
    assert set(judge.names) < set(standing_at(Stage.DURING))
    draft = np.zeros(len(COLUMN), np.float32)
    other = draft.copy()
    other[COLUMN["value_logprob_min"]] = -9.0
    assert judge.score(draft) == judge.score(other)


def test_a_table_that_cannot_carry_a_judge_is_refused() -> None:
    """Few rows, one outcome, one conversation: an error that says what is missing."""
    table = made_table(100)
    with pytest.raises(FitError, match="40 rows"):
        fit(table.rows(np.arange(40)), seed=0)
    with pytest.raises(FitError, match="100 passed"):
        fit(dataclasses.replace(table, passed=np.ones(100, np.bool_)), seed=0)
    with pytest.raises(FitError, match="one group"):
        fit(dataclasses.replace(table, conversations=["c"] * 100, components=["c"] * 100), seed=0)


def test_rows_that_all_hang_together_are_judged_by_conversation() -> None:
    """One component: no figure for unseen tools, and none is invented."""
    table = made_table(200)
    fitted = fit_and_check(dataclasses.replace(table, components=["k"] * 200), seed=0)
    assert fitted.unseen_tools is None
    assert len(fitted.known_tools.folds) == 5
