"""The response to one completion: sent whole or as events, kept alive, and watched for a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import orjson
from fastapi import Response
from starlette.types import Message, Receive, Send

from router.dialects.errors import ClientError
from router.dialects.request import Dialect

FIRST_POLL_S = 0.05
"""When the watch first asks whether a request's client is still there."""
_POLLS = 4
"""Number of times the watch asks within `Constants.write_timeout_s` whether a client takes anything."""
_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


def error_response(error: ClientError, dialect: Dialect) -> Response:
    """An error in the client's dialect."""
    return Response(orjson.dumps(dialect.error(error)), error.status, headers={**_JSON, **error.headers()})


async def until_left(receive: Receive) -> None:
    """Wait for the client to leave; the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class DisconnectWatch:
    """Cancels the task that made it, once, when the client leaves, or takes nothing for `limit_s`. It watches
    from `FIRST_POLL_S` on: most requests that forward to a quick provider, and all that are refused, are over by then
    and need no second task."""

    def __init__(self, receive: Receive, send: TrackedSend, limit_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._receive, self._send, self._limit_s, self._task = receive, send, limit_s, task
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(FIRST_POLL_S, self._begin)
        self.left = False
        """True if the client left, and the task was cancelled for it."""

    def stop(self) -> None:
        """The response is over."""
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def forgive(self) -> None:
        """The task goes on: its cancellation was ours."""
        self._task.uncancel()

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())
        self._poll()

    def _poll(self) -> None:
        if self._send.stuck_s(self._loop.time()) >= self._limit_s:
            self._cancel()
        else:
            self._timer = self._loop.call_later(self._limit_s / _POLLS, self._poll)

    async def _watch(self) -> None:
        await until_left(self._receive)
        self._cancel()

    def _cancel(self) -> None:
        if not self.left:
            self.left = True
            self._task.cancel()


class KeepAlive:
    """Begins a stream where its answer takes long, and then never lets it fall silent. What is known by then of the
    decision stands in the headers; what comes of it stands in the stream alone."""

    def __init__(
        self,
        out: EventStream,
        every_s: float,
        decision_id: str,
        comment: Callable[[], bytes],
    ) -> None:
        self._out, self._every_s, self._decision_id, self._comment = out, every_s, decision_id, comment
        self._seen = 0
        self._writing: asyncio.Task[None] | None = None
        self._timer = self._set()

    async def stop(self) -> None:
        """Nothing is said after it."""
        self._timer.cancel()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])

    def _set(self) -> asyncio.TimerHandle:
        self._seen = self._out.written
        return asyncio.get_running_loop().call_later(self._every_s, self._poll)

    def _poll(self) -> None:
        out = self._out
        if out.ended:
            return
        if out.written == self._seen and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write_comment())
        self._timer = self._set()

    async def _write_comment(self) -> None:
        await self._out.start({"x-smallcall-decision-id": self._decision_id})
        await self._out.write(self._comment())


class EventStream:
    """The body of one event stream. Each write is whole events, so that two tasks may write."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = self.ended = False
        self.written = 0

    async def start(self, headers: Mapping[str, str]) -> None:
        """Send the headers, once. They are on their way when this is called a second time."""
        if not self.started:
            self.started = True
            await _start(self._send, 200, {**_EVENTS, **headers})

    async def write(self, events: bytes) -> None:
        """Send whole events."""
        if not self.ended:
            self.written += 1
            await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        """Nothing is sent after it."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def send_json(send: Send, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
    encoded = orjson.dumps(body)
    await _start(send, status, {**_JSON, "content-length": str(len(encoded)), **headers})
    await send({"type": "http.response.body", "body": encoded, "more_body": False})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


class TrackedSend:
    """A `send` that several tasks may call. It sets no timer: whoever watches it asks from time to time."""

    __slots__ = ("_over", "_seen", "_send", "_since", "_under_way", "begun")

    def __init__(self, send: Send) -> None:
        self._send = send
        self._under_way = self._over = self._seen = 0
        self._since: float | None = None
        self.begun = False
        """True if something was sent: nothing can take a response's place after that."""

    async def __call__(self, message: Message) -> None:
        """Implements the ASGI `send`. Returns once the server's buffer has room again."""
        self.begun = True
        self._under_way += 1
        try:
            await self._send(message)
        finally:
            self._under_way -= 1
            self._over += 1

    def stuck_s(self, now: float) -> float:
        """For how long no message has gone out of those that are to, counted from the call that found it so."""
        if not self._under_way or self._over != self._seen:
            self._seen, self._since = self._over, None
            return 0.0
        if self._since is None:
            self._since = now
        return now - self._since
