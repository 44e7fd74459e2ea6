"""Thresholds with a finite-sample guarantee: with confidence 1 − δ, at most α of the requests are harmed.

Each threshold of a fixed order is tested by the exact binomial test, H0: its rate is above α, with p-value
P(Bin(n, α) ≤ k). The walk goes from the strictest threshold to the loosest and stops at the first that is not rejected
at δ (fixed-sequence testing: no correction for many thresholds; Bauer 1991, and Angelopoulos et al. 2021, "Learn then
Test", arXiv 2110.01052, where risks in place of binomial counts are tested).

The guarantee is over the draw of the rows that certify: these must be independent, like the traffic to come, and used
for nothing else. It says nothing once model, adapter, pattern, score or traffic change. No threshold is returned where
none can be certified: escalate everything then.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from policies.types import BoolArray

Kind = Literal["harm", "risk"]
Floats = npt.NDArray[np.float64]

LEAST_ACCEPTED = 150
"""Accepted rows from which on a selective risk is tested: with fewer no risk of 2 % can be certified at 90 %."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate: the bound that was shown for answering small where `score ≥ threshold`."""

    kind: Kind
    """`harm`: accepted, wrong, and the large model right, over all requests. `risk`: wrong, over the accepted."""
    threshold: float
    alpha: float
    """The rate that is not exceeded, with probability 1 − `delta` over the draw of the rows."""
    delta: float
    rows: int
    accepted: int
    errors: int
    bound: float
    """Clopper–Pearson upper bound of the rate at this threshold alone, at confidence 1 − `delta`; at most `alpha`."""

    @property
    def share_accepted(self) -> float:
        """The share of the rows that were accepted."""
        return self.accepted / self.rows


def certify_harm(
    scores: npt.ArrayLike, small_passed: npt.ArrayLike, large_passed: npt.ArrayLike, *, alpha: float, delta: float
) -> Certificate | None:
    """The loosest threshold at which, with confidence 1 − `delta`, at most `alpha` of all requests are made worse.

    Args:
        scores: (n,); −inf marks a draft that is never served. Drafts are accepted at `score ≥ threshold`.
        small_passed: (n,) whether the small model's answer is right.
        large_passed: (n,) whether the large model's would be.

    Returns:
        None where not even the strictest threshold can be certified.

    Raises:
        ValueError: arrays of different lengths, NaN, or rates outside (0, 1).
    """
    values, wrong = _checked(scores, small_passed, alpha, delta)
    harmed = wrong & np.asarray(large_passed, dtype=bool)
    n = len(values)
    if n == 0:
        return None
    thresholds, accepted, errors = _walk(values, harmed)
    return _last_rejected("harm", thresholds, accepted, errors, np.full(len(thresholds), n), n, alpha, delta)


def certify_risk(
    scores: npt.ArrayLike,
    small_passed: npt.ArrayLike,
    *,
    alpha: float,
    delta: float,
    least_accepted: int = LEAST_ACCEPTED,
) -> Certificate | None:
    """The loosest threshold at which, with confidence 1 − `delta`, at most `alpha` of the accepted answers are wrong.

    The walk begins at the strictest threshold that accepts `least_accepted` rows, which must be set beforehand.
    Arguments and errors as for `certify_harm`.
    """
    values, wrong = _checked(scores, small_passed, alpha, delta)
    thresholds, accepted, errors = _walk(values, wrong)
    enough = accepted >= least_accepted
    return _last_rejected(
        "risk", thresholds[enough], accepted[enough], errors[enough], accepted[enough], len(values), alpha, delta
    )


def fixed_sequence(errors: npt.ArrayLike, rows: npt.ArrayLike, *, alpha: float, delta: float) -> int:
    """Return how many policies of an order, from its beginning, are certified to have a rate of at most `alpha`.

    For several thresholds at once: learn the order (a Pareto front, say) on one part of the rows, count on another.

    Args:
        errors: (m,) errors of each policy, in the order that was set beforehand.
        rows: (m,) or a number, rows that each was counted on.
    """
    from scipy.special import bdtr  # here, because a gateway that serves a certified policy needs no scipy

    k, n = np.broadcast_arrays(np.asarray(errors), np.asarray(rows))
    rejected = bdtr(k, n, alpha) <= delta  # P(Bin(n, α) ≤ k)
    return int(len(rejected) if rejected.all() else np.argmin(rejected))


