"""Keeps the small model's worker alive: starts it, waits for its socket, restarts it when it dies or hangs. A worker
hangs that does not answer, or that says of its engine that it has been at one step for too long.

While the worker is away, drafts fail at once and the large model answers. Restarts back off while the worker does not
live long. The worker's log lines are passed on into ours, each bounded in length.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from router.small.worker_client import SmallModelError, WorkerClient
from slm import protocol

_log = structlog.get_logger("supervisor")
_LINE_BYTES = 2000
_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """The worker process to start."""

    socket: Path
    model: Path
    adapter: Path | None
    threads: int
    """0: as many as torch takes by itself."""
    max_queue: int
    dtype: str
    cache_mb: int
    shortlist: tuple[str, int] | None = None
    """Its kind and how many tools it keeps; None shows the model all tools."""
    max_wait_s: float | None = None
    """For how long a draft may be expected to wait; None: for any time."""
    device: str = "cpu"

    def arguments(self) -> Sequence[str]:
        """The command line. `-P`: modules come from the installation, never from the folder we were started in."""
        line = [sys.executable, "-P", "-m", "slm.worker.server"]
        line += ["--socket", str(self.socket), "--model", str(self.model)]
        line += ["--max-queue", str(self.max_queue), "--dtype", self.dtype, "--cache-mb", str(self.cache_mb)]
        line += ["--device", self.device]
        if self.max_wait_s is not None:
            line += ["--max-wait", str(self.max_wait_s)]
        if self.threads:
            line += ["--threads", str(self.threads)]
        if self.adapter:
            line += ["--adapter", str(self.adapter)]
        if self.shortlist:
            kind, keep = self.shortlist
            line += ["--shortlist", kind, "--shortlist-keep", str(keep)]
        return line


@dataclass(frozen=True, slots=True)
class Patience:
    """Waiting times, in seconds."""

    start: float = 180.0
    """For a worker to load its model."""
    poll: float = 0.1
    check_every: float = 5.0
    """Between two questions whether a loaded worker still answers."""
    hung: float = 30.0
    """For that answer: a worker that gives none is killed."""
    last_words: float = 1.0
    """For the rest of a dead worker's log."""
    stop: float = 10.0
    """Between SIGTERM and SIGKILL."""
    backoff: Sequence[float] = (0.2, 1.0, 5.0, 15.0)
    """Before a restart, by the number of short lives in a row."""
    short_life: float = 60.0


class Supervisor:
    """A `SmallModel` whose worker process it owns; belongs to one event loop."""

    def __init__(
        self,
        command: WorkerCommand,
        patience: Patience | None = None,
        on_ready: Callable[[protocol.Info], None] = lambda info: None,
        on_refused: Callable[[str], None] = lambda why: None,
    ) -> None:
        """`on_ready` is told what each worker says it is, once it is ready; `on_refused` why the first of them cannot
        load what it is given, which no restart would mend: there is none then."""
        self._arguments = command.arguments()
        self._client = WorkerClient(command.socket)
        self._patience = patience or Patience()
        self._process: asyncio.subprocess.Process | None = None
        self.info: protocol.Info | None = None
        self._on_ready, self._on_refused = on_ready, on_refused
        self._refusal: str | None = None
        self._was_ready = False
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """The worker's process, if it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Keep the worker alive until the block ends. Does not wait for it: see `info`."""
        task = asyncio.create_task(self._keep(), name="worker-supervisor")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.info = None
            await self._stop()

    def events(
        self, command: protocol.DraftCommand | protocol.CompleteCommand
    ) -> AbstractAsyncContextManager[AsyncIterator[protocol.Event]]:
        """Implements `SmallModel.events`: the events of one draft."""
        if self.info is None:
            raise SmallModelError("worker_unavailable", "the worker is starting")
        return self._client.events(command)

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        short_lives = 0
        while True:
            began = clock()
            ended = await self._live()
            if self._refusal is not None and not self._was_ready:
                _log.error("worker_refused", error=self._refusal)
                self._on_refused(self._refusal)
                return
            short_lives = short_lives + 1 if clock() - began < self._patience.short_life else 0
            pause_s = self._patience.backoff[min(short_lives, len(self._patience.backoff)) - 1] if short_lives else 0.0
            _log.warning("worker_ended", how=ended, restart_in_s=pause_s)
            await asyncio.sleep(pause_s)

    async def _live(self) -> str:
        """One life of the worker, from start to end; returns how it ended."""
        self.starts += 1
        try:
            # A session of its own: Ctrl-C in our terminal must not end it before the last draft is served.
            process = await asyncio.create_subprocess_exec(
                *self._arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            return f"not started: {error.strerror}"
        self._process = process
        relaying, watching = asyncio.create_task(self._relay(process)), asyncio.create_task(self._watch(process))
        try:
            code = await process.wait()
            self.info = None
            await asyncio.wait({relaying}, timeout=self._patience.last_words)
        finally:
            for task in (relaying, watching):
                task.cancel()
            await asyncio.gather(relaying, watching, return_exceptions=True)
        return f"exit code {code}"

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Wait until the worker is ready, then see that it goes on answering; kill it where it does not."""
        patience = self._patience
        try:
            async with asyncio.timeout(patience.start):
                self.info = info = await self._asked()
            self._was_ready = True
            _log.info("worker_ready", model=info.model, architecture=info.architecture, dtype=info.dtype)
            self._on_ready(info)
            while True:
                await asyncio.sleep(patience.check_every)
                async with asyncio.timeout(patience.hung):
                    await self._asked()
        except TimeoutError:
            _log.error("worker_hung", ready=self.info is not None)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _asked(self) -> protocol.Info:
        """Return what the worker says it is, as soon as it says so."""
        while True:
            try:
                return await self._client.ask_info()
            except SmallModelError:
                await asyncio.sleep(self._patience.poll)

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """The worker's stderr into our log. Reads whatever comes: a full pipe would stop the worker."""
        assert process.stderr is not None
        rest = b""
        while piece := await process.stderr.read(_READ_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[:_LINE_BYTES]
            for line in lines:
                self._refusal = _refusal(line) or self._refusal
                if line.strip():
                    _log.info("worker", line=line[:_LINE_BYTES].decode(errors="replace"))

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            # Its stderr is not read any more; the little that it says in the end fits into the pipe.
            await asyncio.wait_for(process.wait(), self._patience.stop)
        except TimeoutError:
            process.kill()
            await process.wait()


def _refusal(line: bytes) -> str | None:
    """Why the worker cannot start, where its log line says so."""
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return str(told.get("error")) if isinstance(told, dict) and told.get("event") == "cannot_start" else None
