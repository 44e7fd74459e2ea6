"""The one request of `make bench-gateway`, and the answers to it: 4 KB with five tools, answered by one tool call."""

from __future__ import annotations

import json
from typing import Any

REQUEST_BYTES = 4096
DELTAS = 16
"""Pieces that the streamed call's arguments come in."""
_PLACES = ("calendar", "mail", "files", "contacts", "tickets")
_ARGUMENTS = {"query": "quarterly figures of the northern branch, second draft", "limit": 25, "include_archived": False}
_USAGE = {
    "prompt_tokens": 912,
    "completion_tokens": 31,
    "total_tokens": 943,
    "prompt_tokens_details": {"cached_tokens": 0},
}
_HEAD = {"id": "chatcmpl-bench", "created": 1_760_000_000, "model": "gpt-4o-2024-08-06"}


def _tool(place: str) -> dict[str, Any]:
    properties = {
        "query": {"type": "string", "description": f"Words that an entry of the {place} must contain."},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "description": "Most entries that are given."},
        "include_archived": {"type": "boolean", "description": "Whether archived entries count as well."},
    }
    parameters = {"type": "object", "properties": properties, "required": ["query"], "additionalProperties": False}
    function = {"name": f"search_{place}", "description": f"Search the user's {place}.", "parameters": parameters}
    return {"type": "function", "function": function}


def request_body(model: str, *, stream: bool) -> bytes:
    """A chat completion of `REQUEST_BYTES` bytes or a little more; the conversation is filled up to it."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You help with office work. Use a tool where one fits. "},
            {"role": "user", "content": "Find the quarterly figures of the northern branch."},
        ],
        "tools": [_tool(place) for place in _PLACES],
        "tool_choice": "auto",
        "temperature": 0,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    filler = "Answer in the user's language, name your sources, and do not guess at what a tool can tell. "
    missing = max(0, REQUEST_BYTES - len(json.dumps(body)))
    body["messages"][0]["content"] += (filler * (missing // len(filler) + 1))[:missing]
    return json.dumps(body).encode()


def whole_answer() -> bytes:
    """A chat completion with one tool call."""
    function = {"name": "search_files", "arguments": json.dumps(_ARGUMENTS)}
    call = {"id": "call_bench", "type": "function", "function": function}
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    return json.dumps({**_HEAD, "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()


def streamed_answer() -> list[bytes]:
    """The same as server-sent events, `[DONE]` included."""
    text = json.dumps(_ARGUMENTS)
    size = -(-len(text) // DELTAS)
    function = {"name": "search_files", "arguments": ""}
    first = {"index": 0, "id": "call_bench", "type": "function", "function": function}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": [first]}]
    deltas += [
        {"tool_calls": [{"index": 0, "function": {"arguments": text[start : start + size]}}]}
        for start in range(0, len(text), size)
    ]
    choices: list[list[dict[str, Any]]] = [
        [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}] for delta in deltas
    ]
    choices.append([{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}])
    chunks = [{**_HEAD, "object": "chat.completion.chunk", "choices": one, "usage": None} for one in choices]
    chunks.append({**_HEAD, "object": "chat.completion.chunk", "choices": [], "usage": _USAGE})
    return [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
