"""Replays count what the gateway does: who answers, what it costs, what passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from evaluation.cases.case import CallsGold, Case, GoldCall, NoCallGold, UnknownGold
from evaluation.replay.figures import study, sweep_of
from evaluation.replay.plans import Plan, Score, baselines, plan_of, plan_of_run, plans_at_shares
from evaluation.replay.replay import (
    Arms,
    ReplayError,
    join,
    judge,
    replay,
    servable_drafts,
    servable_scores,
)
from evaluation.traces.table import Trace, TraceInfo, TraceRow
from policies.rules.baselines import LargeOnly, SmallOnly
from policies.rules.scores import SCORES
from policies.rules.single import ValidAndSure
from policies.types import Action, Draft, Outcome, Policy, Request, Span, Stage, TokenSignals, Verdict

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PARIS = '[{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}]'
INVALID = '[{"name": "get_weather", "arguments": "{\\"city\\": 7}"}]'
GOLD = CallsGold([GoldCall("get_weather", {"city": ["Paris"]})])


def _case(name: str, gold: Any = GOLD, *, tools: Sequence[Any] = (WEATHER,), category: str = "simple") -> Case:
    return Case(
        id=name,
        source="test",
        split="test",
        category=category,
        messages=[{"role": "user", "content": name}],
        tools=list(tools),
        gold=gold,
    )


def _row(case: str, arm: str, passed: bool | None, **fields: Any) -> TraceRow:
    given: dict[str, Any] = {"outcome": "calls", "calls": PARIS}
    return TraceRow(case_id=case, source="test", category="simple", arm=arm, passed=passed, **(given | fields))


def _trace(arm: str, rows: Sequence[TraceRow]) -> Trace:
    return Trace(TraceInfo(arm=arm, command="test", data_sha256="0"), rows)


def _signals(*logprobs: float) -> dict[str, Any]:
    n = len(logprobs)
    return {
        "logprob": list(logprobs),
        "margin": [0.5] * n,
        "entropy": [0.5] * n,
        "feasible_mass": [1.0] * n,
        "forced": [False] * n,
        "span": [int(Span.PLAN)] + [int(Span.VALUE)] * (n - 1),
    }


def _draft(outcome: str, calls: str | None, *logprobs: float, busy_s: float = 36.0) -> dict[str, Any]:
    return {
        "small_outcome": outcome,
        "small_calls": calls,
        "small_plan": ["get_weather"] if calls else [],
        "small_complete": True,
        "small_prefill_s": busy_s / 4,
        "small_decode_s": busy_s * 3 / 4,
        "latency_s": 1.0,
        **_signals(*logprobs),
    }


CASES = [_case("sure"), _case("unsure"), _case("invalid"), _case("none", NoCallGold(), category="irrelevance")]


def _arms() -> Arms:
    """Drafts: right and sure, wrong and unsure, invalid, rightly none. Each costs 0.001 USD, each answer 0.01 USD."""
    small = [
        _row("sure", "s", True, **_draft("calls", PARIS, -0.1, -0.1)),
        _row("unsure", "s", False, **_draft("calls", PARIS, -0.1, -2.0)),
        _row("invalid", "s", False, status=422, **_draft("calls", INVALID, -0.1, -0.1)),
        _row("none", "s", True, **_draft("no_call", None, -0.2)),
    ]
    large = [_row(case.id, "l", case.id != "none", cost_usd=0.01, latency_s=2.0) for case in CASES]
    return join(CASES, _trace("s", small), _trace("l", large), small_usd_per_hour=0.1)


def _plans(arms: Arms) -> dict[str, Plan]:
    return {made.key: made for made in baselines(arms)}


def test_baselines_by_hand() -> None:
    """An escalated request costs draft and answer; the large model alone no draft; a no-call draft escalates."""
    arms = _arms()
    assert arms.small_cost == pytest.approx([0.001] * 4)
    plans = _plans(arms)
    totals = {
        key: (plan.escalated.sum(), plan.passes.sum(), round(plan.cost_usd.sum(), 9)) for key, plan in plans.items()
    }
    assert totals == {
        "small_only": (0, 2, 0.004),
        "large_only": (4, 3, 0.04),
        "random_mix": (2, 2.5, 0.022),
        "schema_valid": (2, 2, 0.024),
        "oracle": (2, 4, 0.024),
    }
    assert plans["schema_valid"].escalated.tolist() == [0, 0, 1, 1]
    assert plans["schema_valid"].latency_s.tolist() == [1, 1, 3, 3]
    assert np.isnan(plans["random_mix"].latency_s).all()


def test_on_no_call_answer_serves_the_draft_without_a_call() -> None:
    """Only the setting makes the right no-call an answer."""
    arms = _arms()
    assert servable_drafts(arms, "escalate", "escalate").tolist() == [True, True, False, False]
    assert servable_drafts(arms, "answer", "escalate").tolist() == [True, True, False, True]


@pytest.mark.parametrize("name", ["weakest_token", "mean_logprob", "least_margin"])
@pytest.mark.parametrize("on_no_call", ["escalate", "answer"])
def test_a_sweep_is_what_the_live_policy_does_at_each_threshold(name: str, on_no_call: Any) -> None:
    """Every finite point of the curve equals a replay of `ValidAndSure` with that threshold, request by request."""
    arms = _arms()
    servable = servable_drafts(arms, on_no_call, "escalate")
    values = servable_scores(SCORES[name], arms, servable)
    assert values is not None
    curve = sweep_of(arms, Score(name, name, values))
    finite = [i for i, threshold in enumerate(curve.threshold) if np.isfinite(threshold)]
    assert finite
    for i in finite:
        policy = ValidAndSure(float(curve.threshold[i]), score=name, on_no_call=on_no_call)
        live = plan_of(arms, "live", "live", replay(policy, arms))
        assert live.escalated.mean() == pytest.approx(curve.escalated[i])
        assert live.passes.mean() == pytest.approx(curve.quality[i])
        assert live.cost_usd.mean() == pytest.approx(curve.cost[i])


def test_a_request_without_tools_is_never_drafted_nor_paid_for() -> None:
    """It goes large before a draft is begun, in a replay, at a threshold and in a sweep."""
    cases = [*CASES, _case("bare", NoCallGold(), tools=())]
    arms = _arms()
    small = [*arms.small_rows, _row("bare", "s", True, **_draft("no_call", None, -0.1))]
    large = [*arms.large_rows, _row("bare", "l", True, cost_usd=0.01)]
    arms = join(cases, _trace("s", small), _trace("l", large), small_usd_per_hour=0.1)
    assert arms.draftable.tolist() == [True] * 4 + [False]
    valid = _plans(arms)["schema_valid"]
    assert valid.escalated[-1] == 1
    assert valid.cost_usd[-1] == pytest.approx(0.01)
    score = Score("s", "s", np.array([0.9, 0.1, -np.inf, -np.inf, -np.inf]))
    assert sweep_of(arms, score).cost[0] == pytest.approx((4 * 0.011 + 0.01) / 5)
    assert plans_at_shares(arms, score)[0].cost_usd[-1] == pytest.approx(0.01)


class Scripted:
    """A policy that notes what it is shown and escalates at one stage."""

    name = "scripted"

    def __init__(self, stage: Stage | None) -> None:
        self.stage = stage
        self.seen: list[Any] = []

    def _at(self, stage: Stage, otherwise: Action) -> Verdict:
        return Verdict(Action.ESCALATE if stage is self.stage else otherwise, stage, "scripted")

    def before(self, request: Request) -> Verdict:
        self.seen.append("before")
        return self._at(Stage.BEFORE, Action.CONTINUE)

    def during(self, request: Request, draft: Draft) -> Verdict:
        self.seen.append((draft.plan, None if draft.signals is None else len(draft.signals)))
        return self._at(Stage.DURING, Action.CONTINUE)

    def after(self, request: Request, draft: Draft) -> Verdict:
        self.seen.append("after")
        return self._at(Stage.AFTER, Action.ANSWER)


@pytest.mark.parametrize(
    ("stage", "seen"),
    [
        (Stage.BEFORE, ["before"]),
        (Stage.DURING, ["before", (("get_weather",), 1)]),
        (Stage.AFTER, ["before", (("get_weather",), 1), "after"]),
        (None, ["before", (("get_weather",), 1), "after"]),
    ],
)
def test_a_policy_speaks_in_the_gateways_order(stage: Stage | None, seen: list[Any]) -> None:
    """Before, during with the plan's signals alone, after; the first verdict that ends it is the verdict."""
    policy = Scripted(stage)
    arms = _arms()
    verdict = judge(policy, arms.requests[0], arms.drafts[0])
    assert policy.seen == seen
    assert verdict.action is (Action.ANSWER if stage is None else Action.ESCALATE)
    decisions = replay(policy, arms)
    assert decisions.drafted.all() == (stage is not Stage.BEFORE)
    assert decisions.answered_small.all() == (stage is None)


