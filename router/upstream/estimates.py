"""What a decision cost beyond what the provider reports, and what the large model would have charged.

Reported usage is exact and stands by itself. Estimated are only: an answer that was cut short (its prompt by the body's
bytes, its completion by the characters that went by, four to a token; reasoning that nobody saw is not in it), which a
row marks by `large_estimate_nusd`. Tries that gave no answer report no usage; they are counted, and priced at nothing.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

from router.upstream.large_model import Usage
from router.upstream.prices import plain_usage

CHARS_PER_TOKEN = 4
PER_MTOK = 1_000_000
_PROBE = 1000
"""So few tokens that no provider's dearer price for long prompts begins."""


class Priced(Protocol):
    """Whatever knows what its usage costs."""

    def cost_usd(self, usage: Usage) -> float | None:
        """None where the price is not known."""


class UnitPrices(NamedTuple):
    """USD per million tokens of the large model."""

    input: float
    cached_input: float
    output: float


def unit_prices(priced: Priced) -> UnitPrices | None:
    """The price of small usage, by asking for a thousand tokens of each kind; None where it is not known."""
    asked = priced.cost_usd(_usage(_PROBE, 0))
    cached = priced.cost_usd(_usage(_PROBE, 0, cached=_PROBE))
    answered = priced.cost_usd(_usage(_PROBE, _PROBE))
    if asked is None or answered is None:
        return None
    per_mtok = PER_MTOK / _PROBE
    return UnitPrices(asked * per_mtok, (asked if cached is None else cached) * per_mtok, (answered - asked) * per_mtok)


def truncated_cost_usd(
    priced: Priced, usage: Usage | None, known_usd: float | None, request_bytes: int, chars: int
) -> float:
    """What an answer that was cut short must have cost beyond what is known of it, USD; 0 where no price is known.

    Args:
        usage, known_usd: as far as the provider reported.
        chars: of the answer, as far as it came.
    """
    completion = -(-chars // CHARS_PER_TOKEN)
    if usage is None:
        return priced.cost_usd(_usage(max(1, request_bytes // CHARS_PER_TOKEN), completion)) or 0.0
    if usage.completion_tokens >= completion or known_usd is None:
        return 0.0
    reported = {**usage.reported, "completion_tokens": completion}
    reported["total_tokens"] = usage.prompt_tokens + completion
    grown = dataclasses.replace(usage, completion_tokens=completion, reported=reported)
    return max(0.0, (priced.cost_usd(grown) or 0.0) - known_usd)


def _usage(prompt: int, completion: int, *, cached: int = 0) -> Usage:
    return Usage(prompt, completion, cached, plain_usage(prompt - cached, cached, completion))
