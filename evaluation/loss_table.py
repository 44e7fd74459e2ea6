"""Losses of several models on the same rows: each one's mean, and its difference to a reference, row by row.

Loss is nats a taught token, the ratio of two sums over rows; intervals are 95 % percentiles of a bootstrap over rows,
the same draws for both models of a difference. One row a conversation, so that rows can be taken as independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from evaluation.intervals import cluster_weights, percentile_interval, wilson

DRAWS = 2000


class SetLoss(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one set of rows."""

    nats: list[float]
    tokens: list[int]
    passed: int | None = None
    """Drafts of a sample that pass; None where none was drafted."""
    drafted: int = 0


class ArmLoss(msgspec.Struct, frozen=True, kw_only=True):
    """One model on all sets, and what it took."""

    arm: str
    sets: dict[str, SetLoss]
    notes: dict[str, str] = {}
    """Further columns of the table."""


class LossCell(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one model on one set."""

    arm: str
    set: str
    rows: int
    loss: float
    low: float
    high: float
    change: float | None
    """Minus the reference's loss; None for the reference."""
    change_low: float | None
    change_high: float | None
    passed: int | None
    drafted: int


def loss_cells(arms: Sequence[ArmLoss], reference: str, *, seed: int = 0) -> list[LossCell]:
    """The figures. Raises ValueError where a model's rows are not the reference's."""
    by_name = {arm.arm: arm for arm in arms}
    cells = []
    for arm in arms:
        for name, losses in arm.sets.items():
            base = by_name[reference].sets[name] if reference in by_name else losses
            cells.append(_cell(arm.arm, name, losses, None if arm.arm == reference else base, seed))
    return cells


def _cell(arm: str, name: str, losses: SetLoss, base: SetLoss | None, seed: int) -> LossCell:
    if base is not None and losses.tokens != base.tokens:
        raise ValueError(f"{arm} was measured on other rows of {name} than the reference")
    nats, tokens = np.asarray(losses.nats), np.asarray(losses.tokens, dtype=np.float64)
    draws = cluster_weights(range(len(nats)), DRAWS, np.random.default_rng(seed))
    weights = np.concatenate(list(draws)).astype(np.float64)
    low, high = percentile_interval((weights @ nats) / (weights @ tokens))
    change = change_low = change_high = None
    if base is not None:
        gap = nats - np.asarray(base.nats)
        ends = percentile_interval((weights @ gap) / (weights @ tokens))
        change, change_low, change_high = float(gap.sum() / tokens.sum()), float(ends[0]), float(ends[1])
    return LossCell(
        arm=arm,
        set=name,
        rows=len(nats),
        loss=float(nats.sum() / tokens.sum()),
        low=float(low),
        high=float(high),
        change=change,
        change_low=change_low,
        change_high=change_high,
        passed=losses.passed,
        drafted=losses.drafted,
    )


def render_losses(title: str, about: str, arms: Sequence[ArmLoss], reference: str, facts: Mapping[str, str]) -> str:
    """A Markdown page: one row a model, its loss, change and pass rate on each set."""
    cells = {(cell.arm, cell.set): cell for cell in loss_cells(arms, reference)}
    sets = list(dict.fromkeys(name for arm in arms for name in arm.sets))
    notes = list(dict.fromkeys(name for arm in arms for name in arm.notes))
    heads = [f"{name}: loss | change | passed" for name in sets]
    lines = [f"# {title}", "", *(f"{name}: `{value}`  " for name, value in facts.items()), "", about, ""]
    lines.append("| | " + " | ".join([*heads, *notes]) + " |")
    lines.append("| --- |" + " --- |" * (3 * len(sets) + len(notes)))
    for arm in arms:
        told = [_told(cells[arm.arm, name]) if (arm.arm, name) in cells else "– | – | –" for name in sets]
        lines.append(f"| {arm.arm} | " + " | ".join([*told, *(arm.notes.get(name, "") for name in notes)]) + " |")
    return "\n".join(lines) + "\n"


def write_losses(folder: Path, name: str, page: str, arms: Sequence[ArmLoss], facts: Mapping[str, str]) -> list[Path]:
    """Write `name.md` and `name.json` (with the losses row by row) into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table = folder / f"{name}.md", folder / f"{name}.json"
    markdown.write_text(page, encoding="utf-8")
    rounded = [
        msgspec.structs.replace(
            arm,
            sets={
                key: msgspec.structs.replace(one, nats=[round(value, 4) for value in one.nats])
                for key, one in arm.sets.items()
            },
        )
        for arm in arms
    ]
    table.write_bytes(msgspec.json.encode({**facts, "arms": rounded}) + b"\n")
    return [markdown, table]


def _told(cell: LossCell) -> str:
    loss = f"{cell.loss:.3f} ({cell.low:.3f}–{cell.high:.3f}) of {cell.rows}"
    change = "–"
    if cell.change is not None:
        change = f"{cell.change:+.3f} ({cell.change_low:+.3f} to {cell.change_high:+.3f})"
    if cell.passed is None:
        return f"{loss} | {change} | –"
    low, high = wilson(cell.passed, cell.drafted)
    rate = f"{100 * cell.passed / cell.drafted:.0f} % ({100 * low:.0f}–{100 * high:.0f}) of {cell.drafted}"
    return f"{loss} | {change} | {rate}"
