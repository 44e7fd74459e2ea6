"""Any provider through litellm, with our own bounded retries and none of litellm's.

litellm takes seconds to import: a thread does it at start-up, and a request that comes before waits for it. Its first
call loads some more, in the event loop (about a second on the machines that we measured). All foreign errors become
`UpstreamError` here, once, and none of them shows a key or an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import orjson
import structlog

from router.constants import Constants
from router.dialects.provider.call_deltas import NO_ARGUMENTS, is_empty, objects
from router.dialects.provider.provider_json import StreamTexts, whole
from router.settings import Large, keep_litellm_offline
from router.upstream import shape
from router.upstream.attempts import Attempts, broken_off, refused, timed_out, unreachable
from router.upstream.breaker import Breaker
from router.upstream.large_model import (
    ErrorKind,
    LargeStream,
    Tries,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
    Usage,
)
from router.upstream.prices import FixedPrices, MappedPrices, Prices
from router.upstream.provider_errors import ProviderError, kind_of, read_error, read_text

_log = structlog.get_logger("upstream")
T = TypeVar("T")

COUNT_TIMEOUT_S = 10.0
"""For an estimate of tokens, those before it included."""
_CHAIN = 16
"""Errors behind an error that are looked at."""

_PARAMETERS = frozenset(
    """messages tools tool_choice parallel_tool_calls stream stream_options temperature top_p n stop max_tokens
    max_completion_tokens presence_penalty frequency_penalty logit_bias logprobs top_logprobs user seed response_format
    reasoning_effort functions function_call modalities audio prediction service_tier store verbosity
    """.split()
)
"""Fields of a chat completion that litellm knows. Any other field of a client goes to the provider as it came: as an
argument it could steer litellm itself (`base_url`, `mock_response`, …)."""


class LitellmModel:
    """One large model behind litellm. Belongs to one event loop.

    Args:
        retried: called with the code of each failure that is tried again.
        clock: seconds, monotonic.
        constants: of the circuit breaker.
    """

    def __init__(
        self,
        settings: Large,
        *,
        rng: random.Random,
        retried: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        constants: Constants | None = None,
    ) -> None:
        if not settings.model:
            raise ValueError("large.model is not set")
        self.model = settings.model
        self._settings = settings
        constants = constants or Constants()
        breaker = Breaker(constants.breaker_failures, constants.breaker_cooldown_s, clock)
        self.attempts = Attempts(settings, rng=rng, retried=retried, sleep=sleep, breaker=breaker)
        self._loading: asyncio.Task[ModuleType] | None = None
        self._counting = ThreadPoolExecutor(1, "count-tokens")
        self._prices: Prices | None = FixedPrices(settings.price) if settings.price else None

    @property
    def ready(self) -> bool:
        """Whether litellm is imported."""
        loading = self._loading
        return loading is not None and loading.done() and not loading.cancelled() and loading.exception() is None

    async def priced(self) -> None:
        """Wait until prices are known: litellm's map comes with its import."""
        if self._prices is None and self._loading is not None and not self.ready:
            await asyncio.shield(self._loading)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LitellmModel]:
        """Import litellm in a thread; at the end close its connections."""
        self._loading = asyncio.create_task(asyncio.to_thread(self._load), name="litellm-import")
        try:
            yield self
        finally:
            self._counting.shutdown(wait=False, cancel_futures=True)
            litellm = await self._loading  # A thread cannot be broken off.
            await litellm.close_litellm_async_clients()
            litellm.in_memory_llm_clients_cache.flush_cache()  # It would hand the closed ones out again.

    def _load(self) -> ModuleType:
        litellm = _import()
        if self._prices is None:
            self._prices = MappedPrices(litellm, self.model)
        gc.freeze()  # litellm's 300,000 objects stay to the end: no collection need walk through them
        return litellm

    async def complete(self, body: Mapping[str, Any], tries: Tries | None = None) -> dict[str, Any]:
        """See `LargeModel.complete`."""

        async def attempt() -> dict[str, Any]:
            response = await self._asked({**body, "stream": False})
            return shape.completion(whole(response.model_dump()))

        return await self.attempts.run(attempt, tries)

    async def stream(self, body: Mapping[str, Any], tries: Tries | None = None) -> LargeStream:
        """See `LargeModel.stream`. Usage is always asked for."""
        options = {**(body.get("stream_options") or {}), "include_usage": True}

        async def attempt() -> LargeStream:
            response = await self._asked({**body, "stream": True, "stream_options": options})
            stream = LitellmStream(response, self._settings.timeout_s, self._mapped)
            try:
                await stream.open()
            except BaseException:
                await stream.aclose()
                raise
            return stream

        return await self.attempts.run(attempt, tries)

    async def count_tokens(self, body: Mapping[str, Any]) -> int:
        """What litellm's tokenizer for the model makes of a chat completion's request: an estimate, made in a thread
        that does nothing else. Raises UpstreamError."""
        if self._loading is None:
            raise RuntimeError("the model is not running")
        litellm: Any = await asyncio.shield(self._loading)
        asked = {key: body[key] for key in ("messages", "tools", "tool_choice") if body.get(key)}
        # litellm would fetch a picture to see its size.
        unseen = _pictures_elsewhere(body)
        count = partial(litellm.token_counter, model=self.model, use_default_image_token_count=unseen, **asked)
        try:
            async with asyncio.timeout(COUNT_TIMEOUT_S):
                return int(await asyncio.get_running_loop().run_in_executor(self._counting, count))
        except TimeoutError as error:
            message = f"the tokens were not counted within {COUNT_TIMEOUT_S:g} s"
            raise UpstreamTimeout(503, "count_timeout", message, retry_after_s=1) from error
        except Exception as error:
            _log.info("tokens_not_counted", error=type(error).__name__)
            raise UpstreamRejected(400, "not_countable", "the request's tokens cannot be estimated") from error

    def cost_usd(self, usage: Usage) -> float | None:
        """See `LargeModel.cost_usd`."""
        if self._prices is None:
            return None
        return self._prices.cost_usd(usage)

    # ── one attempt ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _asked(self, body: Mapping[str, Any]) -> Any:
        """litellm's response. Raises UpstreamError."""
        if self._loading is None:
            raise RuntimeError("the model is not running")
        litellm = await asyncio.shield(self._loading)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await litellm.acompletion(**self._arguments(body))
        except Exception as error:
            raise self._mapped(error) from error

    def _arguments(self, body: Mapping[str, Any]) -> dict[str, Any]:
        # A copy: litellm changes messages and tools in place for some providers.
        copied: dict[str, Any] = orjson.loads(orjson.dumps(body))
        for call in (call for message in copied["messages"] for call in objects(message.get("tool_calls"))):
            function = call.get("function")
            if isinstance(function, dict) and is_empty(function.get("arguments", "")):
                function["arguments"] = NO_ARGUMENTS
        arguments = {key: value for key, value in copied.items() if key in _PARAMETERS}
        others = {key: value for key, value in copied.items() if key not in _PARAMETERS and key != "model"}
        if others:
            arguments["extra_body"] = others
        settings = self._settings
        return {
            **arguments,
            "model": self.model,
            "api_base": settings.api_base,
            "api_key": settings.api_key.get_secret_value() if settings.api_key else None,
            "timeout": settings.timeout_s,
            "drop_params": settings.drop_params,
            "num_retries": 0,
            "max_retries": 0,
            # litellm would look for MCP servers to run tools on, with a package that it does not require.
            "_skip_mcp_handler": True,
        }

    # ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def _mapped(self, error: Exception) -> UpstreamError:
        if isinstance(error, UpstreamError):
            return error
        if _timed_out(error):
            return timed_out(self._settings)
        status = getattr(error, "status_code", None)
        said = _provider_error(error)
        if said is None:
            if not isinstance(status, int):
                _log.warning("upstream_error_unknown", error=type(error).__name__)
                return unreachable()
            # Words that may be litellm's own say what is meant, and are told only of what is surely a provider's doing.
            said = ProviderError(message=_words(error))
            if kind_of(said, status) is ErrorKind.SERVER:
                said = ProviderError()
        # litellm gives a status of its own, 500, to what a provider reports inside a stream of status 200.
        in_stream = type(error).__name__ == "MidStreamFallbackError"
        own = status if isinstance(status, int) and status >= 400 and not in_stream else None
        return refused(own, said, _headers(error), self._settings)