def test_during_is_asked_wherever_a_plan_stood() -> None:
    """A plan to call nothing is a plan; a draft that broke off before its plan never had one."""
    arms = _arms()
    policy = Scripted(None)
    judge(policy, arms.requests[3], arms.drafts[3])
    assert policy.seen == ["before", ((), 1), "after"]
    broken = Scripted(None)
    judge(broken, arms.requests[0], Draft(Outcome.UNPARSABLE, complete=False))
    assert broken.seen == ["before", "after"]


@pytest.mark.parametrize(("policy", "answered"), [(LargeOnly(), [0, 0, 0, 0]), (SmallOnly(), [1, 1, 0, 1])])
def test_live_baselines_replay(policy: Policy, answered: list[int]) -> None:
    """The live policies run over a table unchanged."""
    assert replay(policy, _arms()).answered_small.tolist() == [bool(a) for a in answered]


def test_signals_of_the_plan_end_with_the_plan() -> None:
    """Syntax between plan tokens belongs to it; no signals stay none, and no plan gives an empty prefix."""
    spans = [Span.SYNTAX, Span.PLAN, Span.SYNTAX, Span.PLAN, Span.SYNTAX, Span.VALUE]
    numbers = np.arange(6, dtype=np.float32)
    flags = np.zeros(6, dtype=np.bool_)
    signals = TokenSignals(numbers, numbers, numbers, numbers, flags, np.array(spans, dtype=np.uint8))
    assert signals.until_plan().logprob.tolist() == [0, 1, 2, 3]
    without = TokenSignals(numbers, numbers, numbers, numbers, flags, np.zeros(6, dtype=np.uint8))
    assert len(without.until_plan()) == 0
    assert Draft(Outcome.CALLS, plan=("a",)).at_plan() == Draft(Outcome.CALLS, complete=False, plan=("a",))
    assert Draft(Outcome.UNPARSABLE, plan=("a",)).at_plan().outcome is Outcome.CALLS, "cut in its arguments"


