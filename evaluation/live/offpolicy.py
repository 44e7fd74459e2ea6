"""Estimates of what another policy would have earned, from the decisions of the one that ran and their logged
probabilities.

Contextual bandit: request x, action a (answer small, escalate) drawn with the logged probability b(a | x), reward r
seen for that action only. A target policy with probabilities π(a | x) is worth E[Σₐ π(a | x)·r(x, a)]. Shadow audits
are the same thing: the action "also ask the other model" is drawn with probability e(x), and w = audited/e(x).

Not guaranteed: anything where the running policy gave an action no chance that the target would take. Such rows are an
error here, not a silent bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Floats, MetricError

Method = Literal["ips", "snips", "dr"]
MIN_ESS = 30.0
"""Effective rows under which an estimate is not a figure to decide by."""


@dataclass(frozen=True, slots=True)
class PolicyEstimate:
    """A target policy's value a request, in the rewards' unit."""

    method: Method
    value: float
    standard_error: float
    """Rows taken as independent."""
    rows: int
    ess: float
    """Effective rows, (Σw)²/Σw² (Kong 1992)."""

    @property
    def reliable(self) -> bool:
        """True if there are at least `MIN_ESS` effective rows."""
        return self.ess >= MIN_ESS

    def __str__(self) -> str:
        """The value and its error, or, with too few effective rows, why none is given."""
        if not self.reliable:
            return f"no estimate: {self.ess:.1f} effective rows of {self.rows}, {MIN_ESS:.0f} are needed"
        return f"{self.value:.4f} ± {self.standard_error:.4f} ({self.method}, {self.ess:.0f} effective rows)"


def importance_weights(target: npt.ArrayLike, logged: npt.ArrayLike) -> Floats:
    """π(a | x)/b(a | x) of the actions that were taken; both (n,).

    Raises:
        MetricError: a probability outside [0, 1], or an action that was taken with a logged probability of 0.
    """
    pi, b = _vector("target", target), _vector("logged", logged)
    if pi.shape != b.shape or ((pi < 0) | (pi > 1)).any():
        raise MetricError("target: needs one probability a row, in [0, 1]")
    if ((b <= 0) | (b > 1)).any():
        raise MetricError("logged: needs one probability a row, in (0, 1]: what was done cannot have been impossible")
    return np.asarray(pi / b)


def effective_rows(weights: npt.ArrayLike) -> float:
    """(Σw)²/Σw²; 0 where no row has any weight."""
    w = _vector("weights", weights)
    squares = float((w**2).sum())
    return float(w.sum()) ** 2 / squares if squares > 0 else 0.0


def ips(rewards: npt.ArrayLike, weights: npt.ArrayLike) -> PolicyEstimate:
    """Mean of w·r (Horvitz and Thompson 1952): unbiased, of large variance where weights are large.

    Args:
        rewards: (n,) of the actions taken. weights: (n,) from `importance_weights`; 0 for a row that was not observed.
    """
    r, w = _pair(rewards, weights)
    return _estimate("ips", w * r, float((w * r).mean()), w)


def snips(rewards: npt.ArrayLike, weights: npt.ArrayLike) -> PolicyEstimate:
    """Σ w·r/Σ w (Swaminathan and Joachims 2015): a little biased, never outside the rewards' range, steadier."""
    r, w = _pair(rewards, weights)
    if not w.sum() > 0:
        return PolicyEstimate("snips", float("nan"), float("nan"), len(r), 0.0)
    value = float((w * r).sum() / w.sum())
    return _estimate("snips", value + w * (r - value) / w.mean(), value, w)


def doubly_robust(
    rewards: npt.ArrayLike, weights: npt.ArrayLike, predicted: npt.ArrayLike, predicted_target: npt.ArrayLike
) -> PolicyEstimate:
    """Mean of q̂(x, π) + w·(r − q̂(x, a)) (Dudík, Langford and Li 2011, arXiv 1103.4601).

    Right in the limit where either the logged probabilities or the reward model is. The reward model must not have been
    fitted on these rows: fit it on others, or crosswise.

    Args:
        predicted: (n,) q̂ of the action taken. predicted_target: (n,) Σₐ π(a | x)·q̂(x, a).
    """
    r, w = _pair(rewards, weights)
    q, q_target = _vector("predicted", predicted), _vector("predicted_target", predicted_target)
    if q.shape != r.shape or q_target.shape != r.shape:
        raise MetricError("predicted and predicted_target: one number a row each")
    terms = q_target + w * (r - q)
    return _estimate("dr", terms, float(terms.mean()), w)


def _estimate(method: Method, terms: Floats, value: float, weights: Floats) -> PolicyEstimate:
    n = len(terms)
    error = float(terms.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    return PolicyEstimate(method, value, error, n, effective_rows(weights))


def _pair(rewards: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Floats, Floats]:
    r, w = _vector("rewards", rewards), _vector("weights", weights)
    if r.shape != w.shape or (w < 0).any():
        raise MetricError("weights: needs one number of at least 0 for each reward")
    return r, w


def _vector(name: str, values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise MetricError(f"{name}: needs finite numbers, one a row, and at least one row")
    return array


# ── shadow audits ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """The probability that an accepted draft is audited: e(p̂) = min(1, max(floor, scale·√(p̂(1 − p̂))))."""

    scale: float
    floor: float

    def propensity(self, probability: npt.ArrayLike) -> Floats:
        """e of drafts with these probabilities of passing; elementwise, in [floor, 1]."""
        p = np.asarray(probability, dtype=np.float64)
        if not ((p >= 0) & (p <= 1)).all():
            raise MetricError("probability: must lie in [0, 1]")
        return np.asarray(np.clip(self.scale * np.sqrt(p * (1.0 - p)), self.floor, 1.0))


def plan_audits(probabilities: npt.ArrayLike, *, rate: float, floor: float) -> AuditPlan:
    """The plan that audits a share `rate` of drafts like these on average.

    The doubly robust mean of p̂ + (audited/e)·(y − p̂) over n drafts has variance Σ p(1 − p)/e/n² and terms without e;
    at a given Σ e that is least at e ∝ √(p(1 − p)) (Neyman 1934). The floor keeps 1/e, and so the variance where p̂ is
    wrong, bounded; the scale makes up for it.

    Args:
        probabilities: (n,) P(pass) of recent accepted drafts.
        rate: mean share to audit, from `floor` to 1.
        floor: least probability of an audit, above 0.
    """
    p = _vector("probabilities", probabilities)
    if not 0.0 < floor <= rate <= 1.0:
        raise MetricError("rate, floor: need 0 < floor ≤ rate ≤ 1")
    low, high = 0.0, 1.0 / max(float(np.sqrt(p * (1.0 - p)).max()), 1e-9)
    while AuditPlan(high, floor).propensity(p).mean() < rate and high < 1e12:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2.0
        low, high = (middle, high) if AuditPlan(middle, floor).propensity(p).mean() < rate else (low, middle)
    return AuditPlan(low, floor)
