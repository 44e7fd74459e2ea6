"""What the statistics of experiments do in many simulated ones: the figures behind `smallcall ab figures`.

A/A tests run to twice their planned size and are looked at after every unit, which is harder than what a plan says; A/B
tests end at the size that `planned_for_rates` plans for the power that is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.experiment_simulation import planned_for_rates, simulate
from evaluation.intervals import wilson

AA_RATES = (0.5, 0.8, 0.95)
AA_PLANNED = 2000
AB_RATES = ((0.80, 0.86), (0.70, 0.80), (0.90, 0.94))


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of experiment, run many times."""

    control: float
    treatment: float
    """Pass rates."""
    planned: int
    units: int
    runs: int
    told: int
    """Runs in which a difference was told at one look or more."""

    @property
    def share(self) -> float:
        """Of runs in which a difference was told: false positives of an A/A test, power of an A/B test."""
        return self.told / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share; 95 %."""
        return wilson(self.told, self.runs)


def figures(runs: int, *, alpha: float, power: float, rng: np.random.Generator) -> list[Figure]:
    """All kinds of experiments, A/A first."""
    kinds = [(rate, rate, AA_PLANNED, 2 * AA_PLANNED) for rate in AA_RATES]
    for control, treatment in AB_RATES:
        planned = planned_for_rates(control, treatment, alpha=alpha, power=power)
        kinds.append((control, treatment, planned, planned))
    made = []
    for control, treatment, planned, units in kinds:
        found = simulate(control, treatment, units=units, planned=planned, runs=runs, alpha=alpha, rng=rng)
        made.append(Figure(control, treatment, planned, units, runs, found.told))
    return made


def as_json(made: Sequence[Figure], *, alpha: float, power: float, seed: int) -> dict[str, Any]:
    """Everything, for a file."""
    rows = [
        {
            "control": one.control,
            "treatment": one.treatment,
            "planned_units": one.planned,
            "units": one.units,
            "runs": one.runs,
            "told": one.told,
            "share": one.share,
            "interval": list(one.interval),
        }
        for one in made
    ]
    return {"alpha": alpha, "power": power, "seed": seed, "looks": "after every unit", "experiments": rows}


def markdown(made: Sequence[Figure], *, alpha: float, power: float) -> str:
    """The same as a page."""
    lines = [
        "# Simulated experiments (`smallcall ab figures`)",
        "",
        f"Each looked at after every unit, α = {alpha:g}. A/A tests go on to twice the planned size; A/B tests end at "
        f"the size that is planned for a power of {power:.0%}. In brackets: 95 % interval of the share (Wilson).",
        "",
        "| pass rates | units | runs | a difference was told | wanted |",
        "|---|---|---|---|---|",
    ]
    for one in made:
        low, high = one.interval
        wanted = f"≤ {alpha:.1%}" if one.control == one.treatment else f"≥ {power:.0%}"
        lines.append(
            f"| {one.control:g} and {one.treatment:g} | {one.units} | {one.runs} | {one.share:.2%} ({low:.2%} to "
            f"{high:.2%}) | {wanted} |"
        )
    return "\n".join([*lines, ""])
