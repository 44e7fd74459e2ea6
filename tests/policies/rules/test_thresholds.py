"""Policies over a judge's score: stages, tool classes, prices and budgets, by their verdicts."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.rules.judge import FewTools, NamedScore
from policies.rules.price_aware import BudgetController, Budgeted, Gain, LargePrices, kind_of
from policies.rules.thresholds import StagedPolicy, StageGate, ThresholdPolicy
from policies.rules.tool_classes import PerToolClass, ToolClass, pattern_of, strictest_first
from policies.types import Action, Draft, DraftCall, Outcome, Policy, Request, Span, Stage, TokenSignals, Tool

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMES = ("get_weather", "delete_city", "list_cities")
REQUEST = Request(({"role": "user", "content": "hi"},), tuple(Tool(name, "", CITY) for name in NAMES))


def signals(plan: Sequence[float], values: Sequence[float] = ()) -> TokenSignals:
    """Tokens of these probabilities, of the plan and of values."""
    told = np.log(np.array([*plan, *values], dtype=np.float32))
    zero, n = np.zeros(len(told), dtype=np.float32), len(told)
    spans = [Span.PLAN] * len(plan) + [Span.VALUE] * len(values)
    return TokenSignals(
        told, np.exp(told), zero, zero + 1, np.zeros(n, dtype=np.bool_), np.array(spans, dtype=np.uint8)
    )


def draft(*names: str, plan: Sequence[float] = (0.9,), values: Sequence[float] = (0.9,), **changes: Any) -> Draft:
    """Valid calls of these tools."""
    calls = tuple(DraftCall(name, json.dumps({"city": "Paris"})) for name in names or ("get_weather",))
    made = Draft(Outcome.CALLS, calls, signals=signals(plan, values), plan=tuple(call.name for call in calls))
    return replace(made, **changes)


def judgement(policy: Policy, given: Draft, request: Request = REQUEST) -> tuple[Action, Stage, str]:
    """The verdict that ends the judgement, in the gateway's order."""
    verdict = policy.before(request)
    if verdict.action is Action.CONTINUE:
        verdict = policy.during(request, given.at_plan())
    if verdict.action is Action.CONTINUE:
        verdict = policy.after(request, given)
    return verdict.action, verdict.stage, verdict.reason


WEAKEST, MEAN = NamedScore("weakest_token"), NamedScore("mean_semantic")
probabilities = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4)


# ── one threshold, and stages ────────────────────────────────────────────────────────────────────────────────────────


def test_a_threshold_answers_what_reaches_it_and_gives_up_what_no_longer_can() -> None:
    """The weakest token only falls, so a doubtful plan ends the draft; a mean may still rise, so it does not."""
    doubtful = draft(plan=(0.3,), values=(0.9,) * 20)
    assert judgement(ThresholdPolicy(WEAKEST, 0.5), draft()) == (Action.ANSWER, Stage.AFTER, "accepted")
    assert judgement(ThresholdPolicy(WEAKEST, 0.5), doubtful) == (Action.ESCALATE, Stage.DURING, "low_confidence")
    assert judgement(ThresholdPolicy(MEAN, 0.5), doubtful) == (Action.ANSWER, Stage.AFTER, "accepted")
    assert judgement(ThresholdPolicy(WEAKEST, 0.5), draft(values=(0.4,))) == (
        Action.ESCALATE,
        Stage.AFTER,
        "low_confidence",
    )


def test_a_threshold_that_nobody_could_certify_answers_nothing() -> None:
    """It does not even begin a draft."""
    assert judgement(ThresholdPolicy(WEAKEST, None), draft()) == (Action.ESCALATE, Stage.BEFORE, "nothing_certified")


def test_drafts_without_signals_and_invalid_ones_go_large_whatever_the_threshold() -> None:
    """No score is no permission, and form comes before confidence."""
    bare, invalid = draft(signals=None), draft("nobody")
    assert judgement(ThresholdPolicy(WEAKEST, 0.0), bare)[2] == "no_signals"
    assert judgement(ThresholdPolicy(WEAKEST, 0.0), invalid)[2] == "invalid_call"
    assert judgement(ThresholdPolicy(WEAKEST, 0.0), Draft(Outcome.ASK, signals=signals([1.0])))[2] == "ask"


