"""Keeps the small model's worker alive: starts it, waits for its socket, restarts it when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import structlog

from router.local import SmallModelError, WorkerClient
from slm import protocol

_log = structlog.get_logger("supervisor")
START_TIMEOUT_S = 120.0
POLL_S = 0.1
BACKOFF_S = (0.2, 1.0, 5.0, 15.0)
MAX_LINE = 2000


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """What to start."""

    socket: Path
    model: Path
    adapter: Path | None
    threads: int
    max_queue: int
    dtype: str

    def arguments(self) -> Sequence[str]:
        """The command line."""
        line = [sys.executable, "-m", "slm.worker", "--socket", str(self.socket), "--model", str(self.model)]
        line += ["--max-queue", str(self.max_queue), "--dtype", self.dtype]
        if self.threads:
            line += ["--threads", str(self.threads)]
        if self.adapter:
            line += ["--adapter", str(self.adapter)]
        return line


class Supervisor:
    """A `SmallModel` whose worker process it owns. While the worker is away, drafts fail at once."""

    def __init__(self, command: WorkerCommand) -> None:
        self._command = command
        self._client = WorkerClient(command.socket)
        self._process: asyncio.subprocess.Process | None = None
        self.info: protocol.Info | None = None
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
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self._stop()

    def events(self, command: protocol.DraftCommand) -> AbstractAsyncContextManager[AsyncIterator[protocol.Event]]:
        """See `SmallModel.events`."""
        if self.info is None:
            raise SmallModelError("worker_unavailable", "the worker is starting")
        return self._client.events(command)

    async def _keep(self) -> None:
        failures = 0
        while True:
            self.starts += 1
            self._process = await asyncio.create_subprocess_exec(
                *self._command.arguments(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 20,
            )
            relay = asyncio.create_task(self._relay(self._process))
            ready = await self._until_ready(self._process)
            failures = 0 if ready else failures + 1
            code = await self._process.wait()
            self.info = None
            await relay
            _log.warning("worker_ended", code=code, failures=failures)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _until_ready(self, process: asyncio.subprocess.Process) -> bool:
        deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
        while process.returncode is None:
            with contextlib.suppress(SmallModelError):
                self.info = await self._client.ask_info()
                _log.info("worker_ready", model=self.info.model)
                return True
            if asyncio.get_running_loop().time() > deadline:
                process.kill()
                return False
            await asyncio.sleep(POLL_S)
        return False

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """The worker's stderr into our log, line by line and bounded."""
        assert process.stderr is not None
        while line := await process.stderr.readline():
            _log.info("worker", line=line.decode(errors="replace").rstrip()[:MAX_LINE])

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 5.0)
        except TimeoutError:
            process.kill()
            await process.wait()
