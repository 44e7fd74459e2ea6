"""A process on a core of its own, and what the kernel counts of it and its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import which

START_S = 120.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Measured:
    """A running process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log

    def family(self) -> list[int]:
        """Its id and those of its children and theirs."""
        found, looked = [], [self._process.pid]
        while looked:
            pid = looked.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    looked += map(int, (task / "children").read_text().split())
        return found

    def cpu_s(self) -> float:
        """CPU seconds of user and system so far. In steps of a clock tick (10 ms)."""
        ticks = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS_PER_S

    def rss_mb(self) -> float:
        """Resident memory, MB."""
        pages = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * _PAGE_BYTES / 1e6

    def await_ready(self, url: str) -> None:
        """Return once `url` answers below 500. Raises RuntimeError with the end of its log."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError):
                try:
                    urllib.request.urlopen(url, timeout=5).read()  # noqa: S310 - our own loopback address
                except urllib.error.HTTPError as error:
                    if error.code >= 500:
                        time.sleep(0.2)
                        continue
                return
            time.sleep(0.2)
        raise RuntimeError(f"it did not start: {self.said()}")

    def await_file(self, file: Path) -> None:
        """Return once `file` holds something. Raises RuntimeError."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            if file.exists() and file.read_text():
                return
            time.sleep(0.2)
        raise RuntimeError(f"it did not start: {self.said()}")

    def said(self) -> str:
        """The end of its log, on one line."""
        return " ".join(self._log.read_text(errors="replace").split())[-300:]


@contextlib.contextmanager
def pinned(command: Sequence[str], core: int, folder: Path, environment: Mapping[str, str]) -> Iterator[Measured]:
    """Run `command` on one core until the block ends; its output goes to a log in `folder`."""
    taskset = which("taskset")
    if taskset is None:
        raise OSError("taskset is not installed")
    variables = [f"{name}={value}" for name, value in environment.items()]
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [taskset, "-c", str(core), "/usr/bin/env", *variables, *command],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        yield Measured(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
