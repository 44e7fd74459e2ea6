"""Our worker as a contender: the process that the gateway starts, asked over its socket."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slm.protocol import Done, DraftCommand, DraftFailed, Event, Started, encode, event_decoder

START_S = 180.0


@dataclass(frozen=True, slots=True)
class Drafted:
    """One draft, described by its first and last event."""

    started: Started
    done: Done


class Worker:
    """A running worker. Safe to use from several threads: each draft has a connection of its own."""

    def __init__(self, path: Path, pid: int) -> None:
        self._path, self.pid = path, pid

    def draft(self, command: DraftCommand) -> Drafted:
        """A whole draft. Raises OSError where there is none."""
        events = list(self._events(command))
        first, last = events[0], events[-1]
        if not isinstance(first, Started) or not isinstance(last, Done):
            raise OSError(f"no draft: {last.code if isinstance(last, DraftFailed) else last}")
        return Drafted(first, last)

    def _events(self, command: DraftCommand) -> Iterator[Event]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(str(self._path))
            connection.sendall(encode(command) + b"\n")
            with connection.makefile("rb") as lines:
                for line in lines:
                    yield event_decoder.decode(line)


@contextmanager
def working(folder: Path, model: Path, adapter: Path, *, dtype: str, threads: int, cache_mb: int) -> Iterator[Worker]:
    """A worker until the block ends; its socket and log lie in `folder`."""
    path = folder / f"{dtype}-{cache_mb}.sock"
    line = [
        sys.executable, "-m", "slm.worker.server", "--socket", str(path), "--model", str(model),
        "--adapter", str(adapter), "--dtype", dtype, "--threads", str(threads), "--cache-mb", str(cache_mb),
    ]  # fmt: skip
    with path.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(line, stderr=log)
        try:
            until = time.monotonic() + START_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise OSError(f"the worker did not start: see {log.name}")
                time.sleep(0.1)
            yield Worker(path, process.pid)
        finally:
            process.terminate()
            process.wait(30)
