"""What reported usage costs: by the operator's price, else by litellm's bundled map."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import structlog

from router.settings import Price
from router.upstream.large_model import Usage

_log = structlog.get_logger("prices")
_MILLION = 1_000_000


class Prices(Protocol):
    """Prices of one model."""

    def cost_usd(self, usage: Usage) -> float | None:
        """None where the price is not known."""


class FixedPrices:
    """The operator's own."""

    def __init__(self, price: Price) -> None:
        self._price = price

    def cost_usd(self, usage: Usage) -> float:
        """Tokens read from the provider's cache, and those written to it, at their own prices where there are any."""
        price, plain = self._price, self._price.input_usd_per_mtok
        read, write = _or(price.cached_input_usd_per_mtok, plain), _or(price.cache_write_usd_per_mtok, plain)
        written = _cache_writes(usage.reported)
        fresh = usage.prompt_tokens - usage.cached_tokens - written
        prompt = fresh * plain + usage.cached_tokens * read + written * write
        return (prompt + usage.completion_tokens * price.output_usd_per_mtok) / _MILLION


def _or(price: float | None, other: float) -> float:
    return other if price is None else price


def _cache_writes(reported: Mapping[str, Any]) -> int:
    """Tokens that were written to the provider's cache."""
    details = _object(reported.get("prompt_tokens_details"))
    written = reported.get("cache_creation_input_tokens") or details.get("cache_write_tokens")
    return written if isinstance(written, int) else 0


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


class MappedPrices:
    """litellm's map, with its rules for cached tokens, cache writes, reasoning, audio, service tiers and web searches.

    Not guaranteed: that the map of the pinned release is what the provider charges today; `large.price` overrides it.
    """

    def __init__(self, litellm: ModuleType, model: str) -> None:
        self._litellm: Any = litellm
        self._model = model
        self._told = False
        self._rates = _rates(lambda reported: self._by_litellm(reported, None))

    def cost_usd(self, usage: Usage) -> float | None:
        """None, said once in the log, where the map does not know the model, or has it for nothing: for some providers
        (Anthropic among them) litellm gives a name that it does not know a price of zero."""
        if self._rates is not None and usage.service_tier in (None, "default"):
            cost = self._rates.cost_usd(usage.reported)
            if cost is not None:
                return cost
        return self._by_litellm(usage.reported, usage.service_tier)

    def _by_litellm(self, reported: Mapping[str, Any], tier: str | None) -> float | None:
        try:
            prompt, completion = self._litellm.cost_per_token(
                model=self._model,
                usage_object=self._litellm.Usage(**reported),
                service_tier=tier,
            )
        # litellm raises bare exceptions of many kinds for a model that it cannot price.
        except Exception as error:  # noqa: BLE001
            self._tell(type(error).__name__)
            return None
        if not prompt + completion:
            self._tell("free")
            return None
        return float(prompt + completion) + self._searches_usd(reported)

    def _searches_usd(self, reported: Mapping[str, Any]) -> float:
        """Of the provider's own web searches; 0 where the map has no price for them."""
        searches = _object(reported.get("server_tool_use")).get("web_search_requests")
        if not searches or not isinstance(searches, int):
            return 0.0
        prices = self._litellm.get_model_info(self._model).get("search_context_cost_per_query") or {}
        return searches * float(prices.get("search_context_size_medium") or 0.0)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            _log.warning("price_unknown", model=self._model, error=why, set="large.price")


@dataclass(frozen=True, slots=True)
class _Rates:
    """USD a token of usage that holds nothing but prompt, cached, completion and reasoning tokens. litellm takes some
    hundred microseconds to say the same."""

    prompt: float
    cached: float
    completion: float
    reasoning: float

    def cost_usd(self, reported: Mapping[str, Any]) -> float | None:
        """None where the usage holds other tokens as well."""
        cached = _only(reported, "prompt_tokens_details", "cached_tokens", 0)
        reasoning = _only(reported, "completion_tokens_details", "reasoning_tokens", 0)
        if cached is None or reasoning is None or any(reported[name] for name in reported.keys() - _PLAIN):
            return None
        prompt: int = reported["prompt_tokens"]
        completion: int = reported.get("completion_tokens") or 0
        return (
            (prompt - cached) * self.prompt
            + cached * self.cached
            + (completion - reasoning) * self.completion
            + reasoning * self.reasoning
        )


_PLAIN = frozenset(
    """prompt_tokens completion_tokens total_tokens prompt_tokens_details completion_tokens_details
    cache_read_input_tokens""".split()
)


def _only(reported: Mapping[str, Any], details: str, name: str, missing: int) -> int | None:
    """The tokens of that name among the details; None where the details hold others."""
    listed = reported.get(details)
    if not listed:
        return missing
    if not isinstance(listed, dict) or any(value for key, value in listed.items() if key not in (name, "text_tokens")):
        return None
    found = listed.get(name) or 0
    return found if isinstance(found, int) else None


def _rates(litellm: Callable[[Mapping[str, Any]], float | None]) -> _Rates | None:
    """litellm's rates, found by asking it for usages of one kind each; None where mixed ones, small and huge, do not
    cost what the rates say: then its rules are others (steps by length, say), and it has to be asked."""
    thousand = [litellm(plain_usage(*(1000 if kind == one else 0 for kind in range(4)))) for one in range(4)]
    rates = _Rates(*((cost or 0.0) / 1000 for cost in thousand))
    for mixed in ((700, 1100, 130, 90), (3, 0, 1, 0), (90_000, 410_000, 7_000, 60_000), (900_000, 0, 90_000, 0)):
        expected, ours = litellm(plain_usage(*mixed)), rates.cost_usd(plain_usage(*mixed))
        if expected is None or ours is None or not math.isclose(expected, ours, rel_tol=1e-9):
            return None
    return rates


def plain_usage(prompt: int, cached: int, completion: int, reasoning: int = 0) -> dict[str, Any]:
    """What a provider would report of so many tokens of each kind."""
    return {
        "prompt_tokens": prompt + cached,
        "completion_tokens": completion + reasoning,
        "total_tokens": prompt + cached + completion + reasoning,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
