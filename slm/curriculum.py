"""From examples to the exact sequence of token rows that a run is taught: mixture, variation, order.

Everything follows from the recipe, the examples and the seed, so a run that was killed sees the same rows in the same
order when it goes on.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from slm.augment import fewer_tools, masked, more_tools, shuffled, varied_limits, without_gold
from slm.dataset import BadRow, Encoded, Example, encode, in_length_groups
from slm.recipe import Data, Recipe
from slm.signature import DEFAULT_LIMITS
from slm.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Course:
    """Rows in the order in which they are taught, what each is called, and how many rows were left out for what."""

    rows: tuple[Encoded, ...]
    sources: Mapping[str, int]
    """Rows by source."""
    kinds: Mapping[str, int]
    """Rows by kind of draft."""
    refused: Mapping[str, int]

    @property
    def tokens(self) -> int:
        """Tokens of all rows, prompts included."""
        return sum(len(row.ids) for row in self.rows)


def training_course(examples: Sequence[Example], recipe: Recipe, tokens: Tokens) -> Course:
    """All epochs' rows, in batches of like length, the batches in random order within an epoch."""
    rng = random.Random(f"{recipe.run.seed}/course")
    size = recipe.optimiser.batch_rows
    rows: list[Encoded] = []
    sources: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for _ in range(recipe.optimiser.epochs):
        epoch: list[Encoded] = []
        for example in _drawn(examples, recipe, tokens, rng, refused):
            epoch.append(example[1])
            sources[example[0].source] += 1
            kinds[example[0].kind] += 1
        groups = list(range(math.ceil(len(epoch) / size)))
        rng.shuffle(groups)
        rows += [epoch[index] for index in in_length_groups([len(row.ids) for row in epoch], size, groups)]
    return Course(tuple(rows), dict(sources), dict(kinds), dict(refused))


def validation_course(examples: Sequence[Example], recipe: Recipe, tokens: Tokens) -> Course:
    """Rows of the validation part as they are but for the number of tools; shortest first, not varied."""
    rng = random.Random(f"{recipe.run.seed}/validation")
    plain = recipe.model_copy(update={"augment": type(recipe.augment)(shuffle_tools=0.0)})
    if recipe.data.sources is None:
        pool = list(examples)
        rng.shuffle(pool)
    else:
        pool = list(_mixed(examples, recipe.data, recipe.data.validation_rows * 4, rng))
    rows: dict[str, tuple[Example, Encoded]] = {}
    refused: Counter[str] = Counter()
    for example in pool:
        if len(rows) >= recipe.data.validation_rows:
            break
        try:
            rows[example.id] = _varied(example, plain, tokens, (), rng)
        except BadRow as bad:
            refused[bad.reason] += 1
    chosen = sorted(rows.values(), key=lambda pair: len(pair[1].ids))
    return Course(
        tuple(encoded for _, encoded in chosen),
        dict(Counter(example.source for example, _ in chosen)),
        dict(Counter(example.kind for example, _ in chosen)),
        dict(refused),
    )


def _drawn(
    examples: Sequence[Example], recipe: Recipe, tokens: Tokens, rng: random.Random, refused: Counter[str]
) -> Iterator[tuple[Example, Encoded]]:
    data = recipe.data
    wanted = data.rows or len(examples)
    candidates = _mixed(examples, data, 4 * wanted, rng) if data.sources else iter(rng.sample(examples, len(examples)))
    made = 0
    for example in candidates:
        if made >= wanted:
            return
        try:
            yield _varied(example, recipe, tokens, examples, rng)
            made += 1
        except BadRow as bad:
            refused[bad.reason] += 1


def _mixed(examples: Sequence[Example], data: Data, most: int, rng: random.Random) -> Iterator[Example]:
    """Examples of the named sources by their shares; each source is gone through in random order, again and again."""
    assert data.sources is not None
    by_source: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_source[example.source].append(example)
    names = [name for name in data.sources if by_source[name]]
    weights = [data.sources[name] for name in names]
    left: dict[str, list[Example]] = {name: [] for name in names}
    for name in rng.choices(names, weights, k=most) if names else ():
        if not left[name]:
            left[name] = rng.sample(by_source[name], len(by_source[name]))
        yield left[name].pop()


def _varied(
    example: Example, recipe: Recipe, tokens: Tokens, pool: Sequence[Example], rng: random.Random
) -> tuple[Example, Encoded]:
    augment = recipe.augment
    if rng.random() < augment.remove_gold:
        example = without_gold(example)
    example = fewer_tools(example, rng, recipe.data.max_tools)
    if pool and rng.random() < augment.other_tools:
        example = more_tools(example, rng, pool, rng.randint(1, 3))
    if rng.random() < augment.shuffle_tools:
        example = shuffled(example, rng)
    if rng.random() < augment.mask_names:
        example = masked(example, rng)
    limits = varied_limits(rng) if rng.random() < augment.vary_signatures else DEFAULT_LIMITS
    return example, encode(example, tokens, recipe.data.max_tokens, limits)
