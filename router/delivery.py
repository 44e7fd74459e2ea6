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

from router.dialects.chat import ChatRequest
from router.dialects.errors import ClientError
from router.experiments import Exposure
from router.gateway import Gateway

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


def error_response(error: ClientError) -> Response:
    """An error in OpenAI's shape."""
    return Response(orjson.dumps(error.body()), error.status, headers={**_JSON, **error.headers()})


class Delivery(Response):
    """The response to one chat request: `gateway` is asked when it is sent."""

    def __init__(
        self, gateway: Gateway, chat: ChatRequest, dialect: str, ended: Callable[[], None], exposure: Exposure | None
    ) -> None:
        """`ended` is called once, when the response is over."""
        super().__init__()
        self._gateway, self._chat, self._dialect, self._ended = gateway, chat, dialect, ended
        self._exposure = exposure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; returns early where the client leaves."""
        working = asyncio.create_task(self._answer(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            working.cancel()  # Does nothing to a task that is done.
            await asyncio.wait({working, leaving})
            self._ended()
        if not working.cancelled():
            working.result()

    async def _answer(self, send: Send) -> None:
        try:
            reply = await self._gateway.answer(self._chat, self._dialect, self._exposure)
        except ClientError as error:
            await _whole(send, error.status, error.body(), error.headers())
            return
        told = reply.decision.headers()
        try:
            if not self._chat.stream:
                await _whole(send, 200, reply.body or {}, told)
                return
            await _start(send, 200, {**_EVENTS, **told})
            async for event in reply.events():
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await reply.close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole(send: Send, status: int, body: Mapping[str, object], headers: Mapping[str, str]) -> None:
    encoded = orjson.dumps(body)
    await _start(send, status, {**_JSON, "content-length": str(len(encoded)), **headers})
    await send({"type": "http.response.body", "body": encoded, "more_body": False})


async def _start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
