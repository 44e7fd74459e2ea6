"""An experiment judged from its requests: units, windows, figures, guardrails, the ship rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from evaluation.experiments.comparison import Difference
from evaluation.experiments.units import Requests, gather
from evaluation.experiments.verdict import ExperimentPlan, Guardrails, State, advise, state
from evaluation.metrics import MetricError

EVEN = ExperimentPlan({"control": 1.0, "cheap": 1.0}, planned_units=1500, margin=0.03)


def _requests(
    rng: np.random.Generator, units: int, *, rates: dict[str, float], **changes: dict[str, float]
) -> Requests:
    """One to four requests a unit; `changes` maps a column to each arm's mean."""
    arms = np.array(list(rates))[rng.integers(0, len(rates), units)]
    of = np.repeat(np.arange(units), rng.integers(1, 5, units))
    arm, n = arms[of], len(of)

    order = sorted(rates)
    rates_of = np.array([rates[name] for name in order])[np.searchsorted(order, arm)]
    hard = rng.random(units)

    def level(column: str, default: float) -> np.ndarray:
        told = changes.get(column, {})
        return np.array([told.get(name, default) for name in order])[np.searchsorted(order, arm)]

    return Requests(
        unit=np.array([f"u{i}" for i in of]),
        arm=arm,
        at_s=of * 10.0 + rng.random(n),
        cost_usd=level("cost_usd", 0.01) * (0.5 + hard[of]),
        latency_s=rng.exponential(level("latency_s", 1.0)),
        invalid=(rng.random(n) < level("invalid", 0.02)).astype(np.float64),
        passed=(rng.random(n) < rates_of).astype(np.float64),
        tool_error=(rng.random(n) < level("tool_error", 0.02)).astype(np.float64),
        covariates=hard[of][:, None],
    )


def _state(requests: Requests, plan: ExperimentPlan = EVEN) -> State:
    return state(gather(requests, window_s=60.0, now_s=1e9), plan)


def _columns(rows: list[tuple[str, str, float]]) -> Requests:
    n = len(rows)
    return Requests(
        unit=np.array([row[0] for row in rows], dtype=np.str_),
        arm=np.array([row[1] for row in rows], dtype=np.str_),
        at_s=np.array([row[2] for row in rows], dtype=np.float64),
        cost_usd=np.array([np.nan, *range(1, n)], dtype=np.float64)[:n],
        latency_s=np.ones(n),
        invalid=np.full(n, np.nan),
        passed=np.arange(n) % 2.0,
        tool_error=np.full(n, np.nan),
        covariates=np.arange(float(n))[:, None],
    )


def test_a_unit_is_what_it_does_in_its_window_and_counts_once_that_has_closed() -> None:
    rows = [
        ("b", "cheap", 5.0),
        ("a", "control", 1.0),
        ("b", "cheap", 64.9),
        ("b", "cheap", 65.0),
        ("c", "control", 50.0),
    ]
    units = gather(_columns(rows), window_s=60.0, now_s=100.0)
    assert units.arm.tolist() == ["control", "cheap"]
    assert units.requests.at_s.tolist() == [1.0, 5.0, 64.9]
    assert units.covariates.ravel().tolist() == [1.0, 0.0]
    assert units.exposed == {"control": 2, "cheap": 1}
    cost, known = units.sums(units.requests.cost_usd)
    assert (cost.tolist(), known.tolist()) == ([1.0, 2.0], [1.0, 1.0])


def test_a_unit_that_two_arms_served_is_left_out_and_counted() -> None:
    rows = [("a", "control", 1.0), ("a", "cheap", 2.0), ("b", "cheap", 3.0)]
    units = gather(_columns(rows), window_s=60.0, now_s=100.0)
    assert (units.mixed, units.arm.tolist(), units.exposed) == (1, ["cheap"], {"cheap": 1})


