"""The loss of a full fine-tune whose change is cut down to low ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from evaluation.case_sets import case_set
from evaluation.loss_table import ArmLoss, SetLoss
from slm.ablations import measured_rows, one_each
from slm.dataset import Example, example_of
from slm.recipe import Recipe

WHOLE = "as trained"
LINEAR = "linear layers only, full rank"

Tell = Callable[[str, int, int | None], None]


def rank_losses(
    tuned: Path,
    base: Path,
    recipe: Recipe,
    ranks: Sequence[int],
    loss_rows: int,
    tell: Tell,
    *,
    threads: int | None = None,
) -> list[ArmLoss]:
    """The losses as trained, of the linear layers alone, and at each rank, on rows that nothing is trained on.

    Raises:
        ValueError: the two folders are not of one architecture.
        slm.model.LoadError: a folder cannot be loaded.
    """
    from slm.model import load, use_threads
    from slm.ranks import RankCut
    from slm.row_loss import row_losses

    if threads is not None:
        use_threads(threads)
    model = load(tuned)
    sets = {
        name: measured_rows(examples, model.tokens, loss_rows, recipe.data) for name, examples in _examples().items()
    }

    def arm(name: str, notes: Mapping[str, str]) -> ArmLoss:
        losses = {}
        for of, rows in sets.items():
            made = row_losses(model, rows, partial(tell, f"{name}: {of}"))
            losses[of] = SetLoss(nats=made.nats, tokens=made.tokens)
        return ArmLoss(arm=name, sets=losses, notes=dict(notes))

    arms = [arm(WHOLE, {})]
    cut = RankCut(model, load(base), partial(tell, "decomposing"))
    for rank in (cut.full_rank, *sorted(ranks, reverse=True)):
        cut.cut(rank)
        notes = {"change kept": f"{100 * cut.kept(rank):.1f} %"}
        if rank != cut.full_rank:
            notes["adapter, MB"] = f"{cut.bytes(rank) / 1e6:.1f}"
        arms.append(arm(LINEAR if rank == cut.full_rank else f"rank {rank}", notes))
    return arms


def _examples() -> dict[str, Sequence[Example]]:
    sets = {"known tools": "validation", "held-out tools": "heldout_tools"}
    return {
        name: one_each(example_of(msgspec.to_builtins(case)) for case in case_set(of) if case.gold_names)
        for name, of in sets.items()
    }
