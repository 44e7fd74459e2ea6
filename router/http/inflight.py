"""Limits the requests, and the bytes of their bodies, that are under way at once; more are refused."""

from __future__ import annotations

from prometheus_client import Gauge

from router.dialects.errors import ClientError


class InflightLimit:
    """Counts requests under way and the bytes of their bodies; more at once are refused."""

    def __init__(self, requests: int, body_mb: float, gauge: Gauge) -> None:
        self._limit, self._limit_bytes = requests, int(body_mb * 1024 * 1024)
        self._gauge, self._now, self._bytes = gauge, 0, 0

    def enter(self) -> InflightSlot:
        """Take a slot for one request. Raises ClientError: 503, come again."""
        if self._now >= self._limit:
            raise ClientError(503, "too many requests are under way", "overloaded", retry_after_s=1)
        self._now += 1
        self._gauge.inc()
        return InflightSlot(self)

    def hold(self, size: int) -> None:
        """Count so many further bytes. Raises ClientError: 503, come again."""
        if self._bytes + size > self._limit_bytes:
            raise ClientError(503, "too many bytes are under way", "overloaded", retry_after_s=1)
        self._bytes += size

    def leave(self, size: int) -> None:
        """Free one slot with all bytes that it held; once for each `enter`."""
        self._now -= 1
        self._bytes -= size
        self._gauge.dec()


class InflightSlot:
    """The slot of one request under way."""

    __slots__ = ("_bytes", "_limit")

    def __init__(self, limit: InflightLimit) -> None:
        self._limit, self._bytes = limit, 0

    def hold(self, size: int) -> None:
        """Count so many bytes of the request's body. Raises ClientError: 503, come again."""
        self._limit.hold(size)
        self._bytes += size

    def leave(self) -> None:
        """Free the slot; once."""
        self._limit.leave(self._bytes)
