"""Pass rates of what a training run kept on its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluation.case_sets import case_set, group_of, sample
from evaluation.learning_curve import CurvePoint, SetRate
from router.settings import Small
from router.small_scores import Arm, collect_arm
from slm.curve import kept_steps
from slm.folders import ModelFolder

SETS = ("in_domain", "heldout_tools")

Tell = Callable[[str, int, int | None], None]


async def curve_points(
    run: Path, base: ModelFolder, small: Small, rows: int, folder: Path, tell: Tell, *, threads: int
) -> list[CurvePoint]:
    """The points of a run folder, step 0 (the base) first; what was drafted before is read from `folder`.

    Args:
        rows: of each set, about; each group of a set has the same number.

    Raises:
        slm.folders.FolderError: the run kept nothing on its way.
    """
    kept = kept_steps(run)
    sets = {name: _per_group(name, rows) for name in SETS}

    async def rates(arm: Arm) -> dict[str, SetRate]:
        traces = await collect_arm(arm, sets, folder, tell, threads=threads)
        made = {}
        for name, per_group in sets.items():
            asked = {case.id for case in sample(name, case_set(name), per_group)}
            passes = [row.passed is True for row in traces[name].rows if row.case_id in asked]
            made[name] = SetRate(sum(passes), len(passes))
        return made

    plain = small.model_copy(update={"dtype": "float32", "adapter": "none"})
    points = [CurvePoint(step=0, rows=0, validation_loss=None, rates=await rates(Arm("step 0", plain, base)))]
    for one in kept:
        arm = Arm(f"step {one.step}", plain.model_copy(update={"adapter": str(one.folder)}), base)
        points.append(
            CurvePoint(step=one.step, rows=one.rows, validation_loss=one.validation_loss, rates=await rates(arm))
        )
    return points


def _per_group(name: str, rows: int) -> int:
    groups = {group_of(name, case) for case in case_set(name)}
    return max(1, round(rows / len(groups)))
