"""What an answer of the large model holds: which calls, and how much text. Read off as it goes by, in any dialect.

Its shape shows the dialect: chat completions have `choices`, Messages `content`, Responses `output`. A provider is not
trusted: what has another type is read over, and both the number of calls and the arguments that are kept are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from router.dialects.provider.call_deltas import StreamedCalls, objects
from router.ledger.row import LargeCall

MAX_CALLS = 128
MAX_ARGUMENTS_CHARS = 1_000_000
"""Of all calls together; what goes beyond is counted, and the answer is not kept."""


@dataclass(slots=True)
class AnswerCall:
    """One call of an answer; `pieces` are its arguments' JSON text."""

    call_id: str
    tool: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """As they were written."""
        return "".join(self.pieces)


class AnswerSummary:
    """Belongs to one answer. `keep`: whether arguments are kept, and not only counted."""

    def __init__(self, *, keep: bool = False) -> None:
        self.calls: list[AnswerCall] = []
        self.chars = 0
        """Characters of text, reasoning and arguments that went by."""
        self.keep = keep
        self._kept = 0
        self._at: dict[Any, AnswerCall] = {}
        self._streamed = StreamedCalls()
        """Of chat completions, whose pieces do not all say which call they belong to."""
        self._of: dict[int, AnswerCall | None] = {}

    @property
    def large_calls(self) -> list[LargeCall]:
        """Those that can be recognised when their results come."""
        return [LargeCall(call.call_id, call.tool) for call in self.calls if call.call_id]

    def message(self) -> dict[str, Any] | None:
        """The calls as an assistant's message of chat completions; None where none was made, or arguments are gone."""
        if not self.calls or not self.keep or self._kept > MAX_ARGUMENTS_CHARS:
            return None
        made = [
            {"id": call.call_id, "type": "function", "function": {"name": call.tool, "arguments": call.arguments}}
            for call in self.calls
        ]
        return {"role": "assistant", "content": None, "tool_calls": made}

    def whole(self, answer: Mapping[str, Any]) -> None:
        """Take a whole answer."""
        for choice in objects(answer.get("choices"))[:1]:
            message = choice.get("message")
            if isinstance(message, dict):
                calls = [{**call, "index": index} for index, call in enumerate(objects(message.get("tool_calls")))]
                self._chat({**message, "tool_calls": calls})
        for block in objects(answer.get("content")):
            self._block(None, block)
        for item in objects(answer.get("output")):
            self._item(None, item)

    def piece(self, piece: Mapping[str, Any]) -> None:
        """Take one event of a stream."""
        choices = piece.get("choices")
        if choices:
            self._first_delta(choices)
        kind = piece.get("type")
        if kind is None:
            return
        if kind == "content_block_start" and isinstance(piece.get("content_block"), dict):
            self._block(piece.get("index"), piece["content_block"])
        elif kind == "content_block_delta" and isinstance(piece.get("delta"), dict):
            delta = piece["delta"]
            self._write(self._at.get(_key(piece.get("index"))), delta.get("partial_json"))
            self._count(delta.get("text"), delta.get("thinking"))
        elif kind == "response.output_item.added" and isinstance(piece.get("item"), dict):
            self._item(piece.get("output_index"), piece["item"])
        elif kind == "response.function_call_arguments.delta":
            self._write(self._at.get(_key(piece.get("output_index"))), piece.get("delta"))
        elif isinstance(kind, str) and kind.startswith("response.") and kind.endswith(".delta"):
            self._count(piece.get("delta"))

    def _first_delta(self, choices: Any) -> None:
        if not isinstance(choices, list):
            return
        for choice in choices:
            if isinstance(choice, dict):
                delta = choice.get("delta")
                if isinstance(delta, dict):
                    self._chat(delta)
                return

    def _chat(self, message: Mapping[str, Any]) -> None:
        """Once for every few characters of a stream: written for speed."""
        for name in ("content", "reasoning_content"):
            text = message.get(name)
            if text.__class__ is str:
                self.chars += len(text)
        calls = message.get("tool_calls")
        if not isinstance(calls, list):
            return
        for call in calls:
            if isinstance(call, dict):
                self._chat_call(call)

    def _chat_call(self, piece: Mapping[str, Any]) -> None:
        if len(self._streamed.calls) > MAX_CALLS:  # what comes now may belong to any: the answer is not kept
            self._kept = MAX_ARGUMENTS_CHARS + 1
            return
        call, arguments = self._streamed.take(piece)
        seen = self._of.get(call.index)
        if seen is None and call.name:
            seen = self._of[call.index] = self._call(None, call.call_id, call.name)
        self._write(seen, arguments)

    def _block(self, index: Any, block: Mapping[str, Any]) -> None:
        if block.get("type") == "tool_use":
            call = self._call(_key(index), block.get("id"), block.get("name"))
            if block.get("input"):  # in a stream it is empty, and comes in pieces
                self._write(call, orjson.dumps(block["input"]).decode())
        else:
            self._count(block.get("text"), block.get("thinking"))

    def _item(self, index: Any, item: Mapping[str, Any]) -> None:
        if item.get("type") == "function_call":
            call = self._call(_key(index), item.get("call_id"), item.get("name"))
            self._write(call, item.get("arguments"))
        for part in objects(item.get("content")):
            self._count(part.get("text"))

    def _call(self, key: Any, call_id: Any, tool: Any) -> AnswerCall | None:
        if len(self.calls) >= MAX_CALLS or not isinstance(tool, str):
            self._at.pop(key, None)
            return None
        call = AnswerCall(call_id if isinstance(call_id, str) else "", tool)
        self.calls.append(call)
        if key is not None:
            self._at[key] = call
        return call

    def _write(self, call: AnswerCall | None, text: Any) -> None:
        if not isinstance(text, str):
            return
        self.chars += len(text)
        if call is None or not self.keep:
            return
        self._kept += len(text)
        if self._kept <= MAX_ARGUMENTS_CHARS:
            call.pieces.append(text)

    def _count(self, *texts: Any) -> None:
        for text in texts:
            if isinstance(text, str):
                self.chars += len(text)


def _key(value: Any) -> Any:
    """What pieces of one call have in common; a provider may send anything there."""
    return value if isinstance(value, (int, str)) else None
