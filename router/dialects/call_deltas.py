"""Which call a piece of a stream belongs to, where an answer tells its calls one after the other.

Pieces of one call have the same index and stand together; only the first has an id and a name. Some providers repeat
both in every piece, and some send each parallel call whole under index 0: a new id beside a name begins a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.dialects.errors import ClientError


class CallPieces:
    """The calls of one stream so far."""

    def __init__(self) -> None:
        self.begun = 0
        self._open: int | None = None
        self._indexes: set[int] = set()
        self._ids: set[str] = set()

    def begins(self, piece: Mapping[str, Any]) -> bool:
        """Whether a call begins with the piece; else it goes on with the open one. Raises ClientError where it belongs
        to a call that is over."""
        index, call_id = piece.get("index"), piece.get("id")
        if not isinstance(index, int):
            index = 0
        named = bool((piece.get("function") or {}).get("name"))
        if named and isinstance(call_id, str) and call_id and call_id not in self._ids:
            self._ids.add(call_id)
        elif index == self._open:
            return False
        elif index in self._indexes:
            raise ClientError(502, "the large model mixed the pieces of its calls", "upstream_unavailable")
        self._indexes.add(index)
        self._open = index
        self.begun += 1
        return True

    def close(self) -> None:
        """The open call is over."""
        self._open = None
