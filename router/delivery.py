"""An answer on its way to the client, and what happens when the client goes away meanwhile.

One task does the whole work of a request, from the first decision to the last byte. When the client leaves, or the
server stops, that task is cancelled once, which cancels the draft or the upstream call, and it ends by writing its row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import orjson
from fastapi import Response
from prometheus_client import Gauge
from starlette.types import Receive, Scope, Send

from router.dialects.chat import ChatRequest, Dialect
from router.dialects.errors import ClientError
from router.gateway import Gateway
from router.terms import Terms

_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Admission:
    """Counts requests under way; more than `limit` at once are refused."""

    def __init__(self, limit: int, gauge: Gauge) -> None:
        self._limit, self._gauge, self._now = limit, gauge, 0

    def enter(self) -> None:
        """Raises ClientError: 503, come again."""
        if self._now >= self._limit:
            raise ClientError(503, "too many requests are under way", "overloaded", retry_after_s=1)
        self._now += 1
        self._gauge.inc()

    def leave(self) -> None:
        """Once for each `enter`."""
        self._now -= 1
        self._gauge.dec()


def error_response(error: ClientError, dialect: Dialect) -> Response:
    """An error in the client's dialect."""
    return Response(orjson.dumps(dialect.error(error)), error.status, headers={**_JSON, **error.headers()})


class Delivery(Response):
    """The response to one request: `gateway` is asked when it is sent."""

    def __init__(
        self,
        gateway: Gateway,
        chat: ChatRequest,
        dialect: Dialect,
        keep_alive_s: float,
        ended: Callable[[], None],
        terms: Terms,
    ) -> None:
        """A stream in which nothing was sent for `keep_alive_s` gets a comment. `ended` is called once, when the
        response is over."""
        super().__init__()
        self._gateway, self._chat, self._dialect, self._terms = gateway, chat, dialect, terms
        self._keep_alive_s, self._ended = keep_alive_s, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; returns early where the client leaves."""
        working = asyncio.create_task(self._streamed(send) if self._chat.stream else self._whole(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            working.cancel()  # Does nothing to a task that is done.
            await asyncio.wait({working, leaving})
            if self._terms.grant is not None:
                self._terms.grant.drop()
            self._ended()
        if not working.cancelled():
            working.result()

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
        waking = asyncio.create_task(self._keep_awake(out, decision.headers, writer.keep_alive))
        try:
            try:
                reply = await self._gateway.answer(decision, dialect, writer)
            except ClientError as error:
                if out.started:
                    await out.write(writer.failed(error))
                    await out.end()
                else:
                    waking.cancel()
                    await _send_whole(send, error.status, dialect.error(error), error.headers())
                return
            try:
                await out.start(decision.headers())
                async for event in reply.events():
                    await out.write(event)
                await out.end()
            finally:
                await reply.close()
        finally:
            waking.cancel()

    async def _keep_awake(
        self, out: _Events, headers: Callable[[], Mapping[str, str]], comment: Callable[[], bytes]
    ) -> None:
        """Begin the stream where its answer takes long, and then never let it fall silent. What is known by then of
        the decision stands in the headers; what comes of it can only be told in the stream."""
        while not out.ended:
            seen = out.written
            await asyncio.sleep(self._keep_alive_s)
            if out.written == seen and not out.ended:
                await out.start({"x-smallcall-decision-id": headers()["x-smallcall-decision-id"]})
                await out.write(comment())


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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_whole(send: Send, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
    encoded = orjson.dumps(body)
    await _start(send, status, {**_JSON, "content-length": str(len(encoded)), **headers})
    await send({"type": "http.response.body", "body": encoded, "more_body": False})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
