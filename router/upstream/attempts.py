"""Asking the large model until it answers: retries with pauses under one circuit breaker, and what failures mean."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any, TypeVar

import structlog

from router.settings import Large, environment_secrets
from router.upstream.breaker import Breaker
from router.upstream.large_model import (
    Tries,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)

_log = structlog.get_logger("upstream")
T = TypeVar("T")


QUOTA = "insufficient_quota"
MAX_PAUSE_S = 20.0
"""A provider that wants a longer pause than this gets no retry: its wish is passed on to the client."""
_FIRST_PAUSE_S = 0.25
_MESSAGE_CHARS = 500
_OVERLOADED = frozenset({503, 529})
"""Told as they are; 529 is Anthropic's."""


class Attempts:
    """Tries of one large model. Belongs to one event loop.

    Args:
        retried: called with the code of each failure that is tried again.
    """

    def __init__(
        self,
        settings: Large,
        *,
        rng: Random,
        retried: Callable[[str], None],
        sleep: Callable[[float], Awaitable[None]],
        breaker: Breaker,
    ) -> None:
        self._settings, self._rng, self._retried, self._sleep = settings, rng, retried, sleep
        self._breaker = breaker

    async def run(self, attempt: Callable[[], Awaitable[T]], tries: Tries | None = None) -> T:
        """What `attempt` gives, tried again where that may help; `tries` counts each. Raises UpstreamError."""
        number = 0
        while True:
            try:
                with self._breaker.attempt():
                    if tries is not None:
                        tries.made += 1
                    return await attempt()
            except UpstreamError as error:
                pause_s = self._pause_s(number, error.retry_after_s)
                if not error.retryable or number >= self._settings.retries or pause_s > MAX_PAUSE_S:
                    raise
                self._retried(error.code)
                _log.info("upstream_retry", code=error.code, number=number, pause_s=round(pause_s, 3))
            await self._sleep(pause_s)
            number += 1

    def _pause_s(self, number: int, wanted_s: float | None) -> float:
        """Exponential with jitter in [0.5, 1.5); never less than what the provider asks for."""
        own: float = _FIRST_PAUSE_S * 2.0**number * (0.5 + self._rng.random())
        return max(wanted_s or 0.0, min(own, MAX_PAUSE_S))


def timed_out(settings: Large) -> UpstreamTimeout:
    """No answer in time."""
    message = f"the large model did not answer within {settings.timeout_s:g} s"
    return UpstreamTimeout(504, "upstream_timeout", message, retryable=True)


def unreachable(retry_after_s: float | None = None) -> UpstreamUnavailable:
    """No connection, or an answer that is none."""
    message = "the large model cannot be reached"
    return UpstreamUnavailable(502, "upstream_unavailable", message, retry_after_s=retry_after_s, retryable=True)


def broken_off() -> UpstreamUnavailable:
    """A stream without its end."""
    return UpstreamUnavailable(502, "upstream_unavailable", "the large model's stream broke off")


def refused(
    status: int, error: Mapping[str, Any], message: str, retry_after_s: float | None, settings: Large
) -> UpstreamError:
    """What an HTTP status of 400 or more means; `error` is the provider's error object."""
    if status == 408:
        return timed_out(settings)
    if used_up(error):
        return UpstreamRateLimited(429, QUOTA, "the gateway's account at the large model's provider is used up")
    if status == 429:
        limited = "the large model is rate limited"
        return UpstreamRateLimited(429, "upstream_rate_limited", limited, retry_after_s=retry_after_s, retryable=True)
    if status in (401, 402, 403):
        return UpstreamUnavailable(502, "upstream_auth", "the large model refuses the gateway's credentials")
    if status in _OVERLOADED:
        message = "the large model is overloaded"
        return UpstreamUnavailable(status, "upstream_overloaded", message, retry_after_s=retry_after_s, retryable=True)
    if not 400 <= status < 500:
        return unreachable(retry_after_s)
    code, param = error.get("code"), error.get("param")
    known = isinstance(code, str) and re.fullmatch(r"\w{1,64}", code) and _harmless(code, settings) == code
    return UpstreamRejected(
        status,
        str(code) if known else "upstream_rejected",
        _harmless(str(error.get("message") or message or "the large model refused the request"), settings),
        param=_harmless(param, settings) if isinstance(param, str) else None,
    )


def used_up(error: Mapping[str, Any]) -> bool:
    """Whether a provider's error says that nothing is left of what was paid for: asking again does not help."""
    return QUOTA in (error.get("code"), error.get("type"))


def _harmless(message: str, settings: Large) -> str:
    """Without our keys and any address. Which key was shown the provider knows: it may stand in the environment."""
    own = [settings.api_key.get_secret_value()] if settings.api_key else []
    for secret in (*own, *environment_secrets()):
        message = message.replace(secret, "…")
    return re.sub(r"\w+://\S+", "…", message)[:_MESSAGE_CHARS]


def retry_after_s(value: str) -> float | None:
    """Seconds by a Retry-After header (RFC 9110 §10.2.3: seconds or a date); None where it cannot be read."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
