"""Token rows that begin alike, taught in one pass: a prefix tree in place of a padded batch.

Rows that offer the same tools, or go on with the same conversation, share most of their tokens. Put into one tree,
every shared beginning is computed once, and nothing is padded: a token sees its ancestors only and stands at its own
depth, so each row has exactly the loss that it has alone. A token that several rows teach after the same beginning
counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slm.dataset.examples import IGNORED, Encoded

_OPEN_BINS = 32
"""How many trees that are not full are tried for a row."""


@dataclass(slots=True)
class Tree:
    """Tokens in an order in which a parent stands before its children; all lists have one entry a token."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Index of the token before; -1 for the first of a row."""
    depths: list[int] = field(default_factory=list)
    taught: list[bool] = field(default_factory=list)
    rows: int = 0
    _children: dict[tuple[int, int], int] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[int]:
        """`ids` with `IGNORED` where a token is not taught."""
        return [token if taught else IGNORED for token, taught in zip(self.ids, self.taught, strict=True)]

    def new_tokens(self, row: Encoded) -> int:
        """By how many tokens the row would make the tree larger."""
        node = -1
        for index, token in enumerate(row.ids):
            child = self._children.get((node, token))
            if child is None:
                return len(row.ids) - index
            node = child
        return 0

    def add(self, row: Encoded) -> None:
        """Put a row in."""
        node = -1
        for index, token in enumerate(row.ids):
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(node)
                self.depths.append(index)
                self.taught.append(False)
            self.taught[child] |= index >= row.prompt_tokens
            node = child
        self.rows += 1


def planted(groups: Iterable[Sequence[Encoded]], budget: int) -> list[Tree]:
    """Trees of at most `budget` tokens (more only where a single row has more), in the order in which they were begun.

    Args:
        groups: rows that belong together because they begin alike. A group is kept in one tree where it fits; trees
            are filled up with other groups.
    """
    trees: list[Tree] = []
    open_trees: list[Tree] = []
    for group in groups:
        for rows in _cut(group, budget):
            tree = next((one for one in open_trees if len(one) + _size(rows) <= budget), None)
            if tree is None:
                tree = Tree()
                trees.append(tree)
                open_trees = [*open_trees, tree][-_OPEN_BINS:]
            for row in rows:
                tree.add(row)
    return trees


def _size(rows: Sequence[Encoded]) -> int:
    tree = Tree()
    for row in rows:
        tree.add(row)
    return len(tree)


def _cut(group: Sequence[Encoded], budget: int) -> Iterable[list[Encoded]]:
    """Runs of rows whose tree fits into the budget."""
    run: list[Encoded] = []
    tree = Tree()
    for row in group:
        if run and len(tree) + tree.new_tokens(row) > budget:
            yield run
            run, tree = [], Tree()
        run.append(row)
        tree.add(row)
    if run:
        yield run


def visible(parents: Sequence[int]) -> NDArray[np.bool_]:
    """Which tokens a token sees: itself and its ancestors. Shape (tokens, tokens), rows look at columns."""
    mask = np.zeros((len(parents), len(parents)), dtype=np.bool_)
    for index, parent in enumerate(parents):
        if parent >= 0:
            mask[index] = mask[parent]
        mask[index, index] = True
    return mask


def digest(trees: Iterable[Tree]) -> str:
    """SHA-256 of a sequence of trees, in order: names what a run was taught."""
    whole = hashlib.sha256()
    for tree in trees:
        for column in (tree.ids, tree.parents, tree.labels):
            whole.update(" ".join(map(str, column)).encode() + b"\n")
    return whole.hexdigest()
