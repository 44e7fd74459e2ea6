"""Several training sequences as one tree: what they share is computed once.

Rows that offer the same tools begin with the same thousand tokens, and the turns of one conversation begin with all turns
before them. A prefix tree of such sequences, flattened depth first, with each token attending to its ancestors only and
placed at its depth, gives every row exactly the hidden states that it has alone, for a fraction of the tokens.

Sequences are plain token ids; nothing here imports a model library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: `prompt` is read, `completion` (its end token included) is learnt."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    weight: float = 1.0
    """The weight of each completion token in the loss."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A flattened prefix tree of T tokens with N targets.

    `parents[i] < i` is the token before token i (−1 for a root); target n says that after token `sources[n]` the token
    `targets[n]` is to be predicted, with `weights[n]`.
    """

    tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]
    sources: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.tokens)

    def attention(self) -> npt.NDArray[np.bool_]:
        """Who sees whom, shape (T, T): token i attends to itself and to its ancestors."""
        size = len(self)
        mask = np.zeros((size, size), dtype=np.bool_)
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                mask[index] = mask[parent]
            mask[index, index] = True
        return mask


def pack(samples: Sequence[Sample]) -> Tree:
    """The prefix tree of `samples`. Equal completions after equal prompts keep one target each, weights added.

    Raises:
        ValueError: a sample without a prompt or without a completion.
    """
    children: dict[tuple[int, int], int] = {}
    tokens: list[int] = []
    positions: list[int] = []
    parents: list[int] = []
    learnt: dict[int, float] = {}
    for sample in samples:
        if not sample.prompt or not sample.completion:
            raise ValueError("a sample needs a prompt and a completion")
        node = -1
        for depth, token in enumerate(sample.prompt + sample.completion):
            child = children.get((node, token))
            if child is None:
                child = len(tokens)
                children[node, token] = child
                tokens.append(token)
                positions.append(depth)
                parents.append(node)
            if depth >= len(sample.prompt):
                learnt[child] = learnt.get(child, 0.0) + sample.weight
            node = child
    order = sorted(learnt)
    return Tree(
        tokens=np.asarray(tokens, dtype=np.int64),
        positions=np.asarray(positions, dtype=np.int64),
        parents=np.asarray(parents, dtype=np.int64),
        sources=np.asarray([parents[node] for node in order], dtype=np.int64),
        targets=np.asarray([tokens[node] for node in order], dtype=np.int64),
        weights=np.asarray([learnt[node] for node in order], dtype=np.float32),
    )