def test_every_stage_speaks_in_its_turn() -> None:
    """Too many tools before, a doubtful plan during, a doubtful value after; otherwise the draft is the answer."""
    policy = StagedPolicy(
        ThresholdPolicy(MEAN, 0.5, certificate="c"), StageGate(FewTools(), -3.0), StageGate(WEAKEST, 0.6)
    )
    many = replace(REQUEST, tools=(*REQUEST.tools, Tool("more", "", CITY)))
    assert judgement(policy, draft(), many) == (Action.ESCALATE, Stage.BEFORE, "unsure_request")
    assert judgement(policy, draft(plan=(0.5,))) == (Action.ESCALATE, Stage.DURING, "unsure_plan")
    assert judgement(policy, draft(values=(0.1,) * 9)) == (Action.ESCALATE, Stage.AFTER, "low_confidence")
    assert judgement(policy, draft()) == (Action.ANSWER, Stage.AFTER, "accepted")
    assert policy.before(many).certificate == policy.after(REQUEST, draft()).certificate == "c"
    assert (policy.before(many).score, policy.before(many).threshold) == (-4.0, -3.0)


@given(probabilities, probabilities, st.tuples(*[st.floats(0, 1)] * 3), st.tuples(*[st.floats(0, 0.5)] * 3))
def test_raising_any_threshold_never_turns_an_escalation_into_an_answer(
    plan: list[float], values: list[float], at: tuple[float, ...], up: tuple[float, ...]
) -> None:
    """Of every stage, and of all together: the accepted set only shrinks."""
    given_ = draft(plan=plan, values=values)

    def answered(request_: float, plan_: float, last: float) -> bool:
        gates = StageGate(FewTools(), -6.0 * (1 - request_)), StageGate(WEAKEST, plan_)
        return judgement(StagedPolicy(ThresholdPolicy(MEAN, last), *gates), given_)[0] is Action.ANSWER

    low = answered(*at)
    for raised in ({0}, {1}, {2}, {0, 1, 2}):
        high = answered(*(t + up[i] if i in raised else t for i, t in enumerate(at)))
        assert high <= low


@given(probabilities, probabilities, st.floats(0, 1))
def test_giving_up_early_changes_no_decision(plan: list[float], values: list[float], threshold: float) -> None:
    """What `during` escalates `after` would have escalated, so that a certificate covers both."""
    policy, given_ = ThresholdPolicy(WEAKEST, threshold), draft(plan=plan, values=values)
    assert judgement(policy, given_)[0] is policy.after(REQUEST, given_).action


# ── tool classes ─────────────────────────────────────────────────────────────────────────────────────────────────────

CLASSES = (ToolClass("get_*", 0.05, 0.2, "g"), ToolClass("delete_*", 0.01, 0.8, "d"), ToolClass("*", 0.03, 0.5, "r"))


def test_a_draft_belongs_to_the_strictest_class_of_its_tools() -> None:
    """The least rate decides; the rest of the tools is a class of its own, for drafts that call nothing too."""
    policy = PerToolClass(WEAKEST, CLASSES)
    for names, pattern in [
        (("get_weather",), "get_*"),
        (("get_weather", "delete_city"), "delete_*"),
        (("list_cities",), "*"),
        (("get_weather", "list_cities"), "*"),
        ((), "*"),
    ]:
        assert policy.class_of(names).pattern == pattern, names
    for name, p, answered in [("get_weather", 0.3, True), ("list_cities", 0.3, False), ("delete_city", 0.7, False)]:
        made = draft(name, plan=(0.9,), values=(p,))
        verdict = policy.after(REQUEST, made)
        assert (verdict.action is Action.ANSWER) == answered
        assert verdict.certificate == policy.class_of([name]).certificate


