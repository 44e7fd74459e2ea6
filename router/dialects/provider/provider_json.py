"""JSON as providers write it: some cut texts in the middle of a character.

Half of a character is written as a lone surrogate (`\\ud83d`), or as bytes that are no UTF-8: neither can be passed on.
In a stream the other half comes with the next event: the two are put together.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_HALVES = re.compile("[\ud800-\udfff]")
HOLE = "\N{REPLACEMENT CHARACTER}"
"""What stands where a half character was."""


def read_json(data: bytes) -> Any:
    """A whole answer, or what it holds. Raises orjson.JSONDecodeError."""
    try:
        return orjson.loads(data)  # whole by itself: orjson refuses half characters
    except orjson.JSONDecodeError as error:
        return whole(_loose(data, error))


def whole(value: Any) -> Any:
    """The value without half characters."""
    return StreamTexts().put_together(value, ended=True)


class StreamTexts:
    """The events of one stream, whose texts go on from one to the next."""

    def __init__(self) -> None:
        self._open: dict[tuple[Any, ...], str] = {}
        """By its place in an event, the first half of a character that a text there ended in."""

    def read(self, data: bytes) -> Any:
        """One event. Raises orjson.JSONDecodeError."""
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return self.put_together(_loose(data, error))

    def whole(self, event: dict[str, Any]) -> dict[str, Any]:
        """One event that was read by others."""
        try:
            orjson.dumps(event)
        except TypeError:
            put: dict[str, Any] = self.put_together(event)
            return put
        return event

    def put_together(self, value: Any, place: tuple[Any, ...] = (), *, ended: bool = False) -> Any:
        """The value with whole characters; `ended`: no other half will come."""
        if isinstance(value, dict):
            return {
                self._text(key, None): self.put_together(inner, (*place, key), ended=ended)
                for key, inner in value.items()
            }
        if isinstance(value, list):
            return [self.put_together(inner, (*place, index), ended=ended) for index, inner in enumerate(value)]
        return self._text(value, None if ended else place) if isinstance(value, str) else value

    def _text(self, text: str, place: tuple[Any, ...] | None) -> str:
        if not _HALVES.search(text):
            return text
        if place is not None:
            text = self._open.pop(place, "") + text
            if "\ud800" <= text[-1] <= "\udbff":
                text, self._open[place] = text[:-1], text[-1]
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return _HALVES.sub(HOLE, joined)


def _loose(data: bytes, error: orjson.JSONDecodeError) -> Any:
    """JSON that orjson refused, read if nothing but half characters is wrong with it. Raises `error` otherwise."""
    decoded = data.decode("utf-8", "replace")
    if not _HALF.search(data) and HOLE not in decoded:
        raise error
    try:
        return json.loads(decoded)
    except (json.JSONDecodeError, RecursionError):
        raise error from None
