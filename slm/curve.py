"""The adapters that a run kept on its way: `curve/step-N`, each with the rows that were seen by then.

A run that trains every weight keeps none.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from slm.folders import ADAPTER_CONFIG, FolderError


@dataclass(frozen=True, slots=True)
class Kept:
    """One of them."""

    step: int
    folder: Path
    rows: int | None
    """Rows that the run had seen; None where the run folder does not say how many rows a step has."""
    validation_loss: float | None


def kept_steps(run: Path) -> list[Kept]:
    """What a run folder holds, by step.

    Raises:
        FolderError: it holds nothing of the kind, or its records cannot be read.
    """
    found = {
        int(path.name[5:]): path
        for path in (run / "curve").glob("step-*")
        if re.fullmatch(r"step-\d+", path.name) and (path / ADAPTER_CONFIG).is_file()
    }
    if not found:
        raise FolderError(f"{run} holds no curve/step-N: only a run that keeps its adapters has a curve of pass rates")
    try:
        points = json.loads((run / "curve.json").read_text(encoding="utf-8")) if (run / "curve.json").is_file() else []
        facts = json.loads((run / "data.json").read_text(encoding="utf-8"))["train"]
        losses = {point["step"]: point["eval_loss"] for point in points if "eval_loss" in point}
        share = _rows_a_token(facts, points)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise FolderError(f"{run}: its records cannot be read ({type(exc).__name__})") from exc
    return [
        Kept(
            step=step,
            folder=found[step],
            rows=share.get(step),
            validation_loss=losses.get(step),
        )
        for step in sorted(found)
    ]


def _rows_a_token(facts: dict[str, int], points: list[dict[str, float]]) -> dict[int, int]:
    """Step → rows seen, reckoned from the tokens seen: rows of a course are spread evenly over its tokens."""
    whole = facts["rows"] / max(1, facts["tokens"])
    return {int(point["step"]): round(point["num_tokens"] * whole) for point in points if "num_tokens" in point}
