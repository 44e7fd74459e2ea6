"""The body and headers of a request, read off ASGI within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from router.dialects.errors import ClientError
from router.http.inflight import InflightSlot
from router.settings import Server

BODY_TIMEOUT_S = 60.0
"""A client that takes longer to send its body gets a 408."""


def body_limit(server: Server) -> int:
    """The number of bytes that a body may have."""
    return int(server.max_body_mb * 1024 * 1024)


def headers_of(scope: Scope) -> dict[str, str]:
    """The request's headers by their names in lower case; of several the first. They are looked up many times."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


async def whole_body(request: Request, limit: int, slot: InflightSlot | None = None) -> bytes:
    """A request's whole body, held by `slot`. Raises ClientError: 413, 408, 503; ClientDisconnect."""
    return await read_body(request.headers, request.receive, limit, slot)


async def read_body(headers: Mapping[str, str], receive: Receive, limit: int, slot: InflightSlot | None) -> bytes:
    """The whole body of a request, at most `limit` bytes. Raises ClientError: 413, 408, 503; ClientDisconnect."""
    too_large = ClientError(413, f"the body is larger than {limit} bytes", "body_too_large")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = message.get("body", b"")
                if len(body) + len(piece) > limit:
                    raise too_large
                if slot is not None:
                    slot.hold(len(piece))
                body += piece
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise ClientError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", "body_timeout") from error
