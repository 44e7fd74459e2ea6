"""Training rows from files, bad rows counted: the project's own format, OpenAI conversations, hand-written domains."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from slm.dataset.authored import authored_rows, authored_sha256
from slm.dataset.conversations import examples_of, is_conversation
from slm.dataset.examples import BadRow, Example, example_of

MAX_LINE_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class TrainingRows:
    """Examples of one file, how many rows were refused for which reason, and the SHA-256 of the file's bytes."""

    examples: tuple[Example, ...]
    refused: Mapping[str, int]
    sha256: str


def names_of(files: Sequence[Path]) -> list[str]:
    """Return a name for each file: its own, or as much of its path as makes it unique; a file given twice has one
    name."""
    paths = [Path(os.path.abspath(file)) for file in files]
    return [_shortest_name(path, set(paths) - {path}) for path in paths]


def _shortest_name(path: Path, others: set[Path]) -> str:
    ends = (path.parts[-count:] for count in range(1, len(path.parts)))
    return next(
        (Path(*end).as_posix() for end in ends if all(other.parts[-len(end) :] != end for other in others)),
        path.as_posix(),
    )


def read_rows(path: Path, split: str = "train", name: str | None = None) -> TrainingRows:
    """Read the examples of one split of a `.jsonl` or `.jsonl.gz` file, in file order; conversations are of split
    `train`.

    A folder, or a `.txt` file, holds hand-written domains (`slm.dataset.authored`), of split `train` as well. `name` is
    the source of the conversations, the file's own by default.

    Raises:
        OSError: the file cannot be read, or is a broken archive.
        slm.dataset.authored.AuthoredError: a line of a domain cannot be read.
    """
    if path.is_dir() or path.suffix == ".txt":
        return _authored(path, split)
    examples: list[Example] = []
    refused: Counter[str] = Counter()
    for line in _lines(path):
        try:
            row = _row(line)
            if row.get("split", "train") != split:
                continue
            for made in examples_of(row, name or path.name) if is_conversation(row) else (example_of(row),):
                if isinstance(made, BadRow):
                    refused[made.reason] += 1
                else:
                    examples.append(made)
        except BadRow as bad:
            refused[bad.reason] += 1
    with path.open("rb") as file:
        return TrainingRows(tuple(examples), dict(refused), hashlib.file_digest(file, "sha256").hexdigest())


def _authored(path: Path, split: str) -> TrainingRows:
    examples: list[Example] = []
    refused: Counter[str] = Counter()
    for row in authored_rows(path) if split == "train" else ():
        try:
            examples.append(example_of(row))
        except BadRow as bad:
            refused[bad.reason] += 1
    return TrainingRows(tuple(examples), dict(refused), authored_sha256(path))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                if line.strip():
                    yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise OSError(f"{path}: broken gzip archive: {exc}") from exc


def _row(line: bytes) -> Mapping[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRow("not JSON") from exc
    if not isinstance(row, dict):
        raise BadRow("not an object")
    return row