def test_a_cheaper_arm_that_passes_as_often_ships() -> None:
    rng = np.random.default_rng(1)
    found = _state(_requests(rng, 3000, rates={"control": 0.8, "cheap": 0.8}, cost_usd={"cheap": 0.004}))
    (cheap,) = found.treatments
    assert cheap.advice == "ship"
    assert cheap.pass_rate is not None
    assert cheap.cost_usd is not None
    assert -0.03 < cheap.pass_rate.lower < 0 < cheap.pass_rate.upper
    assert cheap.cost_usd.upper < 0
    assert cheap.cost_usd.variance_kept < 0.3
    assert sum(arm.units for arm in found.arms) == 3000
    assert not found.stopped


def test_an_arm_that_passes_less_is_rejected_though_it_is_cheaper() -> None:
    rng = np.random.default_rng(2)
    found = _state(_requests(rng, 3000, rates={"control": 0.8, "cheap": 0.65}, cost_usd={"cheap": 0.001}))
    assert found.treatments[0].advice == "reject"


def test_too_little_data_continues() -> None:
    found = _state(_requests(np.random.default_rng(3), 150, rates={"control": 0.8, "cheap": 0.2}))
    assert found.treatments[0].advice == "continue"


@pytest.mark.parametrize(
    ("column", "value", "rail"),
    [("invalid", 0.2, "invalid_calls"), ("tool_error", 0.15, "tool_errors"), ("latency_s", 3.0, "p95_latency_s")],
)
def test_harm_trips_its_guardrail_and_no_other(column: str, value: float, rail: str) -> None:
    plan = replace(EVEN, guardrails=Guardrails(p95_latency_s=4.0))
    requests = _requests(
        np.random.default_rng(4), 2000, rates={"control": 0.8, "cheap": 0.8}, **{column: {"cheap": value}}
    )
    found = _state(requests, plan)
    tripped = {one.name: one.tripped_at for one in found.treatments[0].guardrails if one.tripped_at}
    assert set(tripped) == {rail}
    assert 100 <= tripped[rail] < 1900
    assert found.stopped
    assert found.treatments[0].advice == "stop"


def test_a_guardrail_that_went_stays_gone_when_the_figures_recover() -> None:
    rng = np.random.default_rng(5)
    bad = _requests(rng, 800, rates={"control": 0.8, "cheap": 0.8}, invalid={"cheap": 0.3, "control": 0.02})
    good = _requests(rng, 8000, rates={"control": 0.8, "cheap": 0.8}, invalid={"cheap": 0.0, "control": 0.02})
    later = replace(good, at_s=good.at_s + 1e5, unit=np.char.add("later-", good.unit))
    both = Requests(**{name: np.concatenate([getattr(bad, name), getattr(later, name)]) for name in Requests.__slots__})
    (rail, *_) = _state(both).treatments[0].guardrails
    assert rail.lower < rail.limit
    assert rail.tripped_at is not None


def test_harmless_arms_are_stopped_at_most_alpha_of_the_time() -> None:
    """Three guardrails, each exactly at its limit, looked at after every unit."""
    plan = replace(EVEN, guardrails=Guardrails(p95_latency_s=float(np.log(20.0)), invalid_calls=0.05, tool_errors=0.02))
    rng = np.random.default_rng(6)
    stopped = 0
    for _ in range(300):
        requests = _requests(
            rng, 1200, rates={"control": 0.8, "cheap": 0.8}, invalid={"cheap": 0.07}, tool_error={"cheap": 0.04}
        )
        stopped += _state(requests, plan).stopped
    assert stopped <= binom.ppf(0.999, 300, plan.alpha)


def test_lost_units_void_the_experiment() -> None:
    requests = _requests(
        np.random.default_rng(7), 6000, rates={"control": 0.8, "cheap": 0.8}, cost_usd={"cheap": 0.001}
    )
    lost = (requests.arm == "cheap") & (np.char.endswith(requests.unit, "1") | np.char.endswith(requests.unit, "2"))
    kept = Requests(**{name: getattr(requests, name)[~lost] for name in Requests.__slots__})
    assert _state(requests).treatments[0].advice == "ship"
    found = _state(kept)
    assert found.ratio.mismatch
    assert found.treatments[0].advice == "void"