class LitellmStream:
    """litellm's chunks in OpenAI's shape. litellm itself ends a stream that broke off with an invented `stop` and
    counts tokens that nobody reported: here the first is an error, and the second is left out."""

    def __init__(self, response: Any, idle_s: float, mapped: Callable[[Exception], UpstreamError]) -> None:
        self._response, self._idle_s, self._mapped = response, idle_s, mapped
        self._first: dict[str, Any] | None = None
        self._texts = StreamTexts()

    async def open(self) -> None:
        """Wait for the first chunk, so that what fails can still be retried. Raises UpstreamError."""
        self._first = await self._next()
        if self._first is None:
            raise UpstreamUnavailable(502, "upstream_unavailable", "the large model sent nothing", retryable=True)

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        chunk = self._first
        while chunk is not None:
            yield chunk
            chunk = await self._next()

    async def aclose(self) -> None:
        """See `LargeStream.aclose`."""
        await self._response.aclose()

    async def _next(self) -> dict[str, Any] | None:
        """The next chunk, or None after the last. Raises UpstreamError."""
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    dumped = (await anext(self._response)).model_dump()
            except StopAsyncIteration:
                return None
            except Exception as error:
                raise self._mapped(error) from error
            if dumped.get("usage"):
                if any(getattr(chunk, "usage", None) is not None for chunk in self._response.chunks):
                    return shape.usage_chunk(dumped)
            elif self._invented(dumped):
                raise broken_off()
            else:
                return self._texts.whole(shape.chunk(dumped))

    def _invented(self, dumped: Mapping[str, Any]) -> bool:
        finished = any(choice.get("finish_reason") for choice in dumped.get("choices") or ())
        response = self._response
        return finished and response.received_finish_reason is None and response.intermittent_finish_reason is None


