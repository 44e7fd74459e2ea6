"""What a request is reckoned to take before it is served, and what it is charged afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from router.access.limits import Need
from router.dialects.reading import MAX_CHOICES
from router.ledger.row import NANO
from router.upstream import Usage

BYTES_PER_TOKEN = 4
"""Of JSON: English prose has about four characters a token, and the syntax around it makes up for denser scripts."""
_SAMPLE = 1000
"""Tokens that a price is read off: so few that no provider's dearer price for long prompts begins."""
_LIMITS = ("max_completion_tokens", "max_tokens")


class Priced(Protocol):
    """Whatever knows what usage of the large model costs."""

    def cost_usd(self, usage: Usage) -> float | None:
        """None where the price is not known."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the large model costs, USD a token."""

    input_usd: float
    cached_usd: float
    """Of input that the provider has in its prompt cache."""
    output_usd: float


def rates_of(large: Priced) -> Rates | None:
    """The large model's prices, read off what it says of small usages; None where they are not known."""

    def cost(prompt: int, completion: int, cached: int) -> float | None:
        reported = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return large.cost_usd(Usage(prompt, completion, cached, reported))

    prompt, cached = cost(_SAMPLE, 0, 0), cost(_SAMPLE, 0, _SAMPLE)
    both = cost(_SAMPLE, _SAMPLE, 0)
    if prompt is None or both is None:
        return None
    return Rates(prompt / _SAMPLE, (prompt if cached is None else cached) / _SAMPLE, (both - prompt) / _SAMPLE)


class LargeRates:
    """The large model's prices, once they are known.

    Args:
        large: None: there is none.
        priced: waits until the price can be asked for.
    """

    def __init__(self, large: Priced | None, priced: Callable[[], Awaitable[None]] | None = None) -> None:
        self._large, self._priced = large, priced
        self._known: Rates | None = None

    @property
    def costs(self) -> bool:
        """Whether there is a large model."""
        return self._large is not None

    async def known(self) -> Rates | None:
        """None where there is no large model, or its price is not known."""
        if self._known is None and self._large is not None:
            if self._priced is not None:
                await self._priced()
            self._known = rates_of(self._large)
        return self._known


def need(size_bytes: int, body: Mapping[str, Any], assumed_output_tokens: int, rates: Rates | None) -> Need:
    """What a request is reckoned to take if the large model answers it.

    Prompt: a token for every four bytes of the body. Answer: `assumed_output_tokens`, or the client's own limit where
    that is lower, times the number of choices (`MAX_CHOICES` at most). No prompt is taken for cached. Without `rates`
    it costs nothing.
    """
    prompt = size_bytes // BYTES_PER_TOKEN + 1
    told = next((body[name] for name in _LIMITS if isinstance(body.get(name), int)), assumed_output_tokens)
    choices = body.get("n")
    answers = min(choices, MAX_CHOICES) if isinstance(choices, int) and choices > 1 else 1
    answer = max(0, min(int(told), assumed_output_tokens)) * answers
    cost = 0.0 if rates is None else prompt * rates.input_usd + answer * rates.output_usd
    return Need(prompt + answer, round(cost * NANO))