def test_without_labels_nothing_ships_and_the_pass_rate_is_not_made_up() -> None:
    requests = _requests(
        np.random.default_rng(8), 3000, rates={"control": 0.8, "cheap": 0.8}, cost_usd={"cheap": 0.001}
    )
    found = _state(replace(requests, passed=np.full(len(requests.unit), np.nan)))
    assert found.treatments[0].pass_rate is None
    assert [arm.pass_rate for arm in found.arms] == [None, None]
    assert found.treatments[0].advice == "continue"


def test_several_treatments_share_the_error() -> None:
    requests = _requests(np.random.default_rng(9), 3000, rates={"control": 0.8, "cheap": 0.8, "other": 0.8})
    three = _state(requests, ExperimentPlan({"control": 1.0, "cheap": 1.0, "other": 1.0}, planned_units=1500))
    two = _state(
        Requests(**{name: getattr(requests, name)[requests.arm != "other"] for name in Requests.__slots__}),
        ExperimentPlan({"control": 1.0, "cheap": 1.0}, planned_units=1000),
    )
    widths = [found.treatments[0].pass_rate for found in (three, two)]
    assert widths[0] is not None
    assert widths[1] is not None
    assert widths[0].upper - widths[0].lower > widths[1].upper - widths[1].lower


def _difference(lower: float, upper: float) -> Difference:
    return Difference(0.8, 0.8, (lower + upper) / 2, 0.01, lower, upper, 1000, 1.0)


@pytest.mark.parametrize(
    ("passed", "cost", "advice"),
    [
        (_difference(-0.009, 0.02), _difference(-2.0, -0.1), "ship"),
        (_difference(-0.010, 0.02), _difference(-2.0, -0.1), "continue"),
        (_difference(-0.009, 0.02), _difference(-2.0, 0.0), "continue"),
        (_difference(-0.05, -0.011), _difference(-2.0, -0.1), "reject"),
        (_difference(0.01, 0.02), _difference(0.1, 0.2), "reject"),
        (None, _difference(-2.0, -0.1), "continue"),
    ],
)
def test_the_ship_rule(passed: Difference | None, cost: Difference | None, advice: str) -> None:
    assert advise(passed, cost, 0.01, sound=True, safe=True) == advice
    assert advise(passed, cost, 0.01, sound=True, safe=False) == "stop"
    assert advise(passed, cost, 0.01, sound=False, safe=False) == "void"


def test_an_experiment_without_a_request_has_a_state() -> None:
    empty = _columns([])
    found = _state(empty)
    assert [arm.units for arm in found.arms] == [0, 0]
    assert found.treatments[0].advice == "continue"


def test_plans_and_arms_that_make_no_experiment_are_refused() -> None:
    for broken in ({"weights": {"a": 1.0}}, {"weights": {"a": 1.0, "b": 0.0}}, {"alpha": 0.0}, {"margin": -0.1}):
        with pytest.raises(MetricError):
            replace(EVEN, **broken)
    with pytest.raises(MetricError, match="stranger"):
        _state(_columns([("a", "stranger", 1.0)]))


def test_guardrails_share_the_level_among_those_watched() -> None:
    """Each of k has the interval that level alpha/k gives to one alone."""
    requests = _requests(np.random.default_rng(10), 1500, rates={"control": 0.8, "cheap": 0.8})

    def lower(alpha: float, guardrails: Guardrails) -> float:
        found = _state(requests, replace(EVEN, alpha=alpha, guardrails=guardrails)).treatments[0].guardrails
        return {rail.name: rail.lower for rail in found}["invalid_calls"]

    alone = Guardrails(tool_errors=None)
    assert lower(0.06, Guardrails(p95_latency_s=5.0)) == pytest.approx(lower(0.02, alone))
    assert lower(0.06, Guardrails()) == pytest.approx(lower(0.03, alone))
    assert lower(0.06, alone) > lower(0.03, alone)
