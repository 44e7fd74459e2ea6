"""Policies that weigh money and time: escalate where the large model's gain is worth its price.

The rule is p_L − p_S > λ_cost·C_L + λ_latency·ℓ_L (Jitkrittum et al. 2023, arXiv 2307.02764): p_S from the judge's
calibrated probability, p_L by what the draft is (one call, several, none, a question), C_L by the request's length. A
`floor` on the raw score holds whatever the price: a policy with a floor answers a part of what the floor's threshold
would, so a harm certificate of that threshold covers it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from policies.rules.judge import Judge
from policies.rules.single import OnOther, before_draft, judge_validity
from policies.rules.thresholds import threshold_verdict
from policies.types import Action, Draft, Outcome, Request, Stage, Verdict

HORIZON_S = 3600.0
"""Over which a budget is counted: a rolling hour."""


@dataclass(frozen=True, slots=True)
class LargePrices:
    """The large model's price and latency for a request, as far as they can be known before it is asked."""

    usd_per_character: float
    """USD a character of the request's messages and tools as JSON."""
    usd_of_answer: float
    """USD of a mean answer, with what every request costs whatever its length."""
    latency_s: float
    """Seconds that a mean answer takes."""

    def usd(self, request: Request) -> float:
        """C_L of one request."""
        tools = [[tool.name, tool.description, tool.parameters] for tool in request.tools]
        characters = len(json.dumps([list(map(dict, request.messages)), tools], ensure_ascii=False, default=str))
        return self.usd_of_answer + self.usd_per_character * characters


def kind_of(draft: Draft) -> str:
    """Return the kind of a draft: `single`, `parallel`, `no_call` or `ask`."""
    if draft.outcome is Outcome.CALLS:
        return "single" if len(draft.calls) < 2 else "parallel"
    return "ask" if draft.outcome is Outcome.ASK else "no_call"


@dataclass(frozen=True, slots=True)
class Gain:
    """Escalate a valid draft where the large model's gain is worth its price, or the score is under the floor."""

    judge: Judge
    """With probabilities."""
    floor: float | None
    """Least raw score that may be answered small; None: nothing is answered small."""
    large_passes: Mapping[str, float]
    """p_L by `kind_of` the draft."""
    prices: LargePrices
    pass_per_usd: float = 0.0
    """λ_cost: what pass rate a dollar must buy."""
    pass_per_second: float = 0.0
    """λ_latency."""
    on_no_call: OnOther = "escalate"
    on_ask: OnOther = "escalate"
    certificate: str | None = None

    @property
    def name(self) -> str:
        return f"gain of large over {self.judge.name}, {self.pass_per_usd:g}/USD, {self.pass_per_second:g}/s"

    def before(self, request: Request) -> Verdict:
        return replace(before_draft(request), certificate=self.certificate)

    def during(self, request: Request, draft: Draft) -> Verdict:
        return Verdict(Action.CONTINUE, Stage.DURING, "drafting", certificate=self.certificate)

    def after(self, request: Request, draft: Draft) -> Verdict:
        price = self.pass_per_usd * self.prices.usd(request) + self.pass_per_second * self.prices.latency_s
        return self.after_at(price, request, draft, "gain_of_large")

    def after_at(self, price: float, request: Request, draft: Draft, reason: str) -> Verdict:
        """The verdict where asking the large model must gain more than `price`; `reason` is given where it does."""
        verdict = judge_validity(request, draft, self.on_no_call, self.on_ask)
        verdict = verdict or threshold_verdict(self.judge, self.floor, request, draft)
        p_small, p_large = verdict.probability, self.large_passes[kind_of(draft)]
        if verdict.action is Action.ANSWER and p_small is not None and p_large - p_small > price:
            verdict = replace(verdict, action=Action.ESCALATE, reason=reason)
        return replace(verdict, certificate=self.certificate)


