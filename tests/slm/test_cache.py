"""The prefix cache: what is reused is what would have been computed, in bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.cache import BLOCK_TOKENS, KeyValues, PrefixCache, Shape
from slm.engine import Engine
from slm.model import load
from slm.protocol import Started, Token
from tests.slm.conftest import command, tool

SHAPE = Shape(layers=2, heads=1, head_dim=2, dtype=torch.float32)
BLOCK_BYTES = SHAPE.bytes_per_token * BLOCK_TOKENS


def filled(tokens: list[int]) -> KeyValues:
    """Keys and values that tell which prefix they stand for: at each place the sum of the tokens up to it."""
    memory = KeyValues(SHAPE, len(tokens) + 8)
    sums = torch.tensor(tokens, dtype=torch.float32).cumsum(0)
    memory.append(sums.reshape(1, 1, 1, -1, 1).expand(4, 1, 1, -1, 2))
    return memory


def restored(cache: PrefixCache, tokens: list[int]) -> list[float]:
    """What the cache gives for a prefix, in the form of `filled`."""
    memory = KeyValues(SHAPE, len(tokens) + 8)
    held = cache.lookup(tokens, memory)
    assert held == memory.length
    return memory.read(0, held)[3, 0, 0, :, 1].tolist()


@given(
    st.lists(
        st.lists(st.sampled_from([1, 2]), max_size=4).map(lambda parts: [t for p in parts for t in [p] * BLOCK_TOKENS]),
        max_size=12,
    ),
    st.integers(0, 5),
)
@settings(deadline=None)
def test_whatever_is_held_belongs_to_exactly_these_tokens(prefixes: list[list[int]], blocks: int) -> None:
    """Over random arrivals and evictions: never a wrong value, never over the bound, never a block without its past."""
    cache = PrefixCache(SHAPE, blocks * BLOCK_BYTES + 1)
    for tokens in prefixes:
        expected = torch.tensor(tokens, dtype=torch.float32).cumsum(0).tolist()
        got = restored(cache, tokens)
        assert got == expected[: len(got)]
        if tokens:
            cache.store(tokens, filled(tokens))
        assert cache.bytes_held <= blocks * BLOCK_BYTES
        assert len(restored(cache, tokens)) == min(len(tokens), blocks * BLOCK_TOKENS)


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


def test_a_part_of_a_block_is_not_kept() -> None:
    """Only whole blocks are kept, and only whole blocks are found."""
    cache = PrefixCache(SHAPE, 8 * BLOCK_BYTES)
    tokens = [1] * (BLOCK_TOKENS + 5)
    cache.store(tokens, filled(tokens))
    assert cache.bytes_held == BLOCK_BYTES
    assert restored(cache, tokens[: BLOCK_TOKENS - 1]) == []
    assert len(restored(cache, tokens)) == BLOCK_TOKENS


def signals(engine: Engine, text: str) -> tuple[int, list[Token]]:
    """Reused prompt tokens and the tokens of one draft."""
    events = list(engine.draft(command(messages=[{"role": "user", "content": text}], tools=[tool("find")] * 1)))
    (started,) = (event for event in events if isinstance(event, Started))
    return started.cached_tokens, [event for event in events if isinstance(event, Token)]


@pytest.mark.parametrize("architecture", ["llama_folder", "opt_folder"])
def test_drafts_are_the_same_with_and_without_the_cache(request: pytest.FixtureRequest, architecture: str) -> None:
    """Over requests that share their tools, every token and signal equals those of an engine that keeps nothing."""
    folder = request.getfixturevalue(architecture)
    keeping, forgetful = Engine(load(folder)), Engine(load(folder), cache_bytes=0)
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
