"""One file, known by its SHA-256, from whichever source answers first.

A source is asked for the file and may keep unfinished work in a folder of its own, so that a second try goes on where
the first one stopped. Whatever a source gives is hashed before it is used, and removed if it is another file. Sources
are tried one after the other; when all fail, the error says what each of them said.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from slm.weights.folders import WeightsError, file_sha256

OnProgress = Callable[[str, int, int | None], None]
"""Called often, from one thread, with the stage in words, bytes done, and total bytes or None."""


class DownloadError(WeightsError):
    """A file could not be downloaded."""


class SourceUnavailable(DownloadError):
    """One source did not answer, or not with the file."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")


class WrongHash(DownloadError):
    """A source gave a file with another content; our copy of it has been removed."""

    def __init__(self, source: str, expected: str, actual: str) -> None:
        super().__init__(f"{source}: wrong file, expected SHA-256 {expected}, got {actual}; the copy was removed")
        self.expected = expected
        self.actual = actual


class NoSource(DownloadError):
    """Every source failed. `failures` holds one error a source, in the order of asking."""

    def __init__(self, wanted: RemoteFile, failures: Sequence[DownloadError]) -> None:
        said = "".join(f"\n  - {failure}" for failure in failures)
        hint = "without a network, `smallcall models pull --from DIR` takes a local copy"
        super().__init__(f"no source could give {wanted.name} ({hint}):{said}")
        self.failures = tuple(failures)


class DiskFull(WeightsError):
    """Too little room in the cache folder, found before or while writing."""


class CacheError(WeightsError):
    """The cache folder cannot be read or written."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file and the content that it must have."""

    name: str
    sha256: str
    bytes: int


class FileSource(Protocol):
    """A place that may have a file."""

    @property
    def name(self) -> str:
        """A short name for messages; also the name of the source's folder."""
        ...

    def fetch(self, wanted: RemoteFile, folder: Path, on_progress: OnProgress) -> Path:
        """Put the file into `folder` and return its path. What an earlier try left in `folder` may be used.

        Raises:
            SourceUnavailable: this source cannot give the file now.
            OSError: `folder` cannot be written.
        """
        ...


def fetch(wanted: RemoteFile, sources: Sequence[FileSource], folder: Path, on_progress: OnProgress) -> Path:
    """Return the path of the verified file in `folder`, fetched from the first source that gives it if it is missing.

    Two processes must not fetch into one folder at the same time: the caller holds a lock.

    Raises:
        SourceUnavailable, WrongHash: the only source failed.
        NoSource: several sources failed.
        DiskFull, CacheError: `folder` cannot be written.
    """
    failures: list[DownloadError] = []
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        final = folder / wanted.name
        if final.is_file():
            if file_sha256(final) == wanted.sha256:
                return final
            final.unlink()
        for source in sources:
            workshop = folder / f"{source.name}.part"
            workshop.mkdir(exist_ok=True)
            try:
                found = source.fetch(wanted, workshop, on_progress)
                actual = file_sha256(found)
                if actual == wanted.sha256:
                    os.replace(found, final)
                    for unfinished in folder.glob("*.part"):  # of sources that broke off, too
                        shutil.rmtree(unfinished)
                    return final
                shutil.rmtree(workshop)
                raise WrongHash(source.name, wanted.sha256, actual)
            except DownloadError as exc:
                failures.append(exc)
    raise failures[0] if len(failures) == 1 else NoSource(wanted, failures)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Translate errors of the operating system while `folder` is written.

    Raises:
        DiskFull: no space or no quota is left.
        CacheError: anything else.
    """
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"the disk is full: writing below {folder} failed ({exc.strerror})") from exc
        raise CacheError(f"the folder {folder} cannot be used: {exc.strerror or type(exc).__name__}") from exc


def require_room(folder: Path, needed_bytes: int, free_bytes: Callable[[Path], int]) -> None:
    """Check that there is enough free space before anything is written.

    Raises:
        DiskFull: `free_bytes(folder)` is below `needed_bytes`.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        needed_mb, free_mb = -(-needed_bytes // 1_000_000), free // 1_000_000
        raise DiskFull(f"too little room in {folder}: {needed_mb} MB are needed, {free_mb} MB are free")


def free_disk_bytes(folder: Path) -> int:
    """Free bytes for this user on the file system of `folder`."""
    return shutil.disk_usage(folder).free
