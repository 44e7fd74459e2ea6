"""What reported usage costs: by the operator's price, else by litellm's bundled map."""

from __future__ import annotations

from types import ModuleType
from typing import Any, Protocol

import structlog

from router.settings import Price
from router.upstream import Usage

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
        """Cached tokens at their own price where there is one."""
        price = self._price
        cached_price = price.cached_input_usd_per_mtok
        cached = usage.cached_tokens if cached_price is not None else 0
        prompt = (usage.prompt_tokens - cached) * price.input_usd_per_mtok + cached * (cached_price or 0.0)
        return (prompt + usage.completion_tokens * price.output_usd_per_mtok) / _MILLION


class MappedPrices:
    """litellm's map, with its rules for cached tokens, cache writes, reasoning, audio and service tiers.

    Not guaranteed: that the map of the pinned release is what the provider charges today; `large.price` overrides it.
    """

    def __init__(self, litellm: ModuleType, model: str) -> None:
        self._litellm: Any = litellm
        self._model = model
        self._told = False

    def cost_usd(self, usage: Usage) -> float | None:
        """None, said once in the log, where the map does not know the model, or has it for nothing: for some providers
        (Anthropic among them) litellm gives a name that it does not know a price of zero."""
        try:
            prompt, completion = self._litellm.cost_per_token(
                model=self._model,
                usage_object=self._litellm.Usage(**usage.reported),
                service_tier=usage.service_tier,
            )
        # litellm raises bare exceptions of many kinds for a model that it cannot price.
        except Exception as error:  # noqa: BLE001
            self._tell(type(error).__name__)
            return None
        if not prompt + completion:
            self._tell("free")
            return None
        return float(prompt + completion)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            _log.warning("price_unknown", model=self._model, error=why, set="large.price")
