"""The load: so many connections, each asking again as soon as it is answered. No HTTP library, so that it costs little.

`python -m bench.gateway_load SPEC` with a JSON object (`port`, `path`, `headers`, `model`, `stream`, `connections`,
`warm_s`, `seconds`); prints one JSON object. An answer counts where its status is 200, it is whole, and it holds the
tool call that the upstream gave (a stream also its end); anything else is an error and reported by an example.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import uvloop

from bench.gateway_traffic import request_body

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CALL = b"search_files"


class Asking(asyncio.Protocol):
    """One connection. `on_result` is called with each request's begin and end in seconds, and its error or None."""

    def __init__(self, request: bytes, *, stream: bool, on_result: Callable[[float, float, str | None], None]) -> None:
        self._request, self._on_result, self._stream = request, on_result, stream
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._began = 0.0
        self.lost = asyncio.get_running_loop().create_future()
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Implements `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop has its own class
        self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        """Implements `asyncio.Protocol`."""
        if not self.lost.done():
            self.lost.set_result(None)

    def close(self) -> None:
        """Ask no more."""
        self.stopped = True
        if self._transport is not None:
            self._transport.abort()

    def _ask(self) -> None:
        assert self._transport is not None
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Implements `asyncio.Protocol`."""
        self._buffer = self._buffer + data if self._buffer else data
        whole = _whole(self._buffer)
        if not whole:
            return
        answer, self._buffer = self._buffer, b""
        now = time.perf_counter()
        good = answer.startswith(b"HTTP/1.1 200") and _CALL in answer and (not self._stream or b"[DONE]" in answer)
        self._on_result(self._began, now, None if good else answer[:600].decode(errors="replace"))
        if not self.stopped:
            self._ask()


def _whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = answer[: end + 2]
    found = _LENGTH.search(head)
    if found is not None:
        return len(answer) >= end + 4 + int(found.group(1))
    if _CHUNKED.search(head):
        return answer.endswith(b"\r\n0\r\n\r\n")
    return False


class LoadTally:
    """Counts and times of the requests that ended within the measured time."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin, self._end = begin, end
        self.latencies_s: list[float] = []
        self.errors = 0
        self.answered = 0
        """From the first to the last, warm-up included."""
        self.example: str | None = None

    def add(self, began: float, now: float, wrong: str | None) -> None:
        """One answer."""
        self.answered += wrong is None
        if wrong is not None:
            self.errors += 1
            self.example = self.example or wrong
        elif self._begin <= now < self._end:
            self.latencies_s.append(now - began)


def _request(spec: dict[str, Any]) -> bytes:
    body = request_body(spec["model"], stream=spec["stream"])
    headers = {
        "host": f"127.0.0.1:{spec['port']}",
        "content-type": "application/json",
        "content-length": str(len(body)),
        "authorization": "Bearer bench",
        **spec.get("headers", {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {spec['path']} HTTP/1.1\r\n{lines}\r\n".encode() + body


async def load(spec: dict[str, Any]) -> dict[str, Any]:
    """Run it."""
    request = _request(spec)
    begin = time.perf_counter() + spec["warm_s"]
    end = begin + spec["seconds"]
    tally = LoadTally(begin, end)
    loop = asyncio.get_running_loop()
    open_now: set[Asking] = set()
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            try:
                made = await loop.create_connection(
                    lambda: Asking(request, stream=spec["stream"], on_result=tally.add), "127.0.0.1", spec["port"]
                )
            except OSError as error:
                tally.add(0.0, 0.0, str(error))
                await asyncio.sleep(0.1)
                continue
            open_now.add(made[1])
            await made[1].lost  # a gateway may close a connection: then another one is made
            open_now.discard(made[1])

    clients = [asyncio.create_task(client()) for _ in range(spec["connections"])]
    cpu = time.process_time()
    await asyncio.sleep(end - time.perf_counter())
    over.set()
    for asking in list(open_now):
        asking.close()
    await asyncio.wait(clients, timeout=5)
    for one in clients:
        one.cancel()
    latencies = sorted(tally.latencies_s)
    return {
        "requests": len(latencies),
        "answered": tally.answered,
        "errors": tally.errors,
        "example": tally.example,
        "per_s": len(latencies) / spec["seconds"],
        "p50_us": 1e6 * _quantile(latencies, 0.5),
        "p99_us": 1e6 * _quantile(latencies, 0.99),
        "cpu_s": time.process_time() - cpu,
    }


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


if __name__ == "__main__":
    gc.disable()
    sys.stdout.write(json.dumps(uvloop.run(load(json.loads(sys.argv[1])))))
