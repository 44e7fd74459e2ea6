"""Token rows that share prefixes, trained on in one pass: a prefix tree in place of a padded batch.

Rows that offer the same tools, or go on with the same conversation, share most of their tokens. Put into one tree,
every shared beginning is computed once, and nothing is padded: a token sees its ancestors only and stands at its own
depth, so each row has exactly the loss that it has alone. A token that several rows supervise after the same prefix
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
"""Number of trees that are not full that are tried for a row."""


@dataclass(slots=True)
class Tree:
    """Tokens in an order in which a parent stands before its children; all lists have one entry a token."""

    ids: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    """Index of the token before; -1 for the first of a row."""
    depths: list[int] = field(default_factory=list)
    supervised: list[bool] = field(default_factory=list)
    rows: int = 0
    _children: dict[tuple[int, int], int] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> list[int]:
        """`ids` with `IGNORED` where a token is not supervised."""
        return [token if supervised else IGNORED for token, supervised in zip(self.ids, self.supervised, strict=True)]

    def new_tokens(self, row: Encoded) -> int:
        """Number of tokens that adding the row would add to the tree."""
        node = -1
        for index, token in enumerate(row.ids):
            child = self._children.get((node, token))
            if child is None:
                return len(row.ids) - index
            node = child
        return 0

    def add(self, row: Encoded) -> None:
        """Add a row; tokens of a prefix that the tree already holds are shared."""
        node = -1
        for index, token in enumerate(row.ids):
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.ids)
                self.ids.append(token)
                self.parents.append(node)
                self.depths.append(index)
                self.supervised.append(False)
            self.supervised[child] |= index >= row.prompt_tokens
            node = child
        self.rows += 1


def pack_trees(groups: Iterable[Sequence[Encoded]], budget: int) -> list[Tree]:
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
    """Attention mask of a tree, (tokens, tokens): True where a token (row) sees itself or an ancestor (column)."""
    mask = np.zeros((len(parents), len(parents)), dtype=np.bool_)
    for index, parent in enumerate(parents):
        if parent >= 0:
            mask[index] = mask[parent]
        mask[index, index] = True
    return mask


def digest(trees: Iterable[Tree]) -> str:
    """Return the SHA-256 of a sequence of trees, order included; it identifies the data that a run was trained on."""
    whole = hashlib.sha256()
    for tree in trees:
        for column in (tree.ids, tree.parents, tree.labels):
            whole.update(" ".join(map(str, column)).encode() + b"\n")
    return whole.hexdigest()
