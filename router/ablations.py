"""Train a recipe's variations on a small budget, and measure each on tools that it knows and on tools it has not seen.

Every arm has a folder; one that is done is read from it, one that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from evaluation.cases import Case
from evaluation.loss_table import ArmLoss, SetLoss
from evaluation.trace_table import TraceRow
from router.settings import Small
from slm.ablations import Rows, measured_rows
from slm.dataset import Example
from slm.folders import file_sha256
from slm.recipe import Recipe

KNOWN, UNSEEN = "known tools", "unseen tools"
ABOUT = (
    "Each arm is trained anew on the same budget, with one thing changed, on the training rows without some tools. An "
    "arm without an augmentation is another draw of the course as well: what is drawn after it falls out otherwise. "
    "Loss: nats a taught token and its 95 % interval, of rows from conversations (*known tools*) and with tools "
    "(*unseen tools*) that no arm was taught; none is a test row. *change*: minus the loss of the recipe as it is, row "
    "by row, with its interval: an interval that holds 0 says that nothing is known. *passed*: drafts of a sample of "
    "these rows that are right. The intervals are of the measured rows alone; what another draw of the course changes "
    "*another seed* shows, once: a change no larger than the larger of its two is no finding."
)

Tell = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Measure:
    """What an arm is taught and measured on."""

    rows: Rows
    cases: Mapping[str, Case]
    """By id, those of `rows` among them."""
    loss_rows: int
    """Of each set, for the loss."""
    pass_rows: int
    """Of each set, to be drafted; 0 drafts none."""
    small: Small

    def sets(self) -> Mapping[str, Sequence[Example]]:
        """The sets by their names in the table."""
        return {KNOWN: self.rows.known, UNSEEN: self.rows.unseen}


def run_arm(
    name: str, recipe: Recipe, base: Path, measure: Measure, folder: Path, tell: Tell, *, keep_model: bool
) -> ArmLoss:
    """Train and measure one arm, or read what was measured of it.

    Raises:
        ValueError: the folder holds an arm of another recipe, base or of other rows; a slm.train.TrainingError if that
            arm is not done yet.
    """
    own = folder / slug(name)
    score, made_of = own / "score.json", _made_of(recipe, base, measure)
    if score.is_file():
        scored = msgspec.json.decode(score.read_bytes(), type=_Scored)
        if scored.made_of != made_of:
            raise ValueError(f"{own} holds an arm of another recipe, base or of other rows: choose another folder")
        return scored.arm
    own.mkdir(parents=True, exist_ok=True)
    from slm.train import Step, train

    def trained(step: Step) -> None:
        tell(f"{name}: training", step.step, step.steps)

    began = time.monotonic()
    result = train(recipe, base, [measure.rows.file], own / "run", progress=trained)
    took_s = time.monotonic() - began
    gc.collect()
    sets = measured(name, base, result.folder, measure, recipe, tell)
    made = ArmLoss(arm=name, sets=sets, notes={"tokens": f"{result.tokens:,}", "minutes": f"{took_s / 60:.0f}"})
    score.write_bytes(msgspec.json.encode(_Scored(arm=made, made_of=made_of)))
    shutil.rmtree(own / "run" / "checkpoints", ignore_errors=True)
    if recipe.lora is None and not keep_model:
        shutil.rmtree(result.folder)
    return made


class _Scored(msgspec.Struct, frozen=True, kw_only=True):
    """An arm that is done."""

    arm: ArmLoss
    made_of: str


def _made_of(recipe: Recipe, base: Path, measure: Measure) -> str:
    """SHA-256 of what decides an arm's figures but for the code and the machine."""
    told, rows = recipe.model_dump(mode="json", exclude={"note"}), file_sha256(measure.rows.file)
    parts = [told, base.name, rows, measure.loss_rows, measure.pass_rows]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def measured(name: str, base: Path, trained: Path, measure: Measure, recipe: Recipe, tell: Tell) -> dict[str, SetLoss]:
    """Losses and pass rates of an adapter of `base`, merged into it, or of a whole model.

    Losses are computed in the recipe's precision.
    """
    from slm.engine import Engine
    from slm.model import load
    from slm.row_loss import row_losses

    loaded = load(trained) if recipe.lora is None else load(base, trained)
    sets: dict[str, SetLoss] = {}
    for of, examples in measure.sets().items():
        rows = measured_rows(examples, loaded.tokens, measure.loss_rows, recipe.data)
        losses = row_losses(
            loaded, rows, partial(tell, f"{name}: loss on {of}"), autocast=recipe.run.precision != "float32"
        )
        sets[of] = SetLoss(nats=losses.nats, tokens=losses.tokens)
    if measure.pass_rows:
        engine = Engine(loaded)
        for of, examples in measure.sets().items():
            chosen = [measure.cases[example.id] for example in examples[: measure.pass_rows]]
            drafted = drafted_rows(engine, measure.small, chosen, partial(tell, f"{name}: {of}"))
            passed = sum(row.passed is True for row in drafted)
            sets[of] = msgspec.structs.replace(sets[of], passed=passed, drafted=len(drafted))
    return sets


def drafted_rows(
    engine: object, small: Small, cases: Sequence[Case], tell: Callable[[int, int], None]
) -> list[TraceRow]:
    """What the small model answers to the cases, by the gateway's own path."""
    from router.batch import Batch
    from slm.engine import Engine

    assert isinstance(engine, Engine)
    rows: list[TraceRow] = []

    def keep(row: TraceRow) -> None:
        rows.append(row)
        tell(len(rows), len(cases))

    asyncio.run(Batch(engine, small).ask(cases, cases, keep))
    return rows


def slug(name: str) -> str:
    """An arm's name as a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
