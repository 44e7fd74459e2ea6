"""Keys and values: the buffer of one draft, and a store of prefixes shared between drafts.

Prefixes are kept in blocks of `BLOCK_TOKENS` tokens, each known by the block before it and its own tokens, compared in
full: no hash decides what a model reads. Blocks of the system text and the tools are thus held once for all requests
that share them. Reuse is exact up to rounding: a forward pass over fewer tokens may add in another order.

Not safe to share between threads: the engine's thread owns both.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK_TOKENS = 32

_Key = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of one token's keys and values in a model. Every layer has full attention and the same heads."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: str = "cpu"
    """Device of the tensors: the model's."""

    @property
    def bytes_per_token(self) -> int:
        itemsize: int = self.dtype.itemsize
        return 2 * self.layers * self.heads * self.head_dim * itemsize


class KVCache(Cache):  # type: ignore[misc]
    """Keys and values of one draft, in one buffer that is allocated once and written in place.

    Args:
        capacity: tokens that fit; writing more is an error of the caller.
    """

    def __init__(self, shape: Shape, capacity: int) -> None:
        self._buffer = torch.empty(
            (2 * shape.layers, 1, shape.heads, capacity, shape.head_dim), dtype=shape.dtype, device=shape.device
        )
        super().__init__(
            layers=[_CacheLayer(self._buffer[2 * i], self._buffer[2 * i + 1]) for i in range(shape.layers)]
        )

    @property
    def length(self) -> int:
        """Tokens held by every layer."""
        return int(self.layers[-1].length)

    def layer(self, index: int) -> torch.Tensor:
        """One layer's keys and values, to be written and read in place: shape (2, heads, capacity, head_dim)."""
        return self._buffer[2 * index : 2 * index + 2, 0]

    def set_length(self, length: int) -> None:
        """Set the number of tokens held: more, once they are written; fewer, to drop the last ones."""
        for layer in self.layers:
            layer.length = length

    def read(self, start: int, end: int) -> torch.Tensor:
        """A copy of tokens [start, end): shape (2 · layers, 1, heads, end − start, head_dim)."""
        return self._buffer[:, :, :, start:end].clone()

    def append(self, block: torch.Tensor) -> None:
        """Write a block as `read` gave it behind what is held."""
        start, end = self.length, self.length + block.shape[3]
        self._buffer[:, :, :, start:end] = block
        self.set_length(end)


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """The tokens that a forward pass reads for one draft: `ids`, at least one, which follow the tokens held by `kv`.
    The pass returns the logits after the last `rows` of them."""

    kv: KVCache
    ids: Sequence[int]
    rows: int


class _CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's view of the buffer, in the form in which transformers reads a cache."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.length = keys, values, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffer is there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start, end = self.length, self.length + key_states.shape[-2]
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return int(self.keys.shape[-2])


@dataclass(slots=True)
class _Block:
    id: int
    data: torch.Tensor


class PrefixCache:
    """Blocks of prefixes, the least recently used given up first. One prefix takes half of the room at most, so that a
    single long one leaves others what they share.

    Args:
        capacity_bytes: bound on the keys and values held, at any moment; 0 keeps none.
    """

    def __init__(self, shape: Shape, capacity_bytes: int) -> None:
        self._block_bytes = shape.bytes_per_token * BLOCK_TOKENS
        self._most = capacity_bytes // self._block_bytes
        self._most_of_one = (self._most + 1) // 2
        self._blocks: OrderedDict[_Key, _Block] = OrderedDict()
        """Blocks keyed by the id of the block before (0 for none) and the block's tokens; least recently used first. A
        block is always used after the blocks behind it, so no block outlives the one before it."""
        self._next_id = 1

    @property
    def bytes_held(self) -> int:
        return len(self._blocks) * self._block_bytes

    def held(self, tokens: Sequence[int]) -> int:
        """Number of leading `tokens` that are held: a multiple of `BLOCK_TOKENS`. Does not count as use."""
        return len(self._chain(tokens)) * BLOCK_TOKENS

    def lookup(self, tokens: Sequence[int], into: KVCache) -> int:
        """Fill a buffer, which is empty or holds whole blocks of `tokens`, up to the longest prefix that is held.

        Returns:
            Number of tokens filled in: a multiple of `BLOCK_TOKENS`.
        """
        keys = self._chain(tokens)
        more = keys[into.length // BLOCK_TOKENS :]
        for key in more:
            into.append(self._blocks[key].data)
        self._use(keys)
        return len(more) * BLOCK_TOKENS

    def store(self, tokens: Sequence[int], source: KVCache) -> None:
        """Keep the first whole blocks of `tokens`, whose keys and values `source` holds."""
        whole = min(len(tokens) // BLOCK_TOKENS, self._most_of_one)
        keys = self._chain(tokens[: whole * BLOCK_TOKENS])
        self._use(keys)  # What is given up for the rest is another's.
        while len(keys) < whole:
            if len(self._blocks) == self._most:
                self._blocks.popitem(last=False)
            start = len(keys) * BLOCK_TOKENS
            key = (self._blocks[keys[-1]].id if keys else 0, tuple(tokens[start : start + BLOCK_TOKENS]))
            self._blocks[key] = _Block(self._next_id, source.read(start, start + BLOCK_TOKENS))
            self._next_id += 1
            keys.append(key)
        self._use(keys)

    def _chain(self, tokens: Sequence[int]) -> list[_Key]:
        """Keys of the blocks that are held for the beginning of `tokens`, first block first."""
        keys: list[_Key] = []
        before = 0
        for start in range(0, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            key = (before, tuple(tokens[start : start + BLOCK_TOKENS]))
            block = self._blocks.get(key)
            if block is None:
                break
            keys.append(key)
            before = block.id
        return keys

    def _use(self, keys: Sequence[_Key]) -> None:
        for key in reversed(keys):
            self._blocks.move_to_end(key)
