"""Answers in Anthropic's Messages dialect: whole, as the events of a stream, and errors.

The events of a block stand together: start, deltas, stop. Usage is told as the provider reported it. A large model's is
not known at a stream's start: the prompt's tokens are estimated there, by the body's bytes, and the true figures come
with `message_delta`, as cumulative counts do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from router.dialects.chat_completions_answers import COMMENT
from router.dialects.errors import ClientError
from router.dialects.provider.call_deltas import AnswerParts, Part
from router.dialects.provider.finish_reasons import finish_reason, stop_reason
from router.dialects.provider.provider_json import read_json
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
        "stop_reason": _stop(choice.get("finish_reason"), called=bool(given.get("tool_calls"))),
        "usage": _usage(completion.get("usage")),
    }


def amend_message(answer: dict[str, Any]) -> None:
    """Put right in place what a provider's own message says against what it holds."""
    content, told = answer.get("content"), answer.get("stop_reason")
    if isinstance(content, list) and isinstance(told, str):
        called = any(isinstance(block, dict) and block.get("type") == "tool_use" for block in content)
        answer["stop_reason"] = stop_reason(told, called=called)


def _stop(finish: str | None, *, called: bool) -> str:
    return _STOPS.get(finish_reason(finish or "stop", called=called), "end_turn")


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
        arguments = read_json(written.encode("utf-8", "replace") if written and written.strip() else b"{}")
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
        self._open: Part | None = None
        """What the open block tells."""
        self._blocks = 0
        self._calls = 0
        self._parts = AnswerParts()
        self._finish: str | None = None
        self._usage: Any = None

    def events(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """See `Writer.events`. Raises ClientError where a provider goes on with a call that is over."""
        if not self._started:
            self._started = True
            self._usage = self._usage or chunk.get("usage")
            begun = _usage(self._usage or {"prompt_tokens": max(1, self._chat.size_bytes // BYTES_PER_TOKEN)})
            frame = _frame(self._chat, self._decision_id) | {"usage": {**begun, "output_tokens": 0}}
            yield _event("message_start", message=frame)
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            for part, said in self._parts.take(choice.get("delta") or {}):
                yield from self._told(part, said)
            self._finish = choice.get("finish_reason") or self._finish

    def ending(self, chunks: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None) -> Iterator[bytes]:
        """See `Writer.ending`. The `smallcall` object stands in `message_delta`."""
        self._usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), self._usage)
        for chunk in chunks:
            yield from self.events(chunk)
        for part, said in self._parts.end():
            yield from self._told(part, said)
        yield from self._closed()
        delta = {"stop_reason": _stop(self._finish, called=self._parts.called), "stop_sequence": None}
        told = {} if extras is None else {"smallcall": extras}
        yield _event("message_delta", delta=delta, usage=_usage(self._usage), **told)
        yield _event("message_stop")

    def forwarded(self, event: Mapping[str, Any]) -> bytes:
        """See `Writer.forwarded`. The reason to end is told by the blocks that went by."""
        self._started = True
        block, delta = event.get("content_block"), event.get("delta")
        if isinstance(block, dict):
            self._calls += block.get("type") == "tool_use"
        elif isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str):
            told = stop_reason(delta["stop_reason"], called=self._calls > 0)
            event = {**event, "delta": {**delta, "stop_reason": told}}
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

    def _told(self, part: Part, said: str) -> Iterator[bytes]:
        if part is not self._open:
            yield from self._closed()
            self._open = part
            self._blocks += 1
            yield _event("content_block_start", index=self._blocks - 1, content_block=self._block(part))
        if said and part.call is None:
            yield self._delta({"type": "text_delta", "text": said})
        elif said:
            yield self._delta({"type": "input_json_delta", "partial_json": said})

    def _block(self, part: Part) -> dict[str, Any]:
        if part.call is None:
            return {"type": "text", "text": ""}
        self._calls += 1
        call_id = part.call.call_id or _call_id(self._decision_id, self._calls - 1)
        return {"type": "tool_use", "id": call_id, "name": part.call.name, "input": {}}

    def _closed(self) -> Iterator[bytes]:
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, delta: Mapping[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"
