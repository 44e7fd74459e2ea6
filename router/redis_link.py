"""A connection to Redis that replicas share. It never keeps a request waiting for long: a Redis that does not answer
counts as down, and is left alone for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

PAUSE_S = 1.0
"""A Redis that failed is asked once in so long: not every request has to wait for it."""
_CONNECTIONS = 8
"""A script takes Redis some ten microseconds: more connections only cost handshakes."""
T = TypeVar("T")

_log = structlog.get_logger("redis")


class RedisAnswer(Generic[T]):
    """An answer of Redis; the absence of one means that it is down."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class RedisLink:
    """Belongs to one event loop.

    Args:
        url: may hold a password, and is never shown.
        timeout_s: for an answer, the connection and the turn of this process's event loop included.
        failed: called each time that Redis did not answer.
        clock: seconds, monotonic.
    """

    def __init__(self, url: str, *, timeout_s: float, failed: Callable[[], None], clock: Callable[[], float]) -> None:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self.client = redis.asyncio.Redis(connection_pool=pool)
        self._timeout_s, self._failed, self._clock = timeout_s, failed, clock
        self._down_until: float | None = None
        self._behind: set[asyncio.Task[object]] = set()

    async def ask(self, work: Callable[[], Awaitable[T]]) -> RedisAnswer[T] | None:
        """Return what `work` gets from `client`; None where Redis is down."""
        if self._down_until is not None:
            if self._clock() < self._down_until:
                return None
            self._down_until = self._clock() + PAUSE_S  # this one tries; the others do not wait for it
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = RedisAnswer(await work())
        except (RedisError, OSError, TimeoutError) as error:
            self._down_until = self._clock() + PAUSE_S
            self._failed()
            _log.warning("redis_down", error=type(error).__name__)
            return None
        self._down_until = None
        return answer

    def ask_in_background(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do `work` behind the back of whoever asks for it."""
        task: asyncio.Task[object] = asyncio.create_task(self.ask(work))
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    async def close(self) -> None:
        """Finish what was asked for, and give the connections up."""
        await asyncio.gather(*self._behind, return_exceptions=True)
        await self.client.aclose()
        await self.client.connection_pool.aclose()