@dataclass(frozen=True, slots=True)
class Budgeted:
    """`Gain` at a price that a budget sets: the scarcer the money, the more the large model must gain."""

    gain: Gain
    price: Callable[[], float]
    """Returns the price of one mean request, in pass rate: read at each verdict, from a `BudgetController`."""

    @property
    def name(self) -> str:
        return f"budget over {self.gain.judge.name}"

    def before(self, request: Request) -> Verdict:
        return self.gain.before(request)

    def during(self, request: Request, draft: Draft) -> Verdict:
        return self.gain.during(request, draft)

    def after(self, request: Request, draft: Draft) -> Verdict:
        return self.gain.after_at(self.price(), request, draft, "gain_of_large")


class BudgetController:
    """The price of asking the large model that keeps its cost under so many dollars an hour. Owned by one process.

    An integral controller with bounds: the price rises while dollars are spent faster than the budget, and falls while
    slower; within the dead band it rests. What was spent in the last rolling hour is counted exactly (to the second),
    and once it has reached the budget the price is infinite until enough of it is over an hour ago. So a rolling hour
    costs at most the budget, and what was under way when it was reached, and what goes large at any price: requests
    that cannot be drafted, invalid drafts and scores under the floor, for quality may not fall for the budget's sake.

    Args:
        usd_per_hour: the budget.
        usd_a_request: a mean request's cost; charged where an answer's cost is not known.
        clock: seconds, monotonic.
    """

    GAIN_PER_HOUR = 12.0
    """The price changes by so much in an hour in which twice the budget is spent: by one in five minutes."""
    DEAD_BAND = 0.05
    """Relative to the budget."""
    RATE_OVER_S = 60.0
    """The rate of spending is an exponential mean over so long."""

    def __init__(self, usd_per_hour: float, usd_a_request: float, clock: Callable[[], float]) -> None:
        if not usd_per_hour > 0 or not usd_a_request > 0:
            raise ValueError("usd_per_hour: a budget and a mean cost must be above zero")
        self._budget, self._mean, self._clock = usd_per_hour, usd_a_request, clock
        self._spent: deque[tuple[float, float]] = deque()
        """(second, dollars) of the last hour: at most 3,601 entries."""
        self._sum = 0.0
        self._integral = 0.0
        self._usd_per_s = 0.0
        self._at = clock()

    def go_on_from(self, other: BudgetController) -> None:
        """Take over what another controller on the same clock has counted: its budget or mean was another."""
        self._spent, self._sum = deque(other._spent), other._sum
        self._integral, self._usd_per_s, self._at = other._integral, other._usd_per_s, other._at

    @property
    def usd_per_hour(self) -> float:
        """The budget."""
        return self._budget

    def spend(self, usd: float | None) -> None:
        """One answer of the large model was paid for; None: at an unknown price."""
        now = self._advance()
        paid = self._mean if usd is None else usd
        second = float(int(now))
        if self._spent and self._spent[-1][0] == second:
            self._spent[-1] = (second, self._spent[-1][1] + paid)
        else:
            self._spent.append((second, paid))
        self._sum += paid
        self._usd_per_s += paid / self.RATE_OVER_S

    def spent_usd(self) -> float:
        """In the last rolling hour."""
        self._advance()
        return self._sum

    def price(self) -> float:
        """Return what a mean request to the large model must gain, in pass rate: in [0, 1], or infinite where the
        budget is spent."""
        self._advance()
        return float("inf") if self._sum >= self._budget else self._integral

    def _advance(self) -> float:
        now = self._clock()
        while self._spent and self._spent[0][0] <= now - HORIZON_S - 1:
            self._sum -= self._spent.popleft()[1]
        if not self._spent:
            self._sum = 0.0  # rounding errors do not pile up
        passed = max(0.0, now - self._at)
        if passed:
            self._integrate(passed)
            self._at = now
        return now

    def _integrate(self, passed_s: float) -> None:
        """Follow the decaying rate over an interval in which nothing was spent, in steps of at most ten seconds."""
        budget_per_s = self._budget / HORIZON_S
        left = min(passed_s, HORIZON_S)
        while left > 0:
            step = min(left, 10.0)
            error = self._usd_per_s / budget_per_s - 1.0
            if abs(error) > self.DEAD_BAND:
                change = self.GAIN_PER_HOUR * min(error, 1.0) * step / HORIZON_S
                self._integral = min(1.0, max(0.0, self._integral + change))
            self._usd_per_s *= math.exp(-step / self.RATE_OVER_S)
            left -= step