def test_a_class_without_a_threshold_goes_large_when_the_plan_names_it() -> None:
    """No argument is spent on what may not be served."""
    policy = PerToolClass(WEAKEST, (ToolClass("delete_*", 0.01, None), ToolClass("*", 0.1, 0.0)))
    assert judgement(policy, draft("delete_city")) == (Action.ESCALATE, Stage.DURING, "nothing_certified")
    assert judgement(policy, draft("get_weather"))[0] is Action.ANSWER


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3), st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_further_tool_never_makes_a_draft_easier_to_serve(names: list[str], p: float, one: float, two: float) -> None:
    """With stricter classes asking for at least as much, adding calls only escalates."""
    low, high = sorted((one, two))
    policy = PerToolClass(WEAKEST, (ToolClass("delete_*", 0.01, high), ToolClass("*", 0.1, low)))
    whole = policy.after(REQUEST, draft(*names, values=(p,))).action is Action.ANSWER
    alone = [policy.after(REQUEST, draft(name, values=(p,))).action is Action.ANSWER for name in names]
    assert whole <= all(alone)


def test_patterns_are_bounded_and_stand_once() -> None:
    """The class of the rest must be there; the strictest pattern that matches is a tool's own."""
    with pytest.raises(ValueError, match="one must be"):
        PerToolClass(WEAKEST, CLASSES[:2])
    with pytest.raises(ValueError, match="once"):
        strictest_first([("a", 0.1), ("a", 0.2)])
    with pytest.raises(ValueError, match="at most 64"):
        strictest_first([(str(i), 0.1) for i in range(65)])
    assert pattern_of(strictest_first([("*", 0.001), ("get_*", 0.1), ("get_w*", 0.05)]), "get_weather") == "get_w*"


# ── gain and budget ──────────────────────────────────────────────────────────────────────────────────────────────────

CALIBRATED = NamedScore("weakest_token", ((0.0, 0.0), (1.0, 1.0)))
PASSES = dict.fromkeys(("single", "parallel", "no_call", "ask"), 0.95)
PRICES = LargePrices(usd_per_character=1e-5, usd_of_answer=0.001, latency_s=2.0)


def gain(**changes: Any) -> Gain:
    return replace(Gain(CALIBRATED, 0.2, PASSES, PRICES), **changes)


def test_the_large_model_is_asked_where_its_gain_is_worth_its_price() -> None:
    """p_L − p_S > λ_cost·C_L + λ_latency·ℓ_L, by hand, on both sides of the line."""
    usd = PRICES.usd(REQUEST)
    made = draft(values=(0.7,))
    edge = (0.95 - 0.7) / usd
    for per_usd, answered in [(edge * 0.99, False), (edge * 1.01, True), (0.0, False)]:
        verdict = gain(pass_per_usd=per_usd).after(REQUEST, made)
        assert (verdict.action is Action.ANSWER) == answered
        assert verdict.probability == pytest.approx(0.7, abs=1e-6)
        assert verdict.reason == ("accepted" if answered else "gain_of_large")
    assert gain(pass_per_second=0.126).after(REQUEST, made).action is Action.ANSWER
    assert gain(pass_per_second=0.124).after(REQUEST, made).action is Action.ESCALATE


def test_a_longer_request_costs_more() -> None:
    """The price is by the characters of messages and tools."""
    longer = replace(REQUEST, messages=({"role": "user", "content": "hi" + "x" * 1000},))
    assert PRICES.usd(longer) - PRICES.usd(REQUEST) == pytest.approx(0.01)


@given(st.floats(0.01, 1), st.floats(0, 1e6), st.floats(0, 1e3))
def test_no_price_serves_what_lies_under_the_floor(p: float, per_usd: float, per_second: float) -> None:
    """Whatever the λ, the accepted set is a part of `score ≥ floor`: the floor's certificate covers it."""
    made = draft(plan=(1.0,), values=(p,))
    verdict = gain(pass_per_usd=per_usd, pass_per_second=per_second).after(REQUEST, made)
    floor = ThresholdPolicy(CALIBRATED, 0.2).after(REQUEST, made)
    assert (verdict.action is Action.ANSWER) <= (floor.action is Action.ANSWER)


