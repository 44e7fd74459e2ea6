"""How many requests and bytes are under way at once; more are refused."""

from __future__ import annotations

from prometheus_client import Gauge

from router.dialects.errors import ClientError


class Admission:
    """Counts requests under way and the bytes of their bodies; more at once are refused."""

    def __init__(self, requests: int, body_mb: float, gauge: Gauge) -> None:
        self._limit, self._limit_bytes = requests, int(body_mb * 1024 * 1024)
        self._gauge, self._now, self._bytes = gauge, 0, 0

    def enter(self) -> Stay:
        """Raises ClientError: 503, come again."""
        if self._now >= self._limit:
            raise ClientError(503, "too many requests are under way", "overloaded", retry_after_s=1)
        self._now += 1
        self._gauge.inc()
        return Stay(self)

    def hold(self, size: int) -> None:
        """So many further bytes. Raises ClientError: 503, come again."""
        if self._bytes + size > self._limit_bytes:
            raise ClientError(503, "too many bytes are under way", "overloaded", retry_after_s=1)
        self._bytes += size

    def leave(self, size: int) -> None:
        """Once for each `enter`, with all bytes that it held."""
        self._now -= 1
        self._bytes -= size
        self._gauge.dec()


class Stay:
    """One request under way."""

    __slots__ = ("_admission", "_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission, self._bytes = admission, 0

    def hold(self, size: int) -> None:
        """So many bytes of its body have come. Raises ClientError: 503, come again."""
        self._admission.hold(size)
        self._bytes += size

    def leave(self) -> None:
        """It is over; once."""
        self._admission.leave(self._bytes)
