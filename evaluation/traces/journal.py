"""The rows of a run that is not finished: JSON lines beside the table, one flushed to the system for each answer.

Killing the process at any moment loses at most the requests in flight; a power cut may lose the last seconds. A torn
last line is cut off at the next opening. One process at a time: the file is locked.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from evaluation.traces.small_side import Serving
from evaluation.traces.table import TRACE_VERSION, TraceError, TraceRow


class _Header(msgspec.Struct, frozen=True):
    schema_version: int
    arm: str
    serving: Serving | None = None


class Journal:
    """An open, locked journal; `rows` holds what it held when it was opened. Stays on disk until `remove` is called."""

    def __init__(self, path: Path, arm: str, serving: Serving | None = None) -> None:
        """Open or make the file. Raises TraceError if another run holds it, or if it is of another version or arm, or
        of drafts that were made with something else."""
        self._path = path
        self._file = path.open("a+b")
        try:
            self._lock()
            self.rows = self._recover(_Header(TRACE_VERSION, arm, serving))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, row: TraceRow) -> None:
        """Add one row; once the call returns the row outlives this process. Raises TraceError if the disk is full."""
        try:
            self._write(row)
        except OSError as error:
            raise TraceError(f"{self._path}: cannot be written: {error}") from error

    def remove(self) -> None:
        """Delete the file: its rows stand in the table."""
        self._path.unlink()

    def _write(self, value: _Header | TraceRow) -> None:
        self._file.write(msgspec.json.encode(value) + b"\n")
        self._file.flush()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TraceError(f"{self._path}: another run writes it") from error
        # Between opening and locking, the run that held the lock may have finished and removed the file.
        if not self._path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
            raise TraceError(f"{self._path}: another run has just finished it; start again")

    def _recover(self, header: _Header) -> list[TraceRow]:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()
        if torn:
            self._file.truncate(self._file.tell() - len(torn))
        if not lines:
            self._write(header)
            return []
        try:
            found = msgspec.json.decode(lines[0], type=_Header)
            if found.serving != header.serving:
                raise TraceError(f"{self._path}: its drafts were made with other weights or another adapter: remove it")
            if found != header:
                raise TraceError(
                    f"{self._path}: holds {found.arm!r}, version {found.schema_version}; not {header.arm!r}"
                )
            return [msgspec.json.decode(line, type=TraceRow) for line in lines[1:]]
        except msgspec.DecodeError as error:
            raise TraceError(f"{self._path}: not a journal: {error}") from error