def test_failures_and_gaps_are_counted() -> None:
    """A failed request did not pass and is free; what stands in one trace alone, or has no gold, is left out."""
    cases = [*CASES, _case("lonely"), _case("unsmall"), _case("goldless", UnknownGold())]
    arms = _arms()
    small = [
        *arms.small_rows[1:],
        _row("sure", "s", None, outcome=None, calls=None, error="timeout"),
        _row("lonely", "s", True),
    ]
    large = [*arms.large_rows[1:], _row("sure", "l", None, outcome=None, calls=None, error="timeout")]
    large.append(_row("unsmall", "l", True, cost_usd=1.0))
    arms = join(cases, _trace("s", small), _trace("l", large), small_usd_per_hour=0.1)
    assert [case.id for case in arms.cases] == ["sure", "unsure", "invalid", "none"]
    assert (arms.small_failed, arms.large_failed, arms.small_unpriced) == (1, 1, 1)
    out = arms.left_out
    assert (out.without_small, out.without_large, out.without_gold) == (1, 1, 1)
    assert (arms.small_cost[0], arms.large_cost[0]) == (0, 0)
    assert not arms.small_pass[0]
    assert arms.drafts[0].outcome is Outcome.UNPARSABLE
    assert _plans(arms)["schema_valid"].escalated[0] == 1


