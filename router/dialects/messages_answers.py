"""Answers in Anthropic's Messages dialect: whole, as the events of a stream, and errors.

The events of a block stand together: start, deltas, stop. Usage is told as the provider reported it. A large model's is
not known at a stream's start: the prompt's tokens are estimated there, by the body's bytes, and the true figures come
with `message_delta`, as cumulative counts do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import orjson

from router.dialects.call_deltas import CallPieces
from router.dialects.chat_completions_answers import COMMENT
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest

_STOPS = {
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
BYTES_PER_TOKEN = 4
"""Of a request's body, taken as a rule of thumb."""
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def error_body(error: ClientError) -> dict[str, Any]:
    """An error in Anthropic's shape; `code` and `param` are ours. Paths in it name this dialect's fields."""
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    shown = {"type": kind, "message": _renamed(error.message), "code": error.code}
    if error.param is not None:
        shown["param"] = _renamed(error.param)
    request_id = error.extra_headers.get("x-smallcall-decision-id")
    body: dict[str, Any] = {"type": "error", "error": shown, "request_id": request_id}
    return body if error.extras is None else {**body, "smallcall": error.extras}


def _renamed(path: str) -> str:
    return path.replace("function.parameters", "input_schema")


def message(chat: ChatRequest, decision_id: str, completion: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer.

    Raises:
        ClientError: 502, a call's arguments are not a JSON object, which is all that this dialect can carry.
    """
    choice = completion["choices"][0]
    given = choice["message"]
    content: list[dict[str, Any]] = []
    said = given.get("content") or given.get("refusal")
    if said:
        content.append({"type": "text", "text": said})
    for index, call in enumerate(given.get("tool_calls") or ()):
        function = call["function"]
        content.append(
            {
                "type": "tool_use",
                "id": call.get("id") or _call_id(decision_id, index),
                "name": function["name"],
                "input": _arguments(function.get("arguments")),
            }
        )
    return _frame(chat, decision_id) | {
        "content": content,
        "stop_reason": _STOPS.get(choice.get("finish_reason") or "", "end_turn"),
        "usage": _usage(completion.get("usage")),
    }


def _frame(chat: ChatRequest, decision_id: str) -> dict[str, Any]:
    return {
        "id": f"msg_{decision_id}",
        "type": "message",
        "role": "assistant",
        "model": chat.client_model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(None),
    }


def _call_id(decision_id: str, index: int) -> str:
    return f"call_{decision_id}_{index}"


def _arguments(written: Any) -> dict[str, Any]:
    try:
        arguments = orjson.loads(written or "{}")
    except (orjson.JSONDecodeError, TypeError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ClientError(502, "the large model's arguments are not a JSON object", "upstream_unavailable")
    return arguments


def _usage(reported: Any) -> dict[str, int]:
    """Tokens read from a cache or written to one are not among `input_tokens` here, unlike in chat completions."""
    usage: Mapping[str, Any] = reported if isinstance(reported, dict) else {}
    details = usage.get("prompt_tokens_details") or {}
    read = details.get("cached_tokens") or 0
    written = usage.get("cache_creation_input_tokens") or details.get("cache_creation_tokens") or 0
    return {
        "input_tokens": max((usage.get("prompt_tokens") or 0) - read - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


class MessageWriter:
    """A stream of one message. See `Writer`."""

    def __init__(self, chat: ChatRequest, decision_id: str) -> None:
        self._chat, self._decision_id = chat, decision_id
        self._started = False
        self._open: Literal["text", "call"] | None = None
        """What the open block is."""
        self._blocks = 0
        self._calls = CallPieces()
        self._stop = "end_turn"
        self._usage: Any = None

    def events(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """See `Writer.events`. Raises ClientError where a provider mixes the pieces of several calls."""
        if not self._started:
            self._started = True
            self._usage = self._usage or chunk.get("usage")
            begun = _usage(self._usage or {"prompt_tokens": max(1, self._chat.size_bytes // BYTES_PER_TOKEN)})
            frame = _frame(self._chat, self._decision_id) | {"usage": {**begun, "output_tokens": 0}}
            yield _event("message_start", message=frame)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            said = delta.get("content") or delta.get("refusal")
            if said:
                yield from self._said(said)
            for call in delta.get("tool_calls") or ():
                yield from self._called(call)
            if choice.get("finish_reason"):
                self._stop = _STOPS.get(choice["finish_reason"], "end_turn")

    def ending(self, chunks: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None) -> Iterator[bytes]:
        """See `Writer.ending`. The `smallcall` object stands in `message_delta`."""
        self._usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), self._usage)
        for chunk in chunks:
            yield from self.events(chunk)
        yield from self._closed()
        delta = {"stop_reason": self._stop, "stop_sequence": None}
        told = {} if extras is None else {"smallcall": extras}
        yield _event("message_delta", delta=delta, usage=_usage(self._usage), **told)
        yield _event("message_stop")

    def forwarded(self, event: Mapping[str, Any]) -> bytes:
        """See `Writer.forwarded`."""
        self._started = True
        return b"event: " + str(event.get("type")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"

    def forwarded_ending(
        self, events: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """See `Writer.forwarded_ending`."""
        for event in events:
            told = extras is not None and event.get("type") == "message_delta"
            yield self.forwarded({**event, "smallcall": extras} if told else event)

    def failed(self, error: ClientError) -> bytes:
        """See `Writer.failed`."""
        return b"event: error\ndata: " + orjson.dumps(error_body(error)) + b"\n\n"

    def keep_alive(self) -> bytes:
        """See `Writer.keep_alive`. Before its start a message has no events, so it is a comment then."""
        return _PING if self._started else COMMENT

    def _said(self, said: str) -> Iterator[bytes]:
        if self._open != "text":
            self._calls.close()
            yield from self._opened("text", {"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": said})

    def _called(self, call: Mapping[str, Any]) -> Iterator[bytes]:
        function = call.get("function") or {}
        if self._calls.begins(call):
            call_id = call.get("id") or _call_id(self._decision_id, self._calls.begun - 1)
            block: dict[str, Any] = {"type": "tool_use", "id": call_id, "name": function.get("name") or "", "input": {}}
            yield from self._opened("call", block)
        if function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})

    def _opened(self, what: Literal["text", "call"], block: Mapping[str, Any]) -> Iterator[bytes]:
        yield from self._closed()
        self._open = what
        self._blocks += 1
        yield _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _closed(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"
