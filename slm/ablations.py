"""What is compared: a recipe on a small budget, and the same with one thing changed.

Every arm is a recipe like any other. All are taught the same rows, from which some tools are left out altogether, so
that a tool nobody has seen can be measured beside known ones, with no row of the tests.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from slm.augment import fewer_tools
from slm.dataset import BadRow, Encoded, Example, encode
from slm.recipe import Augment, Data, Recipe
from slm.rows import read_rows
from slm.splits import held_out
from slm.tokens import Tokens

SHIPPED = "as in the recipe"
ANOTHER_SEED = "another seed"
"""The recipe again on other rows in another order: what chance alone changes."""
NOTHING_VARIED = "nothing varied"
UNSEEN_TOOLS_SHARE = 0.04
_TOOL_SALT = "tool"
_TOKENS_A_ROW = 100
"""About the least that a row costs; so many rows are drawn that the budget is always used."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of an ablation."""

    file: Path
    """What the arms are taught, in the project's format."""
    known: tuple[Example, ...]
    """Conversations that no arm is taught, one row each, in random order."""
    unseen: tuple[Example, ...]
    """Rows that call a tool which no row of `file` calls, one a conversation, in random order."""


def budgeted(recipe: Recipe, tokens: int) -> Recipe:
    """The recipe with a course of about so many tokens, no validation of its own and one checkpoint, at the end."""
    steps = max(1, round(tokens / (recipe.data.tree_tokens * recipe.optimiser.trees_a_step)))
    rows = recipe.data.rows and min(recipe.data.rows, max(100, tokens // _TOKENS_A_ROW))
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"rows": rows, "validation_rows": 0}),
            "optimiser": recipe.optimiser.model_copy(update={"steps": steps}),
            "run": recipe.run.model_copy(update={"evaluate_every": steps, "patience": None, "report_to": ()}),
        }
    )


def arms_of(
    recipe: Recipe,
    *,
    ranks: Sequence[int] = (8, 32, 64),
    rates: Sequence[float] = (3e-4, 1e-3, 3e-3),
    full_rates: Sequence[float] = (5e-5, 2e-4),
) -> dict[str, Recipe]:
    """The recipe, another seed, each augmentation off, all off, other ranks and learning rates, every weight trained.

    Ranks and learning rates that are the recipe's own are left out; those of an adapter are told of recipes with one.
    """
    reseeded = recipe.run.model_copy(update={"seed": recipe.run.seed + 1})
    arms = {SHIPPED: recipe, ANOTHER_SEED: recipe.model_copy(update={"run": reseeded})}
    on = [name for name in Augment.model_fields if getattr(recipe.augment, name)]
    for name in on:
        arms[f"without {name}"] = recipe.model_copy(update={"augment": recipe.augment.model_copy(update={name: 0.0})})
    arms[NOTHING_VARIED] = recipe.model_copy(update={"augment": Augment(**dict.fromkeys(Augment.model_fields, 0.0))})
    if recipe.lora is not None:
        for rank in ranks:
            if rank != recipe.lora.rank:
                lora = recipe.lora.model_copy(update={"rank": rank, "alpha": 2 * rank})
                arms[f"rank {rank}"] = recipe.model_copy(update={"lora": lora})
    for rate in rates if recipe.lora is not None else ():
        if rate != recipe.optimiser.learning_rate:
            arms[f"learning rate {rate:g}"] = _at_rate(recipe, rate)
    run = recipe.run.model_copy(update={"base_dtype": "float32"})
    whole = recipe.model_copy(update={"lora": None, "run": run})
    for rate in full_rates:
        if recipe.lora is not None or rate != recipe.optimiser.learning_rate:
            arms[f"every weight, learning rate {rate:g}"] = _at_rate(whole, rate)
    return arms


def _at_rate(recipe: Recipe, rate: float) -> Recipe:
    optimiser = recipe.optimiser.model_copy(update={"learning_rate": rate})
    return recipe.model_copy(update={"optimiser": optimiser})


def unseen_tool(name: str, share: float = UNSEEN_TOOLS_SHARE) -> bool:
    """Whether a tool of this name is left out of the arms' rows: decided by a hash."""
    return held_out(name, share, _TOOL_SALT)


def ablation_rows(source: Path, file: Path, validation_share: float, unseen_share: float = UNSEEN_TOOLS_SHARE) -> Rows:
    """Split the `train` rows of `source`, and write those that are taught into `file`.

    A conversation of which one row calls an unseen tool is not taught at all. `file` still holds the conversations that
    training keeps out by itself (`slm.splits`): they are `known`.

    Raises:
        OSError: a file cannot be read or written.
    """
    rows = read_rows(source)
    calls_unseen = {e.id for e in rows.examples if any(unseen_tool(name, unseen_share) for name in e.gold_names)}
    apart = {e.conversation for e in rows.examples if e.id in calls_unseen}
    taught = {e.id for e in rows.examples if e.conversation not in apart}
    _copy(source, file, taught)
    known = (e for e in rows.examples if e.id in taught and held_out(e.conversation, validation_share))
    return Rows(file, one_each(known), one_each(e for e in rows.examples if e.id in calls_unseen))


def one_each(examples: Iterable[Example]) -> tuple[Example, ...]:
    """One row of each conversation, drawn and ordered by a hash: any first part of them is a fair sample."""
    drawn: dict[str, Example] = {}
    for example in sorted(examples, key=lambda one: hashlib.sha256(f"row\0{one.id}".encode()).digest()):
        drawn.setdefault(example.conversation, example)
    return tuple(drawn.values())


def _copy(source: Path, file: Path, ids: set[str]) -> None:
    """The lines of those ids; equal rows give equal bytes."""
    decoder = msgspec.json.Decoder(_Id)
    partial = file.with_name(file.name + ".partial")
    with (
        gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as lines,
        partial.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as out,
    ):
        for line in lines:
            if line.strip() and decoder.decode(line).id in ids:
                out.write(line)
    partial.replace(file)


class _Id(msgspec.Struct):
    id: str
    split: str = "train"


def measured_rows(examples: Iterable[Example], tokens: Tokens, count: int, data: Data) -> list[Encoded]:
    """The first `count` rows that can be taught, not varied but for the number of tools; always the same."""
    rows: list[Encoded] = []
    for example in examples:
        if len(rows) >= count:
            break
        plain = fewer_tools(example, random.Random(f"measured/{example.id}"), data.max_tools)
        with contextlib.suppress(BadRow):
            rows.append(encode(plain, tokens, data.max_tokens))
    return rows
