"""Simulated experiments, looked at after every unit: how often is a difference told, where there is one or none?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.experiments.comparison import difference_path, path
from evaluation.experiments.sequential import optimal_rho

_CELLS = 1_000_000
"""Numbers held at once in one array."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of `runs` experiments of `units` units each."""

    runs: int
    units: int
    told: int
    """Runs in which the interval excluded zero at one look or more."""

    @property
    def share(self) -> float:
        """Of runs in which a difference was told."""
        return self.told / self.runs


def simulate(
    control: float,
    treatment: float,
    *,
    units: int,
    planned: int,
    runs: int,
    alpha: float,
    rng: np.random.Generator,
) -> Simulated:
    """Run experiments on units that pass with probability `control` or `treatment`, half of them in each arm.

    Args:
        planned: the size that the interval is tuned for; `units` may go beyond it.
    """
    rho = optimal_rho(planned, alpha)
    block = max(1, _CELLS // units)
    told = 0
    for start in range(0, runs, block):
        shape = (min(block, runs - start), units)
        treated = rng.random(shape) < 0.5
        passed = rng.random(shape) < np.where(treated, treatment, control)
        ones = np.ones(shape)
        lower, upper = difference_path(path(passed, ones, ~treated), path(passed, ones, treated), rho=rho, alpha=alpha)
        told += int(((lower > 0) | (upper < 0)).any(axis=-1).sum())
    return Simulated(runs, units, told)
