"""The state of a running experiment: each arm against the control, is it sound, has a guardrail gone, may it ship?

Every figure may be read at any time: intervals are confidence sequences, the sample ratio is watched by a Bayes
factor, and a guardrail that once went stays gone, since it is read off the whole path. Errors are shared out evenly:
`alpha` over the treatments for the ship rule (each of its two conditions at full level, since both must hold), and
`alpha` over treatments and guardrails for the automatic stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evaluation.experiments.comparison import Difference, Sample, compare, difference_path, level_path, path
from evaluation.experiments.sample_ratio import SampleRatio, sample_ratio
from evaluation.experiments.sequential import optimal_rho
from evaluation.experiments.units import Units
from evaluation.metrics import Floats, MetricError

Advice = Literal["ship", "stop", "reject", "void", "continue"]
P95_SHARE = 0.05
"""The share of requests that may be slower than the 95th percentile."""


@dataclass(frozen=True, slots=True)
class Guardrails:
    """Limits on harm; None: not watched."""

    p95_latency_s: float | None = None
    """Absolute: an arm's 95th percentile."""
    invalid_calls: float | None = 0.05
    """Rise over the control's share of invalid drafts."""
    tool_errors: float | None = 0.02
    """Rise over the control's share of calls that their tool refused."""

    def watched(self) -> int:
        """The number of limits that are set."""
        return sum(limit is not None for limit in (self.p95_latency_s, self.invalid_calls, self.tool_errors))


@dataclass(frozen=True, slots=True)
class ExperimentPlan:
    """The plan of an experiment, fixed before it began."""

    weights: Mapping[str, float]
    """Arms and their weights; the first is the control."""
    planned_units: int = 2000
    """Units of all arms together; intervals are narrowest there."""
    alpha: float = 0.05
    margin: float = 0.01
    """Pass rate that a treatment may lose, absolute."""
    guardrails: Guardrails = Guardrails()

    def __post_init__(self) -> None:
        if len(self.weights) < 2 or not all(w > 0 and math.isfinite(w) for w in self.weights.values()):
            raise MetricError("weights: an experiment needs two arms or more, each with a positive weight")
        if not 0 < self.alpha < 1 or self.margin < 0 or self.planned_units < 1:
            raise MetricError("an experiment needs alpha in (0, 1), margin of at least 0 and a planned size")


@dataclass(frozen=True, slots=True)
class ArmState:
    """One arm's own figures over closed units; None: nothing is known of it."""

    name: str
    units: int
    requests: int
    judged: int
    """Requests whose outcome is known."""
    pass_rate: float | None
    cost_usd: float | None
    """A request."""
    latency_s: float | None
    p95_latency_s: float | None
    invalid_calls: float | None
    tool_errors: float | None


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One limit for one arm."""

    name: str
    limit: float
    lower: float
    """Lower end of what the limit is held against: the rise over the control, or the share of slow requests."""
    tripped_at: int | None
    """Units of both arms (of the arm alone for latency) when it went; None: it stands."""


@dataclass(frozen=True, slots=True)
class Treatment:
    """One arm against the control."""

    name: str
    pass_rate: Difference | None
    cost_usd: Difference | None
    latency_s: Difference | None
    guardrails: tuple[Guardrail, ...]
    advice: Advice


@dataclass(frozen=True, slots=True)
class State:
    """The state of the whole experiment."""

    arms: tuple[ArmState, ...]
    treatments: tuple[Treatment, ...]
    ratio: SampleRatio
    mixed_units: int
    open_units: int
    """Entered, and their window has not closed."""

    @property
    def stopped(self) -> bool:
        """True if a guardrail has tripped: nothing but the control should be served."""
        return any(rail.tripped_at is not None for one in self.treatments for rail in one.guardrails)


def state(units: Units, plan: ExperimentPlan) -> State:
    """Judge an experiment. Units of arms that the plan does not know are an error: it is another experiment's."""
    unknown = set(units.exposed) - set(plan.weights)
    if unknown:
        raise MetricError(f"arms {sorted(unknown)} are not in the plan: a changed experiment needs a new name")
    ratio = sample_ratio([units.exposed.get(name, 0) for name in plan.weights], list(plan.weights.values()))
    control, *treatments = plan.weights
    return State(
        arms=tuple(_arm(units, name) for name in plan.weights),
        treatments=tuple(_treatment(units, plan, control, name, ratio) for name in treatments),
        ratio=ratio,
        mixed_units=units.mixed,
        open_units=sum(units.exposed.values()) - len(units.arm),
    )


