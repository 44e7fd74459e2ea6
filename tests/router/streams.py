"""Many streams at once through a real gateway process, whose clients stall, leave and ask again.

The upstream sends much more than sockets can hold, so that a client that does not read holds up its whole chain; what
the gateway keeps of it meanwhile is what the memory figures tell of.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from operator import sub
from pathlib import Path

import aiohttp
from aiohttp import web

from router.ledger.store import Ledger
from router.settings import Settings
from tests.router.test_processes import gateway_process

READ_BYTES = {False: 200_000, True: 1_000_000}
"""Of streams that are read to their end, at once or after a stall."""
LEFT_BYTES = 50_000_000
"""Of streams that are left: a gateway that read ahead would have them in memory."""
PIECE_BYTES = 16_000
STALL_S = 2.0
KINDS = ("reads", "stalls, then reads", "stalls, then leaves", "leaves", "leaves and asks again")
_FINISHED = {0, 1}
_RECEIVE_BYTES = 8192
_SETTLE_S = 60.0


@dataclass
class Course:
    """What was seen of all waves."""

    asked: int = 0
    complete: set[str] = field(default_factory=set)
    """Decision ids of streams that were read to their end."""
    seen: set[str] = field(default_factory=set)
    """Decision ids of all streams that began."""
    broken: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    """Of the gateway: at rest before the first wave, then after each."""
    peak_mb: float = 0.0
    tasks: list[int] = field(default_factory=list)
    """Of its event loop at the same times."""
    rows: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """By decision id: status, and whether the client left."""

    def tally(self) -> Counter[tuple[int, bool]]:
        """Rows by status and whether the client left."""
        return Counter(self.rows.values())


@contextlib.asynccontextmanager
async def _upstream() -> AsyncIterator[str]:
    head = {"id": "chatcmpl-1", "created": 1, "model": "m", "object": "chat.completion.chunk"}

    def event(delta: dict[str, str], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"

    piece = event({"content": "x" * PIECE_BYTES})
    usage = {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30}
    end = event({}, "stop") + b"data: " + json.dumps({**head, "choices": [], "usage": usage}).encode() + b"\n\n"

    async def complete(request: web.Request) -> web.StreamResponse:
        size = int((await request.json())["messages"][0]["content"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(size // PIECE_BYTES):
            await response.write(piece)
        await response.write(end + b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def run(streams: int, waves: int, folder: Path) -> Course:
    """So many streams at once, so many times."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    course = Course()
    async with _upstream() as base:
        settings = Settings.model_validate(
            {
                "server": {"max_inflight": 2 * streams},
                "large": {
                    "model": "openai/gpt-4o-2024-08-06",
                    "api_base": base,
                    "api_key": "unused",
                    "price": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0},
                },
                "ledger": {"url": f"sqlite+aiosqlite:///{folder / 'ledger.db'}"},
            }
        )
        async with gateway_process(settings, folder) as (process, url):
            watching = asyncio.create_task(_watch(process.pid, course))
            await _settled(url, process.pid, course)
            for _ in range(waves):
                port = int(url.rpartition(":")[2].partition("/")[0])
                await asyncio.gather(*(_client(index, port, course) for index in range(streams)))
                await _settled(url, process.pid, course)
            watching.cancel()
            process.terminate()
            await process.wait()
    async with Ledger.open(settings.ledger.url) as ledger:
        after = ""
        while page := await ledger.page(1000, after):
            course.rows |= {row.decision_id: (row.status, row.client_disconnected) for row in page}
            after = page[-1].decision_id
    return course


async def _client(index: int, port: int, course: Course) -> None:
    kind = index % len(KINDS)
    try:
        async with asyncio.timeout(300):
            if kind in _FINISHED:
                await _stream(port, course, stall_s=STALL_S * kind, leaves=False)
            else:
                await _stream(port, course, stall_s=STALL_S * (kind == 2), leaves=True)
            if kind == len(KINDS) - 1:
                await _stream(port, course, stall_s=0.0, leaves=False)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        course.broken.append(f"{KINDS[kind]}: {type(error).__name__} {error}")


async def _stream(port: int, course: Course, *, stall_s: float, leaves: bool) -> None:
    """One request on a connection of its own, which takes in little unless it is read."""
    wanted = LEFT_BYTES if leaves else READ_BYTES[stall_s > 0]
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    wire.setblocking(False)
    await asyncio.get_running_loop().sock_connect(wire, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=wire, limit=_RECEIVE_BYTES)
    message = {"role": "user", "content": str(wanted)}
    body = json.dumps({"model": "smallcall/large", "stream": True, "messages": [message]})
    told = f"host: 127.0.0.1\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{told}"
    writer.write((head + body).encode())
    course.asked += 1
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"x-smallcall-decision-id: (\w+)", answer)
        if not answer.startswith(b"HTTP/1.1 200") or found is None:
            course.broken.append(answer[:200].decode(errors="replace"))
            return
        decision_id = found.group(1).decode()
        course.seen.add(decision_id)
        await asyncio.sleep(stall_s)
        if leaves:
            return
        end, size = b"", 0
        while piece := await reader.read(65536):
            size, end = size + len(piece), (end + piece)[-64:]
        if size < wanted // PIECE_BYTES * PIECE_BYTES or b"[DONE]" not in end:
            course.broken.append(f"a stream of {size} bytes ends in {end!r}")
        else:
            course.complete.add(decision_id)
    finally:
        writer.transport.abort()


async def _settled(url: str, pid: int, course: Course) -> None:
    """Wait until nothing is under way; then take the measures."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(_SETTLE_S):
        while True:
            async with session.get(url.removesuffix("/v1") + "/metrics") as response:
                told = await response.text()
            if float(_value(told, "smallcall_inflight")) == 0:
                break
            await asyncio.sleep(0.1)
    course.tasks.append(int(float(_value(told, "smallcall_tasks"))))
    course.rss_mb.append(_rss_mb(pid))


def _value(metrics: str, name: str) -> str:
    return next(line.split()[1] for line in metrics.splitlines() if line.startswith(name + " "))


async def _watch(pid: int, course: Course) -> None:
    while True:
        course.peak_mb = max(course.peak_mb, _rss_mb(pid))
        await asyncio.sleep(0.1)


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def check(course: Course, streams: int) -> None:
    """Nothing lost, nothing kept. Raises AssertionError."""
    assert not course.broken, course.broken[:5]
    assert len(course.seen) == course.asked
    assert set(course.rows) == course.seen
    assert {course.rows[one] for one in course.complete} == {(200, False)}
    left = [course.rows[one] for one in course.seen - course.complete]
    assert set(left) <= {(499, True), (200, False)}, Counter(left)
    assert (499, True) in left
    assert max(course.tasks[1:]) <= course.tasks[0] + 2, course.tasks
    # Of a stream that is not read the gateway keeps what its sockets' buffers in user space hold, not the stream.
    assert course.peak_mb - course.rss_mb[0] < 120 + 0.8 * streams, (course.rss_mb, course.peak_mb)
    # What is kept of each stream adds up wave by wave; what the allocator holds back after one wave does not.
    assert min(map(sub, course.rss_mb[2:], course.rss_mb[1:])) < 20 + 0.02 * streams, course.rss_mb
