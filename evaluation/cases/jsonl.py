"""JSON lines, gzipped or plain, read with bounded memory and with errors that name the file, the line and the field.

Blank lines are refused: a truncated or hand-edited file should be seen, not skipped over.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar, cast

import msgspec

MAX_LINE_BYTES = 4 * 1024 * 1024
"""Longest line that is read, after decompression. The longest committed row has about 42 kB."""

Row = TypeVar("Row")


class RowError(ValueError):
    """A row that cannot be read. The text is `FILE:LINE: what is wrong - at $.field`."""

    def __init__(self, path: Path, line: int, detail: str) -> None:
        super().__init__(f"{path}:{line}: {detail}")
        self.path = path
        self.line = line
        self.detail = detail


def read_rows(
    path: Path,
    row_type: type[Row],
    *,
    max_line_bytes: int = MAX_LINE_BYTES,
    passed_over: Callable[[RowError], None] | None = None,
) -> Iterator[tuple[int, Row]]:
    """Yield (line number from 1, row), decoded as `row_type`. A name that ends in `.gz` is decompressed.

    Raises RowError for a line that is blank, not JSON or not of the type, unless `passed_over` takes it; and for a line
    that is too long and for a broken archive. An unreadable file raises its own OSError.
    """
    decoder = msgspec.json.Decoder(row_type)
    with _open(path) as lines:
        number = 0
        while True:
            number += 1
            try:
                line = lines.readline(max_line_bytes + 1)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise RowError(path, number, f"broken gzip archive: {error}") from error
            if not line:
                return
            if len(line) > max_line_bytes:
                raise RowError(path, number, f"line is longer than {max_line_bytes} bytes")
            try:
                row = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                wrong = RowError(path, number, str(error))
                if passed_over is None:
                    raise wrong from error
                passed_over(wrong)
                continue
            yield number, row


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")