def _arm(units: Units, name: str) -> ArmState:
    mine = units.arm[units.of_request] == name
    requests = units.requests

    def mean(values: Floats) -> float | None:
        known = values[mine & ~np.isnan(values)]
        return float(known.mean()) if len(known) else None

    return ArmState(
        name=name,
        units=int((units.arm == name).sum()),
        requests=int(mine.sum()),
        judged=int((mine & ~np.isnan(requests.passed)).sum()),
        pass_rate=mean(requests.passed),
        cost_usd=mean(requests.cost_usd),
        latency_s=mean(requests.latency_s),
        p95_latency_s=float(np.quantile(requests.latency_s[mine], 1 - P95_SHARE)) if mine.any() else None,
        invalid_calls=mean(requests.invalid),
        tool_errors=mean(requests.tool_error),
    )


def _treatment(units: Units, plan: ExperimentPlan, control: str, name: str, ratio: SampleRatio) -> Treatment:
    alpha = plan.alpha / (len(plan.weights) - 1)
    share = (plan.weights[control] + plan.weights[name]) / sum(plan.weights.values())
    rho = optimal_rho(plan.planned_units * share, alpha)
    arms = (units.arm == control, units.arm == name)

    def difference(values: Floats) -> Difference | None:
        numerator, denominator = units.sums(values)
        x = units.covariates
        samples = [Sample(numerator[arm], denominator[arm], x[arm] if x.shape[1] else None) for arm in arms]
        return compare(*samples, rho=rho, alpha=alpha)

    requests = units.requests
    rails = _guardrails(units, plan.guardrails, arms, alpha=alpha, planned=plan.planned_units * share)
    passed, cost = difference(requests.passed), difference(requests.cost_usd)
    advice = advise(passed, cost, plan.margin, sound=not ratio.mismatch, safe=all(r.tripped_at is None for r in rails))
    return Treatment(name, passed, cost, difference(requests.latency_s), rails, advice)


def advise(passed: Difference | None, cost: Difference | None, margin: float, *, sound: bool, safe: bool) -> Advice:
    """The ship rule.

    `void` without a sound sample ratio; `stop` where a guardrail has gone; `ship` where the pass rate surely lost less
    than the margin and the cost surely fell; `reject` where the pass rate surely lost more than the margin or the cost
    surely rose; else `continue`.
    """
    if not sound:
        return "void"
    if not safe:
        return "stop"
    if passed is not None and cost is not None and passed.lower > -margin and cost.upper < 0:
        return "ship"
    if (passed is not None and passed.upper < -margin) or (cost is not None and cost.lower > 0):
        return "reject"
    return "continue"


def _guardrails(
    units: Units,
    limits: Guardrails,
    arms: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
    *,
    alpha: float,
    planned: float,
) -> tuple[Guardrail, ...]:
    alpha = alpha / max(1, limits.watched())
    rho = optimal_rho(planned, alpha)
    either = arms[0] | arms[1]
    rails = []
    if limits.p95_latency_s is not None:
        slow = (units.requests.latency_s > limits.p95_latency_s).astype(np.float64)
        numerator, denominator = (column[arms[1]] for column in units.sums(slow))
        lower, _ = level_path(path(numerator, denominator, np.ones_like(numerator)), rho=rho, alpha=alpha)
        rails.append(_rail("p95_latency_s", limits.p95_latency_s, lower, P95_SHARE))
    requests = units.requests
    for name, limit, values in (
        ("invalid_calls", limits.invalid_calls, requests.invalid),
        ("tool_errors", limits.tool_errors, requests.tool_error),
    ):
        if limit is not None:
            numerator, denominator = (column[either] for column in units.sums(values))
            control, treatment = (path(numerator, denominator, arm[either]) for arm in arms)
            lower, _ = difference_path(control, treatment, rho=rho, alpha=alpha)
            rails.append(_rail(name, limit, lower, limit))
    return tuple(rails)


def _rail(name: str, limit: float, lower: Floats, bound: float) -> Guardrail:
    """A p95 above L is a share of more than 5 % slower than L, so `bound` is 5 % there and the limit itself else."""
    beyond = np.flatnonzero(lower > bound)
    last = float(lower[-1]) if len(lower) else -math.inf
    return Guardrail(name, limit, last, int(beyond[0]) + 1 if len(beyond) else None)
