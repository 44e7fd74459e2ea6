"""An answer to a case, as it is scored: calls with decoded arguments, or text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

MAX_ARGUMENTS_CHARS = 1_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an answer. `arguments` is None where its text was no JSON object."""

    name: str
    arguments: Mapping[str, Any] | None

    @classmethod
    def from_text(cls, name: str, arguments: str) -> Self:
        """Decode the JSON text of a call's arguments."""
        return cls(name, decode_arguments(arguments))


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer. A failed request is no answer: score only what was answered, count failures apart."""

    calls: tuple[Call, ...] = ()
    text: str | None = None

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """From an OpenAI assistant message (`content`, `tool_calls`). Raises ValueError if it has another shape."""
        calls = []
        for tool_call in message.get("tool_calls") or ():
            function = tool_call.get("function") if isinstance(tool_call, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise ValueError("a tool call has no function name")
            arguments = function.get("arguments")
            if not isinstance(arguments, str):
                raise ValueError("a tool call's arguments are not text")
            calls.append(Call.from_text(function["name"], arguments))
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            raise ValueError("the message's content is not text")
        return cls(tuple(calls), content)


def decode_arguments(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` holds, or None: no JSON, no object, NaN or infinity, or over MAX_ARGUMENTS_CHARS."""
    if len(text) > MAX_ARGUMENTS_CHARS:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
