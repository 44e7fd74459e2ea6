"""Off-policy estimates by simulation: unbiased, doubly robust, honest about their effective rows; the audit plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from evaluation.live.offpolicy import (
    MIN_ESS,
    AuditPlan,
    doubly_robust,
    effective_rows,
    importance_weights,
    ips,
    plan_audits,
    snips,
)
from evaluation.metrics import MetricError
from policies.rules.baselines import RandomMix
from policies.types import Action, Draft, DraftCall, Outcome, Request, Tool


@dataclass(frozen=True)
class World:
    """Requests of hardness x in [0, 1]; the small model passes with 1 − x, the large one with 0.9."""

    rng: np.random.Generator
    rows: int

    def draw(self) -> dict[str, np.ndarray]:
        """A log of a policy that escalates with probability 0.2 + 0.6x, and a target that escalates above 0.4."""
        x = self.rng.random(self.rows)
        escalates = 0.2 + 0.6 * x
        large = self.rng.random(self.rows) < escalates
        pass_rate = np.where(large, 0.9, 1.0 - x)
        wants_large = x > 0.4
        return {
            "x": x,
            "large": large,
            "reward": (self.rng.random(self.rows) < pass_rate).astype(np.float64),
            "logged": np.where(large, escalates, 1.0 - escalates),
            "target": (large == wants_large).astype(np.float64),
            "q": pass_rate,
            "q_target": np.where(wants_large, 0.9, 1.0 - x),
        }


TRUTH = 0.4 * 0.8 + 0.6 * 0.9
"""∫ of 1 − x up to 0.4, and 0.9 above."""


def _runs(seed: int, runs: int = 2000, rows: int = 300) -> list[dict[str, np.ndarray]]:
    world = World(np.random.default_rng(seed), rows)
    return [world.draw() for _ in range(runs)]


def _assert_centred(values: np.ndarray, truth: float = TRUTH) -> None:
    """Within four standard errors of the truth."""
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / np.sqrt(len(values))


def test_ips_is_unbiased_and_its_standard_error_is_the_spread_of_its_values() -> None:
    found = [ips(log["reward"], importance_weights(log["target"], log["logged"])) for log in _runs(1)]
    values = np.array([one.value for one in found])
    _assert_centred(values)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(values.std(ddof=1), rel=0.05)


def test_snips_is_nearly_unbiased_steadier_and_knows_its_spread() -> None:
    logs = _runs(2)
    weights = [importance_weights(log["target"], log["logged"]) for log in logs]
    found = [snips(log["reward"], w) for log, w in zip(logs, weights, strict=True)]
    values = np.array([one.value for one in found])
    assert abs(values.mean() - TRUTH) < 0.003
    assert values.std() < 0.8 * np.std([ips(log["reward"], w).value for log, w in zip(logs, weights, strict=True)])
    assert np.mean([one.standard_error for one in found]) == pytest.approx(values.std(ddof=1), rel=0.05)


def test_doubly_robust_is_right_where_the_model_is_wrong_or_the_probabilities_are_but_not_where_both_are() -> None:
    both, wrong_model, wrong_logged, none = [], [], [], []
    for log in _runs(3):
        w = importance_weights(log["target"], log["logged"])
        # A log that says 1/2 throughout, and a model that says 0.5 throughout.
        flat, half = importance_weights(log["target"], np.full(len(w), 0.5)), np.full(len(w), 0.5)
        both.append(doubly_robust(log["reward"], w, log["q"], log["q_target"]).value)
        wrong_model.append(doubly_robust(log["reward"], w, half, half).value)
        wrong_logged.append(doubly_robust(log["reward"], flat, log["q"], log["q_target"]).value)
        none.append(doubly_robust(log["reward"], flat, half, half).value)
    for values in (both, wrong_model, wrong_logged):
        _assert_centred(np.array(values))
    assert abs(np.mean(none) - TRUTH) > 0.02
    assert np.std(both) < np.std(wrong_model)


def test_the_log_of_a_random_mix_tells_what_each_model_alone_is_worth() -> None:
    """The probabilities are those that the policy states with its verdicts."""
    policy, rng = RandomMix(0.3), np.random.default_rng(8)
    tool = Tool("t", "", {"type": "object"})
    draft = Draft(Outcome.CALLS, (DraftCall("t", "{}"),))
    actions, logged = [], []
    for i in range(4000):
        request = Request(messages=({"role": "user", "content": str(i)},), tools=(tool,))
        before = policy.before(request)
        verdict = before if before.action is Action.ESCALATE else policy.after(request, draft)
        actions.append(verdict.action)
        logged.append(verdict.propensity)
    large = np.array([action is Action.ESCALATE for action in actions])
    rewards = (rng.random(4000) < np.where(large, 0.9, 0.6)).astype(np.float64)
    for wanted, truth in ((large, 0.9), (~large, 0.6)):
        found = ips(rewards, importance_weights(wanted.astype(np.float64), logged))
        assert abs(found.value - truth) < 4 * found.standard_error
        assert found.standard_error < 0.03


def test_doubly_robust_knows_its_spread() -> None:
    found = []
    for log in _runs(4):
        w = importance_weights(log["target"], log["logged"])
        found.append(doubly_robust(log["reward"], w, log["q"], log["q_target"]))
    spread = np.std([one.value for one in found], ddof=1)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.05)


def test_effective_rows_count_equal_weights_in_full_and_one_heavy_row_as_one() -> None:
    assert effective_rows(np.full(50, 3.0)) == pytest.approx(50)
    assert effective_rows([1e9, 1.0, 1.0]) == pytest.approx(1, abs=1e-6)
    assert effective_rows([0.0, 0.0]) == 0.0


@pytest.mark.parametrize("estimator", [ips, snips, lambda r, w: doubly_robust(r, w, r * 0, r * 0)])
def test_an_estimate_on_too_few_effective_rows_prints_no_figure(estimator: object) -> None:
    assert callable(estimator)
    for rows, said in ((int(MIN_ESS) - 1, False), (int(MIN_ESS) + 1, True)):
        found = estimator(np.full(1000, 0.625), np.repeat([1000.0 / rows, 0.0], [rows, 1000 - rows]))
        assert found.reliable is said
        assert ("0.6250" in str(found)) is said
        assert ("no estimate" in str(found)) is not said
    assert "no estimate" in str(estimator(np.ones(5), np.zeros(5)))


@pytest.mark.parametrize(
    ("target", "logged"),
    [([0.5], [0.0]), ([0.5], [1.1]), ([1.5], [0.5]), ([0.5, 0.5], [0.5]), ([], []), ([np.nan], [1])],
)
def test_probabilities_that_cannot_have_been_are_refused(target: list[float], logged: list[float]) -> None:
    with pytest.raises(MetricError):
        importance_weights(target, logged)


def test_negative_weights_and_other_lengths_are_refused() -> None:
    with pytest.raises(MetricError, match="weights"):
        ips([1.0, 0.0], [1.0, -1.0])
    with pytest.raises(MetricError, match="weights"):
        snips([1.0, 0.0], [1.0])
    with pytest.raises(MetricError, match="predicted"):
        doubly_robust([1.0, 0.0], [1.0, 1.0], [1.0], [1.0, 1.0])


def test_an_audit_plan_spends_its_rate_where_the_judge_is_unsure_and_never_less_than_the_floor() -> None:
    p = np.random.default_rng(5).beta(8, 1, 5000)
    plan = plan_audits(p, rate=0.1, floor=0.02)
    e = plan.propensity(p)
    assert e.mean() == pytest.approx(0.1, abs=1e-6)
    assert e.min() >= 0.02
    assert plan.propensity([0.5, 0.9, 0.99, 1.0]).tolist() == sorted(
        plan.propensity([0.5, 0.9, 0.99, 1.0]), reverse=True
    )
    assert plan.propensity(1.0) == 0.02
    assert plan_audits(p, rate=1.0, floor=0.02).propensity(p[p < 1 - 1e-12]).min() == pytest.approx(1.0)


def test_the_audit_plan_beats_auditing_all_alike_at_the_same_price() -> None:
    rng = np.random.default_rng(6)
    p = rng.beta(6, 0.6, 3000)
    planned = plan_audits(p, rate=0.1, floor=0.02).propensity(p)
    spread = {}
    for name, e in (("planned", planned), ("alike", np.full(3000, planned.mean()))):
        values = []
        for _ in range(1500):
            wrong = (rng.random(3000) >= p).astype(np.float64)
            audited = rng.random(3000) < e
            values.append(doubly_robust(wrong * audited, audited / e, 1 - p, 1 - p).value)
        _assert_centred(np.array(values), float((1 - p).mean()))
        spread[name] = np.var(values)
    assert spread["planned"] < 0.8 * spread["alike"]


@pytest.mark.parametrize(("rate", "floor"), [(0.1, 0.2), (0.1, 0.0), (1.2, 0.1)])
def test_an_audit_plan_that_cannot_be_is_refused(rate: float, floor: float) -> None:
    with pytest.raises(MetricError, match="floor"):
        plan_audits([0.5], rate=rate, floor=floor)
    with pytest.raises(MetricError, match="probability"):
        AuditPlan(0.1, 0.1).propensity([1.5])
