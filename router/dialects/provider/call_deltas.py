"""The pieces of a streamed answer, put together by what they belong to and not by when they come.

Pieces of one call have the same index; only the first has an id and a name. Providers differ: some repeat both in every
piece, some send each parallel call whole under index 0, with or without an id, and some send pieces of several calls
in turn. Dialects whose answers tell one part after the other get the parts in the order in which they began: the pieces
of the first that is not over pass as they come, those of later ones wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from router.dialects.errors import ClientError

MAX_READ_CHARS = 1_000_000
"""Of one call's arguments: longer ones are not read to see whether they are whole."""
MAX_WAITING_CHARS = 16 * 1024 * 1024
"""Of all pieces that wait for a part before them."""
NO_ARGUMENTS = "{}"
"""What a call without arguments has: an empty text is no JSON, and no client can read it."""

Kind = Literal["content", "refusal", "call"]


@dataclass(slots=True, eq=False)
class StreamedCall:
    """One call of an answer, as far as it was told."""

    index: int
    """By which it can be told from all others of its answer."""
    call_id: str = ""
    """Empty where the provider gave none, or gave it to another call before."""
    name: str = ""
    repeated: bool = False
    """Whether a piece named it again, and said nothing, when its arguments were whole."""
    empty: bool = True
    """Whether its arguments hold nothing so far."""
    _chars: int = 0
    _pieces: list[str] = field(default_factory=list)

    def add(self, call_id: str, name: str, arguments: str) -> None:
        """Take one piece."""
        self.call_id, self.name = self.call_id or call_id, self.name or name
        self.empty = self.empty and not arguments.strip()
        self._chars += len(arguments)
        if self._chars <= MAX_READ_CHARS:
            self._pieces.append(arguments)

    @property
    def arguments(self) -> dict[str, Any] | None:
        """The arguments, if they are whole."""
        if self._chars > MAX_READ_CHARS:
            return None
        written = "".join(self._pieces).strip()
        self._pieces = [written] if written else []
        if not written.endswith("}"):
            return None
        try:
            read = orjson.loads(written)
        except orjson.JSONDecodeError:
            return None
        return read if isinstance(read, dict) else None


class StreamedCalls:
    """The calls of one stream so far."""

    def __init__(self) -> None:
        self.calls: list[StreamedCall] = []
        self._at: dict[int, StreamedCall] = {}
        """The newest call by the provider's index."""
        self._known: dict[tuple[int, str], StreamedCall] = {}
        self._ids: set[str] = set()
        self._indexes: set[int] = set()

    def take(self, piece: Mapping[str, Any]) -> tuple[StreamedCall, str]:
        """The call that a piece belongs to, and what the piece says of its arguments."""
        index, function = piece.get("index"), piece.get("function")
        if not isinstance(index, int):
            index = 0
        if not isinstance(function, dict):
            function = {}
        call_id, name, arguments = _text(piece.get("id")), _text(function.get("name")), _text(function.get("arguments"))
        call = self._known.get((index, call_id)) if call_id else None
        if call is None:
            call = self._at.get(index)
        if call is None or self._begins(call, index, call_id, name, arguments):
            call = self._begun(index, name or (call.name if call is not None else ""))
        if call_id and call.name:
            self._known.setdefault((index, call_id), call)
        fresh = call_id if not call.call_id and call_id not in self._ids else ""
        if fresh:
            self._ids.add(fresh)
        call.add(fresh, name, arguments)
        return call, arguments

    def _begins(self, call: StreamedCall, index: int, call_id: str, name: str, arguments: str) -> bool:
        """Whether another call begins with a piece under the index of `call`."""
        if call_id and (index, call_id) in self._known:
            return False
        if not name:
            return call.repeated and bool(arguments.strip()) and call.arguments is not None
        if not call.name:
            return False
        if call_id and call.call_id:
            return True
        if name != call.name:
            return True
        whole = call.arguments is not None
        call.repeated = call.repeated or (whole and not arguments.strip())
        return whole and bool(arguments.strip())

    def _begun(self, index: int, name: str) -> StreamedCall:
        own = index if index not in self._indexes else max(self._indexes) + 1
        self._indexes.add(own)
        call = self._at[index] = StreamedCall(own, name=name)
        self.calls.append(call)
        return call


@dataclass(slots=True, eq=False)
class Part:
    """A run of text, a refusal or a call: what an answer is made of."""

    kind: Kind
    call: StreamedCall | None = None
    begun: bool = False
    waiting: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether nothing of it can come once another has begun. `{}` may be what a provider begins all calls with."""
        return self.call is None or bool(self.call.arguments)


class AnswerParts:
    """The parts of one answer, each given from its beginning to its end before the next."""

    def __init__(self) -> None:
        self._calls = StreamedCalls()
        self._parts: deque[Part] = deque()
        """From the one whose pieces pass to the newest."""
        self._of_call: dict[int, Part] = {}
        self._waiting = 0

    @property
    def called(self) -> bool:
        """Whether the answer holds a call."""
        return bool(self._calls.calls)

    def take(self, delta: Mapping[str, Any]) -> Iterator[tuple[Part, str]]:
        """What can be told now that this piece of a chat completion came. Raises ClientError where it belongs to a call
        that is over, or too much waits."""
        self._said("content", delta.get("content"))
        self._said("refusal", delta.get("refusal"))
        for piece in objects(delta.get("tool_calls")):
            self._called(piece)
        yield from self._told(ended=False)

    def end(self) -> Iterator[tuple[Part, str]]:
        """What is left at the answer's end."""
        yield from self._told(ended=True)

    def _said(self, kind: Kind, said: Any) -> None:
        if not isinstance(said, str) or not said:
            return
        if not self._parts or self._parts[-1].kind != kind:
            self._parts.append(Part(kind))
        self._wait(self._parts[-1], said)

    def _called(self, piece: Mapping[str, Any]) -> None:
        call, arguments = self._calls.take(piece)
        part = self._of_call.get(call.index)
        if part is None:
            part = self._of_call[call.index] = Part("call", call)
            self._parts.append(part)
        elif part not in self._parts:
            if arguments.strip():
                raise ClientError(502, "the large model went on with a call that was over", "upstream_unavailable")
            return
        self._wait(part, arguments)

    def _wait(self, part: Part, said: str) -> None:
        if said:
            part.waiting.append(said)
            self._waiting += len(said)

    def _told(self, *, ended: bool) -> Iterator[tuple[Part, str]]:
        while self._parts:
            part = self._parts[0]
            if part.call is not None and not part.call.name and not ended:
                break  # its name may come yet
            if not part.begun and not part.waiting:
                part.waiting.append("")
            part.begun = True
            said, part.waiting = part.waiting, []
            for one in said:
                self._waiting -= len(one)
                yield part, one
            if not ended and (len(self._parts) == 1 or not part.over):
                break
            self._parts.popleft()
        if self._waiting > MAX_WAITING_CHARS:
            raise ClientError(502, "the large model began too much at once", "upstream_unavailable")


def _text(value: Any) -> str:
    """A text; some providers write arguments as the object itself."""
    if isinstance(value, dict):
        return orjson.dumps(value).decode()
    return value if isinstance(value, str) else ""


def is_empty(arguments: Any) -> bool:
    """Whether a call's arguments say nothing at all, which no client can read."""
    return arguments is None or (isinstance(arguments, str) and not arguments.strip())


def objects(value: Any) -> list[dict[str, Any]]:
    """The objects of a list that a provider sent, whatever it sent."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
