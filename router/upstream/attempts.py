"""Asking the large model until it answers: retries with pauses under one circuit breaker, and what failures mean."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from random import Random
from typing import TypeVar

import structlog

from router.settings import Large, environment_secrets
from router.upstream.breaker import Breaker
from router.upstream.large_model import (
    ErrorKind,
    Tries,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from router.upstream.provider_errors import FACES, ProviderError, kind_of

_log = structlog.get_logger("upstream")
T = TypeVar("T")


MAX_PAUSE_S = 20.0
"""A provider that wants a longer pause than this gets no retry: its wish is passed on to the client."""
_FIRST_PAUSE_S = 0.25
_MESSAGE_CHARS = 500
_READ_CHARS = 10_000
_OURS = frozenset({401, 402, 403, 408, 429})
"""Statuses that would say something else of the client's request than that it is wrong."""


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


def refused(status: int | None, error: ProviderError, headers: Mapping[str, str], settings: Large) -> UpstreamError:
    """What a provider's error means for the client; `status` is the response's, None where that says success."""
    if status == 408:
        return timed_out(settings)
    kind = kind_of(error, status)
    face = FACES[kind]
    told, code, words = face.status, face.code, _harmless(error.message, settings)
    if kind is ErrorKind.INVALID_REQUEST or kind is ErrorKind.POLICY:
        known = re.fullmatch(r"[A-Za-z_]\w{0,63}", error.code) and _harmless(error.code, settings) == error.code
        code = error.code if known else face.code
    if kind is ErrorKind.INVALID_REQUEST:
        said = status or error.status or face.status
        told = said if 400 <= said < 500 and said not in _OURS else face.status
    if kind is ErrorKind.AUTH and words:
        words = f"{face.default}: {words}"  # a client must not take it for a word on its own key
    return face.error(
        told,
        code,
        words[:_MESSAGE_CHARS] or face.default,
        param=_harmless(error.param, settings) if error.param is not None else None,
        retry_after_s=_wait_s(headers, error) if face.retryable else retry_after_s(headers.get("retry-after", "")),
        retryable=face.retryable,
        kind=kind,
    )


def _wait_s(headers: Mapping[str, str], error: ProviderError) -> float | None:
    """How long the provider wants to be left alone: by its headers, else by its words."""
    exact = retry_after_s(headers.get("retry-after-ms", ""))
    if exact is not None:
        return exact / 1000
    told = retry_after_s(headers.get("retry-after", ""))
    return error.retry_after_s if told is None else told


def _harmless(message: str, settings: Large) -> str:
    """Without our keys, parts of keys and any address. Which key was shown the provider knows: it may stand in the
    environment."""
    own = [settings.api_key.get_secret_value()] if settings.api_key else []
    for secret in (*own, *environment_secrets()):
        message = message.replace(secret, "…")
    message = message[:_READ_CHARS]
    message = re.sub(r"\w+://\S+", "…", message)
    return re.sub(r"[\w-]*\*{3,}[\w*-]*", "…", message)[:_MESSAGE_CHARS]


def retry_after_s(value: str) -> float | None:
    """Seconds by a Retry-After header (RFC 9110 §10.2.3: seconds or a date); None where it cannot be read."""
    value = value.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    with contextlib.suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
