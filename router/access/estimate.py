"""Estimates what a request takes before it is served."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from router.access.limits import Reservation
from router.dialects.parsing import MAX_CHOICES
from router.ledger.row import NANO
from router.upstream.estimates import PER_MTOK, Priced, UnitPrices, unit_prices

BYTES_PER_TOKEN = 4
"""Bytes of JSON a token: English prose has about four characters, and the syntax makes up for denser scripts."""
_LIMITS = ("max_completion_tokens", "max_tokens")


class LargeRates:
    """The large model's prices, once they are known.

    Args:
        large: None: there is none.
        priced: waits until the price can be asked for.
    """

    def __init__(self, large: Priced | None, priced: Callable[[], Awaitable[None]] | None = None) -> None:
        self._large, self._priced = large, priced
        self._known: UnitPrices | None = None

    @property
    def costs(self) -> bool:
        """True if there is a large model."""
        return self._large is not None

    async def known(self) -> UnitPrices | None:
        """None where there is no large model, or its price is not known."""
        if self._known is None and self._large is not None:
            if self._priced is not None:
                await self._priced()
            self._known = unit_prices(self._large)
        return self._known


def estimate(
    size_bytes: int, body: Mapping[str, Any], assumed_output_tokens: int, rates: UnitPrices | None
) -> Reservation:
    """Return what a request is estimated to take if the large model answers it.

    Prompt: a token for every four bytes of the body. Answer: `assumed_output_tokens`, or the client's own limit where
    that is lower, times the number of choices (`MAX_CHOICES` at most). No prompt is taken for cached. Without `rates`
    it costs nothing.
    """
    prompt = size_bytes // BYTES_PER_TOKEN + 1
    limit = next((body[name] for name in _LIMITS if isinstance(body.get(name), int)), assumed_output_tokens)
    choices = body.get("n")
    answers = min(choices, MAX_CHOICES) if isinstance(choices, int) and choices > 1 else 1
    answer = max(0, min(int(limit), assumed_output_tokens)) * answers
    cost = 0.0 if rates is None else (prompt * rates.input + answer * rates.output) / PER_MTOK
    return Reservation(prompt + answer, round(cost * NANO))
