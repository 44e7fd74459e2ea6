"""Requests of an experiment, gathered into units.

A unit (a conversation, a key) enters with its first eligible request; what it does within a window from there is its
value, and it counts once the window has closed. So units are complete when they are read, in the order of their
entry, as the confidence sequences need. A unit that was served by two arms (the weights were changed under way) says
nothing of either and is left out, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Floats, MetricError


@dataclass(frozen=True, slots=True)
class Requests:
    """N requests that an experiment took in; arrays (N,). NaN: not known."""

    unit: npt.NDArray[Any]
    """Ids of the units that were each assigned as a whole; any values that can be sorted."""
    arm: npt.NDArray[np.str_]
    at_s: Floats
    """Unix time of arrival."""
    cost_usd: Floats
    latency_s: Floats
    invalid: Floats
    """1: the small model's draft broke the tools' schemas; 0: it did not; NaN: nothing was drafted."""
    passed: Floats
    """1 or 0 as judged afterwards."""
    tool_error: Floats
    """1 or 0: the tool refused the call; NaN: no result was seen."""
    covariates: Floats
    """(N, k) known before the arm could act; finite."""

    def __post_init__(self) -> None:
        n = len(self.unit)
        if any(len(getattr(self, field.name)) != n for field in fields(self)) or self.covariates.ndim != 2:
            raise MetricError("requests need columns of one length")
        if not (np.isfinite(self.at_s).all() and np.isfinite(self.latency_s).all()):
            raise MetricError("every request needs a time and a latency")


@dataclass(frozen=True, slots=True)
class Units:
    """n closed units in the order of their entry, and the requests within their windows."""

    arm: npt.NDArray[np.str_]
    """(n,)"""
    of_request: npt.NDArray[np.int64]
    """(M,) which unit each request belongs to."""
    requests: Requests
    """M requests."""
    covariates: Floats
    """(n, k) of each unit's first request."""
    exposed: dict[str, int]
    """Units by arm that have entered, closed or not, mixed ones left out."""
    mixed: int
    """Units that two arms served."""

    def sums(self, values: Floats) -> tuple[Floats, Floats]:
        """Σ values and the number of requests behind it, per unit: both (n,). `values` (M,) is NaN where not known."""
        use = ~np.isnan(values)
        where, n = self.of_request[use], len(self.arm)
        total = np.bincount(where, values[use], n).astype(np.float64)
        return total, np.bincount(where, minlength=n).astype(np.float64)


def gather(requests: Requests, *, window_s: float, now_s: float) -> Units:
    """Units whose window has closed by `now_s`."""
    order = np.argsort(requests.at_s, kind="stable")
    names, first, of = np.unique(requests.unit[order], return_index=True, return_inverse=True)
    arm, at = requests.arm[order], requests.at_s[order]
    mixed = np.zeros(len(names), dtype=np.bool_)
    mixed[of[arm != arm[first][of]]] = True
    entered = at[first]
    kept = np.flatnonzero(~mixed & (entered + window_s <= now_s))
    kept = kept[np.argsort(first[kept])]
    place = np.full(len(names), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    within = (place[of] >= 0) & (at < entered[of] + window_s)
    inside = order[within]
    columns = {field.name: getattr(requests, field.name)[inside] for field in fields(requests)}
    labels, counts = np.unique(arm[first][~mixed], return_counts=True)
    return Units(
        arm=arm[first][kept],
        of_request=place[of][within],
        requests=Requests(**columns),
        covariates=requests.covariates[order][first][kept],
        exposed=dict(zip(labels.tolist(), counts.tolist(), strict=True)),
        mixed=int(mixed.sum()),
    )
