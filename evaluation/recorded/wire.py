"""Chat-completions JSON of a recorded answer, whole and in chunks, and the content key by which a request is known.

A request is known by its messages (role, text, calls) and the names of its tools. Not compared: ids of tool calls,
descriptions and schemas of tools, sampling parameters, the order of the tools. A gateway may change all of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.cases.answers import decode_arguments
from evaluation.cases.case import canonical_json
from evaluation.cases.study_data import RecordedAnswer

PIECE_CHARS = 24
"""Characters of text or arguments in one chunk of a stream."""


def content_key(messages: Sequence[Mapping[str, Any]], tool_names: Sequence[str]) -> str:
    """SHA-256 (hex) of what is asked. Raises ValueError for messages that are not OpenAI chat messages."""
    asked = {"messages": [_plain_message(message) for message in messages], "tools": sorted(tool_names)}
    return hashlib.sha256(canonical_json(asked)).hexdigest()


def completion(recorded: RecordedAnswer, *, completion_id: str, created: int, model: str) -> dict[str, Any]:
    """A whole chat completion. Without recorded tokens it has no `usage`: the cost is unknown, not nothing."""
    message: dict[str, Any] = {"role": "assistant", "content": None if recorded.calls else recorded.text or ""}
    if recorded.calls:
        message["tool_calls"] = [
            {
                "id": call_id(recorded, index),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_text},
            }
            for index, call in enumerate(recorded.calls)
        ]
    body: dict[str, Any] = {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(recorded)}],
    }
    tokens = usage(recorded)
    return body | {"usage": tokens} if tokens else body


def chunks(
    recorded: RecordedAnswer, *, completion_id: str, created: int, model: str, include_usage: bool
) -> Iterator[dict[str, Any]]:
    """The chunks of a stream, the usage chunk last if it is asked for and tokens were recorded."""
    frame = {"id": completion_id, "object": "chat.completion.chunk", "created": created, "model": model}
    tokens = usage(recorded) if include_usage else None
    unfilled = {"usage": None} if tokens else {}

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return frame | {"choices": [choice]} | unfilled

    yield chunk({"role": "assistant", "content": None if recorded.calls else ""})
    for index, call in enumerate(recorded.calls or ()):
        head = {"name": call.name, "arguments": ""}
        opened = {"index": index, "id": call_id(recorded, index), "type": "function", "function": head}
        yield chunk({"tool_calls": [opened]})
        for piece in _pieces(call.arguments_text):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    if not recorded.calls:
        for piece in _pieces(recorded.text or ""):
            yield chunk({"content": piece})
    yield chunk({}, _finish_reason(recorded))
    if tokens:
        yield frame | {"choices": [], "usage": tokens}


def usage(recorded: RecordedAnswer) -> dict[str, int] | None:
    """The recorded tokens, or None where they were not recorded."""
    if recorded.input_tokens is None or recorded.output_tokens is None:
        return None
    return {
        "prompt_tokens": recorded.input_tokens,
        "completion_tokens": recorded.output_tokens,
        "total_tokens": recorded.input_tokens + recorded.output_tokens,
    }


def call_id(recorded: RecordedAnswer, index: int) -> str:
    """The id of a call: the same each time the same answer is given, streamed or whole."""
    digest = hashlib.sha256(f"{recorded.model}\x00{recorded.id}\x00{index}".encode()).hexdigest()
    return f"call_{digest[:24]}"


def error_body(message: str, *, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI shapes it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _finish_reason(recorded: RecordedAnswer) -> str:
    return "tool_calls" if recorded.calls else "stop"


def _pieces(text: str) -> list[str]:
    return [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError("a message has no role")
    role = "system" if message["role"] == "developer" else message["role"]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError("tool_calls is not a list")
    return {"role": role, "text": _plain_text(message.get("content")), "calls": [_plain_call(call) for call in calls]}


def _plain_text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("a message's content is neither text nor a list of parts")
    parts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        parts.append(text if isinstance(text, str) else canonical_json(part).decode("ascii"))
    return "".join(parts)


def _plain_call(call: Any) -> list[Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError("a tool call has no function")
    arguments = function.get("arguments")
    decoded = decode_arguments(arguments) if isinstance(arguments, str) else None
    return [function.get("name"), arguments if decoded is None else decoded]
