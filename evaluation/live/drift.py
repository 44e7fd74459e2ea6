"""Has the world moved since the judge was fitted? Changed tools, shifted signals, a rising error among audited calls.

A shift of signals is a hint, an error that rose among *audited* calls is a fact: only audits are a fair draw of what
was answered small. Where audits are drawn with unequal probabilities, compare periods of one audit plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, false_discovery_control, ks_2samp

from evaluation.metrics import Floats, MetricError
from policies.texts import json_sha256

MIN_PART = 5
"""Values on each side of a change."""


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tool_sha256(tool: Mapping[str, Any]) -> str:
    """SHA-256 of a tool's canonical JSON (`policies.texts.json_sha256`).

    Order within lists stays: `enum` and `required` are read by the model as they come.

    Raises:
        MetricError: not JSON: NaN, an infinity, or a value of another type.
    """
    try:
        return json_sha256(tool)
    except ValueError as error:
        raise MetricError("tool: not JSON") from error


def audits_needed(max_error: float, confidence: float, *, errors: int = 0) -> int:
    """Least n such that n audits with at most `errors` errors show an error rate of at most `max_error`.

    A tool with a rate above `max_error` would pass with probability BinomCDF(errors; n, max_error) at most; that must
    not exceed 1 − confidence. Without errors it is (1 − max_error)ⁿ ≤ 1 − confidence, so n = ⌈ln(1 − confidence) /
    ln(1 − max_error)⌉: 45 for 5 % at 90 %. n is to be fixed beforehand; to add audits after an error and look again is
    another test (`trusted` does not allow it).
    """
    if not (0 < max_error < 1 and 0 < confidence < 1 and errors >= 0):
        raise MetricError("max_error and confidence must lie in (0, 1), errors must be at least 0")
    low, high = errors, errors + 1
    while binom.cdf(errors, high, max_error) > 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if binom.cdf(errors, middle, max_error) > 1 - confidence else (low, middle)
    return high


def trusted(passed: npt.ArrayLike, *, max_error: float = 0.05, confidence: float = 0.9) -> bool:
    """Return True if a new or changed tool has earned trust: its first `audits_needed` audited calls were all clean.

    A tool that failed among them stays untrusted here until its hash changes: it goes on being escalated, or the judge
    is fitted anew with its rows.

    Args:
        passed: (n,) outcomes of the tool's audited calls under one hash, oldest first.
    """
    outcomes = np.asarray(passed, dtype=np.bool_)
    needed = audits_needed(max_error, confidence)
    return len(outcomes) >= needed and bool(outcomes[:needed].all())


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Shift:
    """One signal now against then."""

    name: str
    psi: float
    ks: float
    """Greatest distance of the two distribution functions."""
    q_value: float
    """q-value of the KS test, adjusted for all signals tested (Benjamini and Hochberg 1995)."""
    missing_then: float
    """Share of rows without the signal."""
    missing_now: float


def shifts(then: Mapping[str, npt.ArrayLike], now: Mapping[str, npt.ArrayLike], *, bins: int = 10) -> tuple[Shift, ...]:
    """Every signal's shift, the surest first. NaN: the row has not got the signal; a signal with fewer than two values
    in either period is left out."""
    if set(then) != set(now):
        raise MetricError(f"signals of one period only: {sorted(set(then) ^ set(now))}")
    names, parts = [], []
    for name in then:
        a, b = (np.asarray(period[name], dtype=np.float64) for period in (then, now))
        if a.ndim != 1 or b.ndim != 1:
            raise MetricError(f"{name}: needs one number a row")
        known = a[~np.isnan(a)], b[~np.isnan(b)]
        if min(map(len, known)) > 1:  # of one value each, the test has no p-value
            names.append(name)
            parts.append((*known, 1 - len(known[0]) / len(a), 1 - len(known[1]) / len(b)))
    tests = [ks_2samp(a, b, method="asymp") for a, b, _, _ in parts]
    q_values = false_discovery_control([test.pvalue for test in tests]) if tests else []
    found = [
        Shift(name, psi(a, b, bins=bins), float(test.statistic), float(q), gone_then, gone_now)
        for name, (a, b, gone_then, gone_now), test, q in zip(names, parts, tests, q_values, strict=True)
    ]
    return tuple(sorted(found, key=lambda shift: (shift.q_value, -shift.ks)))


def psi(then: npt.ArrayLike, now: npt.ArrayLike, *, bins: int = 10) -> float:
    """Population stability index Σ (now − then)·ln(now/then) over bins of equal mass of `then` (Siddiqi 2006).

    Half a row is added to every bin, so that an empty one counts and does not divide. By custom 0.1 is a small shift
    and 0.25 a large one; about (bins − 1)·(1/n + 1/m) is chance.
    """
    a, b = np.asarray(then, dtype=np.float64), np.asarray(now, dtype=np.float64)
    if bins < 2 or not len(a) or not len(b) or np.isnan(a).any() or np.isnan(b).any():
        raise MetricError("psi needs two bins or more, and values without NaN in both periods")
    edges = np.unique(np.quantile(a, np.linspace(0, 1, bins + 1)[1:-1]))
    shares = []
    for values in (a, b):
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) + 0.5
        shares.append(counts / counts.sum())
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


# ── audited error ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Change:
    """The mean moved."""

    seen_at: int
    """Number of values read when the change was detected."""
    began: int
    """Index of the first value kept: older ones are of another regime."""
    before: float
    after: float


def changes(errors: npt.ArrayLike, *, delta: float = 0.002) -> tuple[Change, ...]:
    """Return the places where the mean of a stream changed, as ADWIN finds them (Bifet and Gavaldà 2007).

    After every value the window is cut as long as two parts of it, n₀ and n₁ long, have means further apart than
    √(2σ²L/m) + 2L/(3m), where 1/m = 1/n₀ + 1/n₁, σ² is the window's variance and L = ln(2 ln n/δ). All cuts are tried,
    not those of an exponential histogram; a stream of n values takes O(n²) additions.

    Args:
        errors: (n,) in [0, 1], oldest first.
        delta: probability of a false cut, each time the window is checked.
    """
    x = np.asarray(errors, dtype=np.float64)
    if x.ndim != 1 or not ((x >= 0) & (x <= 1)).all() or not 0 < delta < 1:
        raise MetricError("changes needs values in [0, 1] and delta in (0, 1)")
    sums = np.concatenate([[0.0], np.cumsum(x)])
    squares = np.concatenate([[0.0], np.cumsum(x * x)])
    start, found = 0, []
    for end in range(1, len(x) + 1):
        first = start
        cut = _cut(sums[start : end + 1], squares[start : end + 1], delta)
        while cut:
            start += cut
            cut = _cut(sums[start : end + 1], squares[start : end + 1], delta)
        if start > first:
            before, after = sums[start] - sums[first], sums[end] - sums[start]
            found.append(Change(end, start, float(before / (start - first)), float(after / (end - start))))
    return tuple(found)


def _cut(sums: Floats, squares: Floats, delta: float) -> int:
    """Values to drop from the window's old end; 0 where all its parts agree. Of several cuts, the clearest."""
    n = len(sums) - 1
    if n < 2 * MIN_PART:
        return 0
    old = np.arange(MIN_PART, n - MIN_PART + 1, dtype=np.float64)
    new = n - old
    total = sums[-1] - sums[0]
    left = sums[MIN_PART : n - MIN_PART + 1] - sums[0]
    gap = np.abs(left / old - (total - left) / new)
    variance = max(0.0, (squares[-1] - squares[0]) / n - (total / n) ** 2)
    inverse, level = 1 / old + 1 / new, math.log(2 * math.log(n) / delta)
    beyond = gap - np.sqrt(2 * variance * level * inverse) - 2 / 3 * level * inverse
    best = int(np.argmax(beyond))
    return best + MIN_PART if beyond[best] > 0 else 0
