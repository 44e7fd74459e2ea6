"""Decides whether a draft of a conversation's next turn is worth its cost, with the large model's prompt cache counted.

A turn of P prompt tokens, of which the provider holds C from the last large turn, and O tokens of answer. Prices a
token: i of fresh input, k of cached input, o of output. The large model now costs

    L = C·k + (P − C)·i + O·o,

and the next large turn then finds P tokens in the cache. A draft costs D, whatever becomes of it. With probability a
it is served: L is saved. But then the large model has not seen this turn: with probability r a later turn goes large,
and finds M fewer tokens in the cache than it would have, at (i − k) each. M = P − C where the cache outlives the
wait, since what was in it stays; M = P where it runs out meanwhile, since only a large turn would have kept it warm.
With probability 1 − a the draft is escalated: L is paid all the same. So a draft gains

    G = a·(L − r·M·(i − k)) − D,

and is worth it where G > 0: where a > D / (L − r·M·(i − k)), and never where the lost cache outweighs the saved turn.

Not counted: the fee that some providers ask for writing to their cache, and more than one later turn (the first one
that goes large fills the cache again).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """The turn that is to be decided. All counts are the large model's tokens."""

    prompt_tokens: float
    """P."""
    cached_tokens: float
    """C; at most P counts."""
    answer_tokens: float
    """O."""
    cache_outlives: bool
    """True if what is cached will still be there at the next turn if this one goes small."""


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Prices of the large model, in USD a token."""

    input_usd: float
    cached_usd: float
    output_usd: float


def large_usd(turn: Turn, prices: TokenPrices) -> float:
    """L: what the large model costs now."""
    cached = min(turn.cached_tokens, turn.prompt_tokens)
    fresh = turn.prompt_tokens - cached
    return cached * prices.cached_usd + fresh * prices.input_usd + turn.answer_tokens * prices.output_usd


def draft_gain_usd(turn: Turn, prices: TokenPrices, *, accepted: float, later_large: float, draft_usd: float) -> float:
    """G, see above.

    Args:
        accepted: a, in [0, 1].
        later_large: r, in [0, 1].
        draft_usd: D, of machine and waiting.

    Raises:
        ValueError: a probability outside [0, 1].
    """
    for name, value in (("accepted", accepted), ("later_large", later_large)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}: {value} is not in [0, 1]")
    cached = min(turn.cached_tokens, turn.prompt_tokens)
    lost = turn.prompt_tokens - cached if turn.cache_outlives else turn.prompt_tokens
    lost_usd = later_large * lost * max(prices.input_usd - prices.cached_usd, 0.0)
    return accepted * (large_usd(turn, prices) - lost_usd) - draft_usd


def break_even_acceptance(turn: Turn, prices: TokenPrices, *, later_large: float, draft_usd: float) -> float:
    """The share of drafts that must be served for drafting to pay; above 1, or infinite: it cannot."""
    per_served = draft_gain_usd(turn, prices, accepted=1.0, later_large=later_large, draft_usd=0.0)
    if per_served <= 0:
        return float("inf")
    return draft_usd / per_served
