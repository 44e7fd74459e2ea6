"""Clients that take nothing of their answer: their slots become free."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

from router.constants import Constants
from tests.router.cascade.test_gateway import Scripted, ask, post, rows_of
from tests.router.conftest import Make, served

PIECE = "x" * 500_000


class Talking(Scripted):
    """A large model that says more than sockets hold."""

    async def complete(self, body: Any, tries: Any = None) -> dict[str, Any]:
        answer = await super().complete(body, tries)
        answer["choices"][0]["message"]["content"] = PIECE * 20
        return answer

    async def __aiter__(self) -> Any:
        for _ in range(self.chunks):
            await asyncio.sleep(self.pause_s)
            yield {"id": "x", "choices": [{"index": 0, "delta": {"content": PIECE}, "finish_reason": None}]}
        yield {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[socket.socket]:
    """A connection that takes in little unless it is read."""
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    wire.setblocking(False)
    port = int(url.rpartition(":")[2].partition("/")[0])
    await asyncio.get_running_loop().sock_connect(wire, ("127.0.0.1", port))
    try:
        yield wire
    finally:
        wire.close()


async def tell(wire: socket.socket, body: dict[str, Any]) -> None:
    text = json.dumps(body)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(text)}\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(wire, (head + text).encode())


async def test_a_stream_that_nobody_reads_counts_as_left(gateway: Make) -> None:
    """Its upstream is closed, its row says so, and its slot serves the next."""
    large = Talking(chunks=40)
    app = gateway(upstream=large, server={"max_inflight": 1}, constants=Constants(write_timeout_s=0.3))
    async with served(app) as url, connected(url) as wire:
        await tell(wire, ask(stream=True))
        (row,) = await rows_of(app, 1)
        assert (row.client_disconnected, row.status, row.side) == (True, 499, "large")
        assert large.closed == 1
        large.chunks = 0
        assert (await post(url, ask()))[0] == 200


async def test_whole_answers_that_nobody_reads_hold_no_slot(gateway: Make) -> None:
    """The second answer on one connection waits for the first to be read, and no longer than it may."""
    app = gateway(upstream=Talking(), server={"max_inflight": 1}, constants=Constants(write_timeout_s=0.3))
    async with served(app) as url, connected(url) as wire:
        await tell(wire, ask())
        await rows_of(app, 1)
        await tell(wire, ask())
        await rows_of(app, 2)
        async with asyncio.timeout(3):
            while (await post(url, ask()))[0] != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
