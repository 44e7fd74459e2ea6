"""An answer on its way to the client, and what happens when the client goes away meanwhile.

The server's task does the whole work of a request, from the first decision to the last byte. When the client leaves, or
takes nothing for too long, or the server stops, that task is cancelled, which cancels the draft or the upstream call,
and it ends by writing its row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import orjson
from fastapi import Response
from starlette.types import Message, Receive, Send

from router.cascade.decision import Terms
from router.cascade.gateway import Gateway
from router.constants import Constants
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest, Dialect

FIRST_LOOK_S = 0.05
"""When a request is first looked at for whether its client is still there."""
_LOOKS = 4
"""At whether a client takes anything, within `Constants.write_timeout_s`."""
_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


def error_response(error: ClientError, dialect: Dialect) -> Response:
    """An error in the client's dialect."""
    return Response(orjson.dumps(dialect.error(error)), error.status, headers={**_JSON, **error.headers()})


class Delivery:
    """The response to one request: `gateway` is asked when it is sent."""

    def __init__(
        self,
        gateway: Gateway,
        chat: ChatRequest,
        dialect: Dialect,
        constants: Constants,
        terms: Terms,
    ) -> None:
        self._gateway, self._chat, self._dialect, self._terms = gateway, chat, dialect, terms
        self._constants = constants

    async def send(self, receive: Receive, send: Sending) -> None:
        """Answer; returns early where the client leaves."""
        leaving = _Leaving(receive, send, self._constants.write_timeout_s)
        try:
            await (self._streamed(send) if self._chat.stream else self._whole(send))
        except asyncio.CancelledError:
            if not leaving.seen:
                raise
            leaving.forgive()
        finally:
            leaving.stop()
            if self._terms.grant is not None:
                self._terms.grant.drop()

    async def _whole(self, send: Send) -> None:
        chat, dialect = self._chat, self._dialect
        decision = self._gateway.decision(chat, dialect, self._terms)
        try:
            reply = await self._gateway.answer(decision, dialect, dialect.writer(chat, decision.decision_id))
        except ClientError as error:
            await _send_whole(send, error.status, dialect.error(error), error.headers())
            return
        try:
            await _send_whole(send, 200, reply.body or {}, decision.headers())
        finally:
            await reply.close()

    async def _streamed(self, send: Send) -> None:
        chat, dialect = self._chat, self._dialect
        decision = self._gateway.decision(chat, dialect, self._terms)
        writer = dialect.writer(chat, decision.decision_id)
        out = _Events(send)
        awake = _Awake(out, self._constants.keep_alive_s, decision.headers, writer.keep_alive)
        try:
            try:
                reply = await self._gateway.answer(decision, dialect, writer)
            except ClientError as error:
                if out.started:
                    await out.write(writer.failed(error))
                    await out.end()
                else:
                    await awake.stop()
                    await _send_whole(send, error.status, dialect.error(error), error.headers())
                return
            try:
                await out.start(decision.headers())
                async for events in reply.events():
                    await out.write(events)
                await out.end()
            finally:
                await reply.close()
        finally:
            await awake.stop()


async def until_left(receive: Receive) -> None:
    """Wait for the client to leave; the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Leaving:
    """Cancels the task that made it, once, when the client leaves, or takes nothing for `limit_s`. It looks for that
    from `FIRST_LOOK_S` on: most requests that forward to a quick provider, and all that are refused, are over by then
    and need no second task."""

    def __init__(self, receive: Receive, sending: Sending, limit_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._receive, self._sending, self._limit_s, self._task = receive, sending, limit_s, task
        self._loop = asyncio.get_running_loop()
        self._watching: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(FIRST_LOOK_S, self._begin)
        self.seen = False
        """Whether the client left, and the task was cancelled for it."""

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
        self._look()

    def _look(self) -> None:
        if self._sending.stuck_s(self._loop.time()) >= self._limit_s:
            self._left()
        else:
            self._timer = self._loop.call_later(self._limit_s / _LOOKS, self._look)

    async def _watch(self) -> None:
        await until_left(self._receive)
        self._left()

    def _left(self) -> None:
        if not self.seen:
            self.seen = True
            self._task.cancel()


class _Awake:
    """Begins a stream where its answer takes long, and then never lets it fall silent. What is known by then of the
    decision stands in the headers; what comes of it can only be told in the stream."""

    def __init__(
        self,
        out: _Events,
        every_s: float,
        headers: Callable[[], Mapping[str, str]],
        comment: Callable[[], bytes],
    ) -> None:
        self._out, self._every_s, self._headers, self._comment = out, every_s, headers, comment
        self._seen = 0
        self._saying: asyncio.Task[None] | None = None
        self._timer = self._set()

    async def stop(self) -> None:
        """Nothing is said after it."""
        self._timer.cancel()
        if self._saying is not None:
            self._saying.cancel()
            await asyncio.wait([self._saying])

    def _set(self) -> asyncio.TimerHandle:
        self._seen = self._out.written
        return asyncio.get_running_loop().call_later(self._every_s, self._look)

    def _look(self) -> None:
        out = self._out
        if out.ended:
            return
        if out.written == self._seen and (self._saying is None or self._saying.done()):
            self._saying = asyncio.create_task(self._say())
        self._timer = self._set()

    async def _say(self) -> None:
        await self._out.start({"x-smallcall-decision-id": self._headers()["x-smallcall-decision-id"]})
        await self._out.write(self._comment())


class _Events:
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


async def _send_whole(send: Send, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
    encoded = orjson.dumps(body)
    await _start(send, status, {**_JSON, "content-length": str(len(encoded)), **headers})
    await send({"type": "http.response.body", "body": encoded, "more_body": False})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


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
