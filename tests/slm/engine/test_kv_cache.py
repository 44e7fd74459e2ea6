"""The prefix cache: what is reused is what would have been computed, in bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.engine.engine import DraftEngine
from slm.engine.kv_cache import BLOCK_TOKENS, KVCache, PrefixCache, Shape
from slm.engine.model import load
from slm.protocol import Started, Token
from tests.slm.conftest import command, tool

SHAPE = Shape(layers=2, heads=1, head_dim=2, dtype=torch.float32)
BLOCK_BYTES = SHAPE.bytes_per_token * BLOCK_TOKENS


class Watching(KVCache):
    """Keys and values that look at the cache whenever a block is read from them."""

    def __init__(self, capacity: int, cache: PrefixCache | None, most: int) -> None:
        super().__init__(SHAPE, capacity)
        self._cache, self._most = cache, most

    def read(self, start: int, end: int) -> torch.Tensor:
        """With room for what is read."""
        assert self._cache is None or self._cache.bytes_held + BLOCK_BYTES <= self._most
        return super().read(start, end)


def filled(tokens: list[int], cache: PrefixCache | None = None, most: int = 0) -> KVCache:
    """Keys and values that tell which prefix they stand for: at each place the sum of the tokens up to it. Where a
    cache is named, it holds at most `most` bytes while it reads them."""
    kv = Watching(len(tokens) + 8, cache, most)
    sums = torch.tensor(tokens, dtype=torch.float32).cumsum(0)
    kv.append(sums.reshape(1, 1, 1, -1, 1).expand(4, 1, 1, -1, 2))
    return kv


def restored(cache: PrefixCache, tokens: list[int]) -> list[float]:
    """What the cache gives for a prefix, in the form of `filled`."""
    kv = KVCache(SHAPE, len(tokens) + 8)
    held = cache.lookup(tokens, kv)
    assert held == kv.length
    return kv.read(0, held)[3, 0, 0, :, 1].tolist()


@given(
    st.lists(
        st.lists(st.sampled_from([1, 2]), max_size=4).map(lambda parts: [t for p in parts for t in [p] * BLOCK_TOKENS]),
        max_size=12,
    ),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_whatever_is_held_belongs_to_exactly_these_tokens(prefixes: list[list[int]], blocks: int) -> None:
    """Over random arrivals and evictions: never a wrong value, never over the bound, not in the middle of storing
    either, never a block without its past, and of one prefix at most half of the room."""
    most = blocks * BLOCK_BYTES + 1
    cache = PrefixCache(SHAPE, most)
    for tokens in prefixes:
        expected = torch.tensor(tokens, dtype=torch.float32).cumsum(0).tolist()
        got = restored(cache, tokens)
        assert got == expected[: len(got)]
        if tokens:
            cache.store(tokens, filled(tokens, cache, most))
        assert cache.bytes_held <= most
        assert len(restored(cache, tokens)) >= min(len(tokens), (blocks + 1) // 2 * BLOCK_TOKENS)


def test_shared_prefixes_are_held_once_and_the_oldest_tail_goes_first() -> None:
    """Two prompts with the same head share its blocks; what was used longest ago is given up, tails before heads."""
    head, a, b, c = ([n] * BLOCK_TOKENS for n in (1, 2, 3, 4))
    cache = PrefixCache(SHAPE, 3 * BLOCK_BYTES)
    for tail in (a, b):
        cache.store(head + tail, filled(head + tail))
    assert cache.bytes_held == 3 * BLOCK_BYTES
    assert len(restored(cache, head + a)) == 2 * BLOCK_TOKENS
    cache.store(head + c, filled(head + c))
    assert len(restored(cache, head + a)) == 2 * BLOCK_TOKENS
    assert len(restored(cache, head + b)) == BLOCK_TOKENS


def test_a_long_prefix_leaves_half_of_the_room_to_others() -> None:
    """Ten blocks of one prompt take two of four: what another shares is still there."""
    shared, long = [1] * BLOCK_TOKENS + [2] * BLOCK_TOKENS, list(range(3, 3 + 10 * BLOCK_TOKENS))
    cache = PrefixCache(SHAPE, 4 * BLOCK_BYTES)
    cache.store(shared, filled(shared))
    cache.store(long, filled(long))
    assert cache.held(long) == 2 * BLOCK_TOKENS
    assert cache.held(shared) == 2 * BLOCK_TOKENS


def test_a_buffer_is_filled_on_from_where_it_stands() -> None:
    """What another prompt stores meanwhile is taken behind what was read already, and only that."""
    tokens = [1] * BLOCK_TOKENS + [2] * BLOCK_TOKENS + [3] * BLOCK_TOKENS
    cache, kv = PrefixCache(SHAPE, 8 * BLOCK_BYTES), KVCache(SHAPE, 4 * BLOCK_TOKENS)
    kv.append(filled(tokens).read(0, BLOCK_TOKENS))
    assert cache.lookup(tokens, kv) == 0
    cache.store(tokens, filled(tokens))
    assert cache.lookup(tokens, kv) == 2 * BLOCK_TOKENS
    torch.testing.assert_close(kv.read(0, len(tokens)), filled(tokens).read(0, len(tokens)))


def test_a_part_of_a_block_is_not_kept() -> None:
    """Only whole blocks are kept, and only whole blocks are found."""
    cache = PrefixCache(SHAPE, 8 * BLOCK_BYTES)
    tokens = [1] * (BLOCK_TOKENS + 5)
    cache.store(tokens, filled(tokens))
    assert cache.bytes_held == BLOCK_BYTES
    assert restored(cache, tokens[: BLOCK_TOKENS - 1]) == []
    assert len(restored(cache, tokens)) == BLOCK_TOKENS


def signals(engine: DraftEngine, text: str) -> tuple[int, list[Token]]:
    """Reused prompt tokens and the tokens of one draft."""
    events = list(engine.draft(command(messages=[{"role": "user", "content": text}], tools=[tool("find")] * 1)))
    (started,) = (event for event in events if isinstance(event, Started))
    return started.cached_tokens, [event for event in events if isinstance(event, Token)]


@pytest.mark.parametrize("architecture", ["llama_folder", "opt_folder"])
def test_drafts_are_the_same_with_and_without_the_cache(request: pytest.FixtureRequest, architecture: str) -> None:
    """Over requests that share their tools, every token and signal equals those of an engine that keeps nothing."""
    folder = request.getfixturevalue(architecture)
    keeping, forgetful = DraftEngine(load(folder)), DraftEngine(load(folder), cache_bytes=0)
    reused = []
    for text in ("What is the weather?", "What is the time?", "What is the weather?", "What is the weather? Tell me."):
        cached, tokens = signals(keeping, text)
        none, expected = signals(forgetful, text)
        reused.append(cached)
        assert none == 0
        assert [token.id for token in tokens] == [token.id for token in expected]
        assert [token.logprob for token in tokens] == pytest.approx([t.logprob for t in expected], abs=1e-4)
        assert [token.entropy for token in tokens] == pytest.approx([t.entropy for t in expected], abs=1e-4)
    assert reused[0] == 0
    assert all(count >= BLOCK_TOKENS for count in reused[1:])