def test_a_small_arm_without_seconds_costs_what_its_rows_say() -> None:
    """A hosted small model is priced by tokens, not by an hour of a machine."""
    arms = _arms()
    small = _trace("s", [_row("sure", "s", True, cost_usd=0.002, latency_s=9.0)])
    joined = join(CASES, small, _trace("l", arms.large_rows), small_usd_per_hour=0.1)
    assert joined.small_cost.tolist() == [0.002]
    assert joined.small_unpriced == 0


def test_an_unpriced_large_arm_is_refused() -> None:
    """An unknown cost is not taken for nothing; traces of other cases have nothing to compare."""
    arms = _arms()
    unpriced = [_row(case.id, "l", True) for case in CASES]
    with pytest.raises(ReplayError, match="4 answers of the large arm have no cost"):
        join(CASES, _trace("s", arms.small_rows), _trace("l", unpriced), small_usd_per_hour=0.1)
    with pytest.raises(ReplayError, match="no case"):
        join(CASES, _trace("s", []), _trace("l", arms.large_rows), small_usd_per_hour=0.1)


def test_thresholds_at_shares_do_not_part_ties() -> None:
    """Only thresholds that exist are offered, each once, under the first share that asks for it."""
    arms = _arms()
    plans = plans_at_shares(arms, Score("s", "s", np.array([0.9, 0.5, 0.5, -np.inf])))
    assert [(plan.key, plan.threshold, plan.escalated.mean()) for plan in plans] == [
        ("s@0.25", 0.5, 0.25),
        ("s@0.75", 0.9, 0.75),
    ]


def test_a_run_of_the_gateway_is_shown_as_measured() -> None:
    """Its own passes, sides and upstream costs, and the small model's seconds on top."""
    arms = _arms()
    rows = [
        _row("sure", "g", True, side="small", cost_usd=0.0, **_draft("calls", PARIS, -0.1)),
        _row("unsure", "g", True, side="large", cost_usd=0.02, **_draft("calls", PARIS, -2.0)),
        _row("invalid", "g", None, outcome=None, calls=None, error="timeout"),
        _row("none", "g", False, side="large", cost_usd=0.02),
    ]
    plan = plan_of_run(arms, _trace("g", rows), small_usd_per_hour=0.1)
    assert plan.escalated.tolist() == [0, 1, 0, 1]
    assert plan.passes.tolist() == [1, 1, 0, 0]
    assert plan.cost_usd == pytest.approx([0.001, 0.021, 0, 0.02])
    with pytest.raises(ReplayError, match="lacks 1 cases"):
        plan_of_run(arms, _trace("g", rows[1:]), small_usd_per_hour=0.1)
    rows[3] = _row("none", "g", False, side="large")
    with pytest.raises(ReplayError, match="do not say who answered"):
        plan_of_run(arms, _trace("g", rows), small_usd_per_hour=0.1)


def test_figures_of_a_study_are_those_of_its_plans_and_the_same_each_time() -> None:
    """Point figures are plain means, intervals hold them, and nothing depends on the moment."""
    arms = _arms()
    plans = baselines(arms)
    score = Score("s", "s", np.array([0.9, 0.1, -np.inf, -np.inf]))
    points, curves = study(arms, plans, [score], draws=200, seed=1)
    assert (points, curves) == study(arms, plans, [score], draws=200, seed=1)
    for plan, point in zip(plans, points, strict=True):
        assert point.quality.value == pytest.approx(plan.passes.mean())
        assert point.cost.value == pytest.approx(plan.cost_usd.sum() / arms.large_cost.sum())
        assert point.quality.low is not None
        assert point.quality.high is not None
        assert point.quality.low <= point.quality.value <= point.quality.high
    curve = curves[0]
    assert curve.thresholds == [None, 0.9, 0.1, None]
    assert curve.reachable == [True, True, True, False]
    assert curve.qnc.value == pytest.approx(0.034 / 0.04)
    assert curve.auroc.value == 1