def test_what_a_draft_is_decides_what_the_large_model_would_do() -> None:
    """One call, several, none, a question: each has its own p_L."""
    assert kind_of(draft()) == "single"
    assert kind_of(draft("get_weather", "get_weather")) == "parallel"
    assert [kind_of(Draft(outcome)) for outcome in (Outcome.NO_CALL, Outcome.ASK)] == ["no_call", "ask"]
    weak_at_many = gain(large_passes={**PASSES, "parallel": 0.5})
    assert weak_at_many.after(REQUEST, draft("get_weather", "get_weather", values=(0.7,))).action is Action.ANSWER


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def traffic(
    controller: BudgetController, clock: Clock, hours: float, per_hour: float, usd: float, floor: float, seed: int = 0
) -> list[tuple[float, float, bool]]:
    """Requests at random moments through a budget's policy: (moment, dollars spent, served under the floor)."""
    policy = Budgeted(gain(floor=floor, judge=CALIBRATED), controller.price)
    rng, made, end = np.random.default_rng(seed), [], clock.now + hours * 3600
    while clock.now < end:
        clock.now += rng.exponential(3600 / per_hour)
        p = float(rng.beta(3, 1))
        answered = policy.after(REQUEST, draft(plan=(1.0,), values=(max(p, 1e-6),))).action is Action.ANSWER
        spent = 0.0 if answered else usd * float(rng.uniform(0.5, 1.5))
        if not answered:
            controller.spend(spent)
        made.append((clock.now, spent, answered and p < floor))
    return made


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_budget_is_used_up_and_never_exceeded(share: float) -> None:
    """From the second hour on about the whole budget is spent, and no rolling hour takes more than the budget and one
    answer, as long as what must go large at any price fits into it."""
    clock = Clock()
    per_hour, usd, floor = 900.0, 0.01, 0.3
    free = (0.95**3) * per_hour * usd  # what is spent where money is no matter: p_S under p_L
    budget = share * free
    controller = BudgetController(budget, usd, clock)
    made = traffic(controller, clock, 5, per_hour, usd, floor)
    times, spent = np.array([one[0] for one in made]), np.array([one[1] for one in made])
    assert not any(one[2] for one in made)
    for start in range(0, 4 * 3600, 60):
        inside = (times > start) & (times <= start + 3600)
        assert spent[inside].sum() <= budget + 1.5 * usd
    steady = spent[times > 3600].sum() / 4
    assert steady >= 0.85 * budget


def test_what_must_go_large_goes_large_over_the_budget_too() -> None:
    """Quality may not fall for the budget's sake: under the floor nothing is served, spent or not."""
    clock = Clock()
    controller = BudgetController(0.01, 0.01, clock)
    made = traffic(controller, clock, 1, 600, 0.01, floor=0.9)
    assert not any(one[2] for one in made)
    assert controller.price() == math.inf
    assert controller.spent_usd() > 0.01


def test_the_price_rests_within_the_dead_band_and_falls_when_nothing_is_spent() -> None:
    """Spending exactly the budget moves nothing; silence makes the large model free again; an hour forgets."""
    clock = Clock()
    controller = BudgetController(36.0, 0.01, clock)
    for _ in range(3600):
        clock.now += 1
        controller.spend(0.01)
    rested = controller.price()
    assert rested == math.inf, "the budget of this hour is spent to the cent"
    clock.now += 1801
    assert controller.price() == 0.0
    assert controller.spent_usd() == pytest.approx(18.0, abs=0.05)
    clock.now += 7200
    assert controller.spent_usd() == 0.0


def test_an_answer_of_unknown_cost_is_charged_as_a_mean_one() -> None:
    """Unknown is not free; and a controller that takes over goes on from there."""
    clock = Clock()
    controller = BudgetController(1.0, 0.25, clock)
    controller.spend(None)
    heir = BudgetController(0.5, 0.25, clock)
    heir.go_on_from(controller)
    heir.spend(0.25)
    assert (controller.spent_usd(), heir.spent_usd()) == (0.25, 0.5)
    assert heir.price() == math.inf
    assert controller.price() < math.inf
    for budget, mean in ((0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="above zero"):
            BudgetController(budget, mean, clock)


def test_a_score_that_is_no_judge_is_refused() -> None:
    """Names and calibrations are checked when the judge is made."""
    for calibration in (((0.0, 0.5), (0.0, 0.6)), ((0.0, 0.5), (1.0, 0.4)), ((0.0, 1.5),)):
        with pytest.raises(ValueError, match="calibration"):
            NamedScore("weakest_token", calibration)
    with pytest.raises(ValueError, match="score"):
        NamedScore("mood")
    assert WEAKEST.probability(0.5) is None
    assert CALIBRATED.explain(REQUEST, draft(values=(0.5,)))[0] == ("weakest_token", pytest.approx(0.5))
