"""Any provider through litellm, with our own bounded retries.

litellm takes seconds to import: it is imported in a thread at start-up, and a request that comes before waits for it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from types import ModuleType
from typing import Any

import structlog
from pydantic import SecretStr

from router.settings import Large, keep_litellm_offline
from router.upstream import UpstreamDownError, UpstreamError, UpstreamRejectedError, Usage

_log = structlog.get_logger("upstream")
MAX_RETRY_AFTER_S = 20.0

_PARAMETERS = frozenset(
    """messages tools tool_choice parallel_tool_calls stream stream_options temperature top_p n stop max_tokens
    max_completion_tokens presence_penalty frequency_penalty logit_bias logprobs top_logprobs user seed response_format
    reasoning_effort functions function_call modalities audio prediction service_tier store verbosity
    """.split()
)
"""Fields of a chat completion that litellm knows. Any other field of a client goes to the provider as it came: as an
argument it could steer litellm itself (`base_url`, `mock_response`, …)."""


class LitellmModel:
    """One large model behind litellm."""

    def __init__(
        self,
        settings: Large,
        rng: random.Random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not settings.model:
            raise ValueError("large.model is not set")
        self.model = settings.model
        self._settings, self._rng, self._sleep = settings, rng, sleep
        self._loading: asyncio.Task[ModuleType] | None = None
        self._unpriced = False

    @property
    def ready(self) -> bool:
        """Whether litellm is imported."""
        return self._loading is not None and self._loading.done()

    def warm_up(self) -> None:
        """Start importing litellm in a thread."""
        self._loading = self._loading or asyncio.create_task(asyncio.to_thread(_import))

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """See `LargeModel.complete`."""
        response = await self._ask({**body, "stream": False})
        dumped: dict[str, Any] = response.model_dump(exclude_none=False)
        return dumped

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """See `LargeModel.stream`. The connection stands when this returns."""
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        response = await self._ask({**body, "stream": True, "stream_options": options})
        return self._chunks(response)

    def cost_usd(self, usage: Usage) -> float | None:
        """By litellm's bundled price map; cached tokens at their own price."""
        if self._loading is None or not self._loading.done():
            return None
        try:
            prompt, completion = self._loading.result().cost_per_token(
                model=self.model,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cache_read_input_tokens=usage.cached_tokens,
            )
        except Exception as error:  # noqa: BLE001 - litellm raises bare Exceptions for a model it cannot price
            if not self._unpriced:
                self._unpriced = True
                _log.warning("price_unknown", model=self.model, error=type(error).__name__)
            return None
        total: float = prompt + completion
        return total

    async def _ask(self, body: dict[str, Any]) -> Any:
        self.warm_up()
        assert self._loading is not None
        litellm = await asyncio.shield(self._loading)
        attempt = 0
        while True:
            try:
                return await litellm.acompletion(**self._arguments(body))
            except Exception as error:  # every foreign error is mapped, once, here
                mapped = self._mapped(error)
                if isinstance(mapped, UpstreamRejectedError) or attempt >= self._settings.retries:
                    raise mapped from error
                _log.info("upstream_retry", code=mapped.code, attempt=attempt)
                await self._sleep(self._pause(attempt, mapped.retry_after_s))
                attempt += 1

    async def _chunks(self, response: Any) -> AsyncIterator[dict[str, Any]]:
        try:
            async for chunk in response:
                yield chunk.model_dump(exclude_none=False)
        except Exception as error:  # as above, in mid-stream
            raise self._mapped(error) from error

    def _arguments(self, body: dict[str, Any]) -> dict[str, Any]:
        arguments = {key: value for key, value in body.items() if key in _PARAMETERS}
        others = {key: value for key, value in body.items() if key not in _PARAMETERS and key != "model"}
        if others:
            arguments["extra_body"] = others
        key: SecretStr | None = self._settings.api_key
        return {
            **arguments,
            "model": self.model,
            "api_base": self._settings.api_base,
            "api_key": key.get_secret_value() if key else None,
            "timeout": self._settings.timeout_s,
            "num_retries": 0,
            "max_retries": 0,
            # litellm would look for MCP servers to run tools on, with a package that it does not require.
            "_skip_mcp_handler": True,
        }

    def _pause(self, attempt: int, retry_after_s: float | None) -> float:
        if retry_after_s is not None:
            return min(retry_after_s, MAX_RETRY_AFTER_S)
        return 0.25 * 2.0**attempt * (0.5 + self._rng.random())

    def _mapped(self, error: Exception) -> UpstreamError:
        status = getattr(error, "status_code", None)
        name = type(error).__name__
        if name == "Timeout" or isinstance(error, TimeoutError):
            return UpstreamDownError(504, "upstream_timeout", "the large model did not answer in time")
        if status == 429:
            return UpstreamDownError(
                429, "upstream_rate_limited", "the large model is rate limited", _retry_after(error)
            )
        if status in (401, 403):
            return UpstreamDownError(502, "upstream_auth", "the large model refuses the gateway's credentials")
        if isinstance(status, int) and 400 <= status < 500 and name != "APIConnectionError":
            return UpstreamRejectedError(status, "upstream_rejected", self._clean(str(getattr(error, "message", ""))))
        return UpstreamDownError(502, "upstream_unavailable", "the large model cannot be reached")

    def _clean(self, message: str) -> str:
        """A provider's message without our key and address, cut to what a person reads."""
        key = self._settings.api_key
        for secret in (key.get_secret_value() if key else None, self._settings.api_base):
            if secret:
                message = message.replace(secret, "…")
        return message[:500] or "the large model refused the request"


def _retry_after(error: Exception) -> float | None:
    response = getattr(error, "response", None)
    headers = getattr(response, "headers", None) or getattr(error, "litellm_response_headers", None) or {}
    try:
        return float(headers.get("retry-after", ""))
    except ValueError:
        return None


def _import() -> ModuleType:
    keep_litellm_offline()
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    module: ModuleType = litellm
    return module
