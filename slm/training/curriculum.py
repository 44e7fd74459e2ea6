"""Turns examples into the exact sequence of trees that a run trains on: mixture, grouping, variation, data order.

Everything follows from the recipe, the examples and the seed, so a run that was killed sees the same trees in the same
order when it goes on.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from slm.dataset.augment import fewer_tools, masked, more_tools, shuffled, varied_limits
from slm.dataset.examples import BadRow, Encoded, Example, encode
from slm.dataset.grouping import groups_of
from slm.dataset.missing_values import without_value
from slm.dataset.parallel_calls import Joiner
from slm.dataset.paraphrase import paraphrased
from slm.dataset.tool_errors import after_error
from slm.engine.tokenizer import Tokens
from slm.format.signature import DEFAULT_LIMITS
from slm.training.packing import Tree, pack_trees
from slm.training.recipe import Augment, Data, Recipe


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Trees in data order, counts of their rows, and counts of the rows that were left out, by reason."""

    trees: tuple[Tree, ...]
    sources: Mapping[str, int]
    """Rows by source."""
    kinds: Mapping[str, int]
    """Rows by kind of draft."""
    row_tokens: int
    """Tokens of all rows as if each stood alone, prompts included."""
    refused: Mapping[str, int]
    constructed: Mapping[str, int]
    """Rows that `augment` made another request of, by its field's name."""

    @property
    def tokens(self) -> int:
        """Number of tokens in all trees: those that are computed."""
        return sum(len(tree) for tree in self.trees)

    @property
    def supervised_tokens(self) -> int:
        """Number of supervised tokens in all trees: those that the loss is computed on."""
        return sum(sum(tree.supervised) for tree in self.trees)

    @property
    def rows(self) -> int:
        """Number of rows in all trees."""
        return sum(tree.rows for tree in self.trees)


@dataclass(slots=True)
class _RowCounts:
    sources: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    constructed: Counter[str] = field(default_factory=Counter)
    drawn: Counter[str] = field(default_factory=Counter)
    """Rows by source, before any is refused."""
    several: Counter[str] = field(default_factory=Counter)
    """Rows in `drawn` that make several calls, by source."""
    row_tokens: int = 0

    def lacks_joined(self, source: str, share: float) -> bool:
        """True while less than `share` of the source's drawn rows make several calls."""
        return self.several[source] < share * self.drawn[source]

    def count(self, example: Example, encoded: Encoded) -> Encoded:
        self.sources[example.source] += 1
        self.kinds[example.kind] += 1
        self.row_tokens += len(encoded.ids)
        return encoded

    def training_data(self, trees: Iterable[Tree]) -> TrainingData:
        constructed = dict(sorted(self.constructed.items()))
        return TrainingData(
            tuple(trees), dict(self.sources), dict(self.kinds), self.row_tokens, dict(self.refused), constructed
        )


def training_data(examples: Sequence[Example], recipe: Recipe, tokens: Tokens) -> TrainingData:
    """Draw, vary, group and pack the rows of all epochs; trees are in random order within an epoch.

    Args:
        examples: rows of the training part.
        tokens: the base model's tokenizer.
    """
    rng = random.Random(f"{recipe.run.seed}/course")  # the text is part of the seed: another one is another data order
    data, augment = recipe.data, recipe.augment
    tally = _RowCounts()
    joiner = Joiner(examples) if augment.join_calls else None
    trees: list[Tree] = []
    for _ in range(recipe.optimiser.epochs):
        grouped = groups_of(
            _drawn(examples, data, rng),
            rng,
            most_tools=data.max_tools,
            most_rows=data.rows_a_group,
            remove_gold=augment.remove_gold,
        )
        asked = (_constructed(group, augment, joiner, rng, tally) for group in grouped)
        encoded = [list(_varied(group, recipe, tokens, examples, rng, tally)) for group in asked]
        rng.shuffle(encoded)
        epoch = pack_trees(encoded, data.tree_tokens)
        rng.shuffle(epoch)
        trees += epoch
    return tally.training_data(trees)


def validation_data(examples: Sequence[Example], recipe: Recipe, tokens: Tokens) -> TrainingData:
    """Pack at most `data.validation_rows` rows of the validation part: not varied, only surplus tools are cut."""
    rng = random.Random(f"{recipe.run.seed}/validation")
    data = recipe.data
    pool = _mixed(examples, data, data.validation_rows * 4, rng) if data.sources else _in_random_order(examples, rng)
    tally = _RowCounts()
    rows: dict[tuple[str, str], Encoded] = {}
    for example in pool:
        if len(rows) >= data.validation_rows:
            break
        if (example.source, example.id) not in rows:
            try:
                plain = fewer_tools(example, rng, data.max_tools)
                rows[example.source, example.id] = tally.count(plain, encode(plain, tokens, data.max_tokens))
            except BadRow as bad:
                tally.refused[bad.reason] += 1
    return tally.training_data(pack_trees([list(rows.values())], data.tree_tokens))


def _drawn(examples: Sequence[Example], data: Data, rng: random.Random) -> list[Example]:
    if data.sources is None:
        return _in_random_order(examples, rng)
    return list(_mixed(examples, data, data.rows or len(examples), rng))


def _in_random_order(examples: Sequence[Example], rng: random.Random) -> list[Example]:
    """Conversation by conversation, so that rows that go on with one another come together."""
    conversations: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        conversations[example.conversation].append(example)
    order = list(conversations)
    rng.shuffle(order)
    return [example for conversation in order for example in conversations[conversation]]


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
            left[name] = _in_random_order(by_source[name], rng)[::-1]
        yield left[name].pop()


def _constructed(
    group: Sequence[Example], augment: Augment, joiner: Joiner | None, rng: random.Random, tally: _RowCounts
) -> list[Example]:
    """The rows of a group, some of which ask something else now; they still share their tools."""
    made = []
    for example in group:
        tally.drawn[example.source] += 1
        other = None
        if joiner is not None and tally.lacks_joined(example.source, augment.join_calls) and len(example.calls) < 2:
            other = joiner.joined(example, rng)
        if other is not None:
            tally.constructed["join_calls"] += 1
        elif rng.random() < augment.ask_back and (other := without_value(example, rng)) is not None:
            tally.constructed["ask_back"] += 1
        made.append(other or example)
        tally.several[example.source] += len(made[-1].calls) > 1
    return made


def _varied(
    group: Sequence[Example],
    recipe: Recipe,
    tokens: Tokens,
    pool: Sequence[Example],
    rng: random.Random,
    tally: _RowCounts,
) -> Iterator[Encoded]:
    """The rows of a group, varied in one way: they still share their tools afterwards."""
    augment = recipe.augment
    if rng.random() < augment.other_tools:
        group = more_tools(group, rng, pool, rng.randint(1, 3))
    if rng.random() < augment.shuffle_tools:
        group = shuffled(group, rng)
    if rng.random() < augment.mask_names:
        names = rng.random()
        group = [masked(example, random.Random(names)) for example in group]
    elif rng.random() < augment.paraphrase:
        words = rng.random()
        group = [paraphrased(example, random.Random(words)) for example in group]
    limits = varied_limits(rng) if rng.random() < augment.vary_signatures else DEFAULT_LIMITS
    for example in group:
        if rng.random() < augment.tool_errors and (failed := after_error(example, rng)) is not None:
            tally.constructed["tool_errors"] += 1
            example = failed
        try:
            yield tally.count(example, encode(example, tokens, recipe.data.max_tokens, limits))
        except BadRow as bad:
            tally.refused[bad.reason] += 1