def certify_classes(
    scores: npt.ArrayLike,
    small_passed: npt.ArrayLike,
    large_passed: npt.ArrayLike,
    classes: Sequence[str],
    alphas: Mapping[str, float],
    *,
    delta: float,
) -> dict[str, Certificate | None]:
    """A threshold for each class of rows, each on its own rows: harm over the class's rows is at most its α.

    Each of the m classes is tested at δ/m (Bonferroni), so that all hold together with confidence 1 − `delta`.

    Args:
        classes: (n,) a key of `alphas` for each row. Other arguments as for `certify_harm`.
    """
    values, small, large = np.asarray(scores), np.asarray(small_passed), np.asarray(large_passed)
    of = np.asarray(classes, dtype=object)
    made = {}
    for name, alpha in alphas.items():
        here = of == name
        made[name] = certify_harm(values[here], small[here], large[here], alpha=alpha, delta=delta / len(alphas))
    return made


def certify_along(
    accepted: Sequence[BoolArray], harmed: npt.ArrayLike, thresholds: Sequence[float], *, alpha: float, delta: float
) -> tuple[int, Certificate] | None:
    """The last policy of an order that is certified to harm at most `alpha` of all rows, by fixed-sequence testing.

    The order must have been set on other rows: along a Pareto front that was learned there, say.

    Args:
        accepted: m arrays of shape (n,): which rows each policy answers small.
        harmed: (n,) rows where the small model is wrong and the large one right.
        thresholds: (m,) what the certificate shall name of each policy.

    Returns:
        Its place in the order and its certificate; None where not even the first is certified.
    """
    wrong = np.asarray(harmed, dtype=bool)
    errors = [int((taken & wrong).sum()) for taken in accepted]
    count = fixed_sequence(errors, len(wrong), alpha=alpha, delta=delta) if len(errors) and len(wrong) else 0
    if count == 0:
        return None
    at, n = count - 1, len(wrong)
    bound = upper_bound(errors[at], n, delta)
    made = Certificate("harm", thresholds[at], alpha, delta, n, int(accepted[at].sum()), errors[at], bound)
    return at, made


def upper_bound(errors: int, rows: int, delta: float) -> float:
    """Clopper–Pearson: the rate that is exceeded with probability at most `delta`. 1 where all rows are errors."""
    from scipy.special import betaincinv

    return 1.0 if errors >= rows else float(betaincinv(errors + 1, rows - errors, 1.0 - delta))


def one_of_each(clusters: Sequence[Hashable], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Indices of one row of each cluster, at random, in row order: rows of one conversation are not independent."""
    last: dict[Hashable, int] = {}
    for index in rng.permutation(len(clusters)):
        last[clusters[int(index)]] = int(index)
    return np.array(sorted(last.values()), dtype=np.int64)


def _checked(
    scores: npt.ArrayLike, small_passed: npt.ArrayLike, alpha: float, delta: float
) -> tuple[Floats, BoolArray]:
    values, passed = np.asarray(scores, dtype=np.float64), np.asarray(small_passed, dtype=bool)
    if values.shape != passed.shape or values.ndim != 1:
        raise ValueError(f"scores of shape {values.shape} and answers of shape {passed.shape}")
    if np.isnan(values).any():
        raise ValueError("scores: NaN")
    if not 0.0 < alpha < 1.0 or not 0.0 < delta < 1.0:
        raise ValueError(f"alpha {alpha} and delta {delta} must lie between 0 and 1")
    return values, ~passed


def _walk(values: Floats, errors: BoolArray) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Thresholds from the strictest to the loosest, rows accepted, errors among them; equal scores go as one."""
    fit = np.isfinite(values)
    order = np.argsort(-values[fit], kind="stable")
    ordered, counted = values[fit][order], np.cumsum(errors[fit][order])
    last = np.flatnonzero(np.append(np.diff(ordered) != 0, True)) if len(ordered) else np.zeros(0, dtype=np.int64)
    return ordered[last], last + 1, counted[last].astype(np.int64)


def _last_rejected(
    kind: Kind,
    thresholds: Floats,
    accepted: npt.NDArray[np.int64],
    errors: npt.NDArray[np.int64],
    of: npt.NDArray[np.int64],
    rows: int,
    alpha: float,
    delta: float,
) -> Certificate | None:
    count = fixed_sequence(errors, of, alpha=alpha, delta=delta) if len(thresholds) else 0
    if count == 0:
        return None
    at = count - 1
    return Certificate(
        kind=kind,
        threshold=float(thresholds[at]),
        alpha=alpha,
        delta=delta,
        rows=rows,
        accepted=int(accepted[at]),
        errors=int(errors[at]),
        bound=upper_bound(int(errors[at]), int(of[at]), delta),
    )
