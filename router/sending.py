"""ASGI's `send` of one response: whether it has begun, and whether its client takes anything."""

from __future__ import annotations

from starlette.types import Message, Send


class Sending:
    """A `send` that several tasks may call. It sets no timer: whoever watches it looks from time to time."""

    __slots__ = ("_over", "_seen", "_send", "_since", "_under_way", "begun")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._under_way = self._over = self._seen = 0
        self._since: float | None = None
        self.begun = False
        """Whether something was sent: nothing can take a response's place after that."""

    async def __call__(self, message: Message) -> None:
        """See ASGI. Returns once the server's buffer has room again."""
        self.begun = True
        self._under_way += 1
        try:
            await self._send(message)
        finally:
            self._under_way -= 1
            self._over += 1

    def stuck_s(self, now: float) -> float:
        """For how long no message has gone out of those that are to, reckoned from the look that found it so."""
        if not self._under_way or self._over != self._seen:
            self._seen, self._since = self._over, None
            return 0.0
        if self._since is None:
            self._since = now
        return now - self._since