def _pictures_elsewhere(body: Mapping[str, Any]) -> bool:
    """Whether a message shows a picture by its address."""
    for message in body["messages"]:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            shown = part.get("image_url") if isinstance(part, Mapping) else None
            address = shown.get("url") if isinstance(shown, Mapping) else shown
            if isinstance(address, str) and address.startswith(("http:", "https:")):
                return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and those behind it."""
    seen: BaseException | None = error
    for _ in range(_CHAIN):
        if seen is None:
            break
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _timed_out(error: BaseException) -> bool:
    """Whether a time-out is at the root of it.

    The socket's own clock starts with the last data, ours with the wait for the next: on a busy machine the socket's
    is first, and litellm wraps what it raises as a lost connection.
    """
    return any(isinstance(one, TimeoutError) for one in _chain(error))


def _provider_error(error: Exception) -> ProviderError | None:
    """What the provider wrote: the body that the SDK behind litellm read, or the JSON that litellm quotes."""
    for one in _chain(error):
        body = getattr(one, "body", None)
        if isinstance(body, str) and not body.lstrip().startswith("<"):
            body = {"error": body}
        found = read_error(body, refused=True)
        if found is not None:
            return found
    return read_text(str(getattr(error, "message", "")))


def _words(error: Exception) -> str:
    """An error's message without the names of classes that litellm puts before it."""
    message = str(getattr(error, "message", ""))
    message = message.partition(" Original exception: ")[0]
    return re.sub(r"^(litellm\.)?(\w+(\.\w+)?: )*(\w+(Exception|Error) - )?", "", message, count=1)


def _headers(error: Exception) -> Mapping[str, str]:
    """The provider's headers."""
    # litellm puts an empty response of its own making into most of its errors; the real headers stand beside it.
    headers = getattr(error, "litellm_response_headers", None) or {}
    return {str(name).lower(): str(value) for name, value in headers.items()}


def _import() -> ModuleType:
    keep_litellm_offline()
    import litellm

    litellm.suppress_debug_info = True
    litellm.telemetry = False
    # Its log lines quote requests.
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    module: ModuleType = litellm
    return module
