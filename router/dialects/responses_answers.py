"""Answers in OpenAI's Responses dialect: whole, as the numbered events of a stream, and errors.

A whole answer is written by the stream's own steps, so that both say the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from router.dialects.chat_completions_answers import COMMENT
from router.dialects.errors import ClientError
from router.dialects.provider.call_deltas import NO_ARGUMENTS, AnswerParts, Part, is_empty, objects
from router.dialects.request import ChatRequest

_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
"""Fields of the request that its answer tells again, and what they are where they were not given."""
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def error_body(error: ClientError) -> dict[str, Any]:
    """An error in OpenAI's shape. Paths in it name this dialect's fields."""
    body = error.body()
    told = {**body["error"], "message": _renamed(error.message), "param": error.param and _renamed(error.param)}
    return {**body, "error": told}


def _renamed(path: str) -> str:
    return path.replace("].function.", "].")


def response(chat: ChatRequest, decision_id: str, completion: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    items = _Items(decision_id)
    choice = completion["choices"][0]
    given = choice["message"]
    delta = {
        "content": given.get("content"),
        "refusal": given.get("refusal"),
        "tool_calls": [{**call, "index": index} for index, call in enumerate(given.get("tool_calls") or ())],
    }
    finish, created = choice.get("finish_reason"), completion.get("created")
    for _ in (*items.take(delta), *items.end(finish)):
        pass
    return _finished(_frame(chat, decision_id, created), items.done, finish, completion.get("usage"))


def amend_response(answer: Mapping[str, Any]) -> None:
    """Put right in place what a provider's own response says wrongly of its calls."""
    for item in objects(answer.get("output")):
        _fill(item)


def _fill(item: dict[str, Any]) -> None:
    if item.get("type") == "function_call" and is_empty(item.get("arguments")):
        item["arguments"] = NO_ARGUMENTS


def _amend_event(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """An event of a provider's own stream, put right: only what tells a whole call has its arguments."""
    kind = event.get("type")
    if kind == "response.function_call_arguments.done" and is_empty(event.get("arguments")):
        return {**event, "arguments": NO_ARGUMENTS}
    if kind == "response.output_item.done" and isinstance(event.get("item"), dict):
        _fill(event["item"])
    elif kind in ("response.completed", "response.incomplete") and isinstance(event.get("response"), dict):
        amend_response(event["response"])
    return event


def _frame(chat: ChatRequest, decision_id: str, created: Any) -> dict[str, Any]:
    told = {key: chat.native.get(key) for key in _ECHOED}
    echoed = {key: _ECHOED[key] if value is None else value for key, value in told.items()}
    return {
        "id": f"resp_{decision_id}",
        "object": "response",
        "created_at": created if isinstance(created, int) else int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": chat.client_model,
        "output": [],
        "previous_response_id": None,
        "store": False,
        "usage": None,
        **echoed,
    }


def _finished(
    frame: Mapping[str, Any], output: Sequence[Mapping[str, Any]], finish: str | None, reported: Any
) -> dict[str, Any]:
    reason = _INCOMPLETE.get(finish or "")
    return {
        **frame,
        "status": "incomplete" if reason else "completed",
        "completed_at": None if reason else int(time.time()),
        "incomplete_details": {"reason": reason} if reason else None,
        "output": list(output),
        "usage": _usage(reported),
    }


def _usage(reported: Any) -> dict[str, Any] | None:
    if not isinstance(reported, dict):
        return None
    prompt, completion = reported.get("prompt_tokens") or 0, reported.get("completion_tokens") or 0
    details = reported.get("prompt_tokens_details") or {}
    read, written = details.get("cached_tokens") or 0, details.get("cache_write_tokens") or 0
    thought = (reported.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cache_write_tokens": written, "cached_tokens": read},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + completion,
    }


class _Items:
    """The output's items as they grow: each step gives the events that tell it, without their numbers."""

    def __init__(self, decision_id: str) -> None:
        self._decision_id = decision_id
        self.done: list[dict[str, Any]] = []
        self._item: dict[str, Any] | None = None
        self._open: Part | None = None
        """What the open item tells."""
        self._parts = AnswerParts()
        self._calls = 0
        self._messages = 0

    def take(self, delta: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A piece of the answer. Raises ClientError where a provider goes on with a call that is over."""
        for part, said in self._parts.take(delta):
            yield from self._told(part, said)

    def end(self, finish: str | None = None) -> Iterator[dict[str, Any]]:
        """The end of the answer, and why it ends."""
        for part, said in self._parts.end():
            yield from self._told(part, said)
        yield from self._closed(finish)

    def _closed(self, finish: str | None = None) -> Iterator[dict[str, Any]]:
        """The end of the item that is open, if one is; `finish`: why the whole answer ends, where it does."""
        item = self._item
        if item is None:
            return
        self._item = None
        at = {"item_id": item["id"], "output_index": len(self.done)}
        if item["type"] == "function_call":
            if not item["arguments"].strip():
                yield self._written(item, NO_ARGUMENTS)
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield {"type": "response.function_call_arguments.done", **at, **done}
        else:
            (part,) = item["content"]
            told = {"text": part["text"], "logprobs": []} if "text" in part else {"refusal": part["refusal"]}
            yield {"type": f"response.{part['type']}.done", **at, "content_index": 0, **told}
            yield {"type": "response.content_part.done", **at, "content_index": 0, "part": dict(part)}
        item["status"] = "incomplete" if finish in _INCOMPLETE else "completed"
        self.done.append(item)
        yield {"type": "response.output_item.done", "output_index": len(self.done) - 1, "item": item}

    def _told(self, part: Part, said: str) -> Iterator[dict[str, Any]]:
        if part is not self._open:
            yield from self._closed()
            self._open = part
            yield from self._call(part) if part.call is not None else self._message(part)
        item = self._item
        if item is None or not said:
            return
        if item["type"] == "function_call":
            yield self._written(item, said)
            return
        (shown,) = item["content"]
        field = "text" if part.kind == "content" else "refusal"
        shown[field] += said
        at = {"item_id": item["id"], "output_index": len(self.done), "content_index": 0}
        more: dict[str, Any] = {"logprobs": []} if field == "text" else {}
        yield {"type": f"response.{shown['type']}.delta", **at, "delta": said, **more}

    def _message(self, part: Part) -> Iterator[dict[str, Any]]:
        item_id = f"msg_{self._decision_id}_{self._messages}"
        self._messages += 1
        item = {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        yield {"type": "response.output_item.added", "output_index": len(self.done), "item": item}
        shown: dict[str, Any] = (
            {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            if part.kind == "content"
            else {"type": "refusal", "refusal": ""}
        )
        self._item = {**item, "content": [shown]}
        at = {"item_id": item_id, "output_index": len(self.done), "content_index": 0}
        yield {"type": "response.content_part.added", **at, "part": dict(shown)}

    def _call(self, part: Part) -> Iterator[dict[str, Any]]:
        number, call = self._calls, part.call
        self._calls += 1
        item = {
            "id": f"fc_{self._decision_id}_{number}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": (call and call.call_id) or f"call_{self._decision_id}_{number}",
            "name": call.name if call else "",
            "arguments": "",
        }
        yield {"type": "response.output_item.added", "output_index": len(self.done), "item": dict(item)}
        self._item = item

    def _written(self, item: dict[str, Any], arguments: str) -> dict[str, Any]:
        item["arguments"] += arguments
        at = {"item_id": item["id"], "output_index": len(self.done)}
        return {"type": "response.function_call_arguments.delta", **at, "delta": arguments}


class ResponseWriter:
    """A stream of one response. See `Writer`."""

    def __init__(self, chat: ChatRequest, decision_id: str) -> None:
        self._chat, self._decision_id = chat, decision_id
        self._items = _Items(decision_id)
        self._frame: dict[str, Any] | None = None
        self._number = 0
        self._finish: str | None = None
        self._usage: Any = None

    def events(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """See `Writer.events`. Raises ClientError where a provider goes on with a call that is over."""
        if self._frame is None:
            self._frame = _frame(self._chat, self._decision_id, chunk.get("created"))
            for kind in ("response.created", "response.in_progress"):
                yield self._event({"type": kind, "response": self._frame})
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices") or ():
            for event in self._items.take(choice.get("delta") or {}):
                yield self._event(event)
            self._finish = choice.get("finish_reason") or self._finish

    def ending(self, chunks: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None) -> Iterator[bytes]:
        """See `Writer.ending`. The `smallcall` object stands beside the whole response, in the last event."""
        for chunk in chunks:
            yield from self.events(chunk)
        for event in self._items.end(self._finish):
            yield self._event(event)
        told = _finished(self._frame or {}, self._items.done, self._finish, self._usage)
        ended = {"type": f"response.{told['status']}", "response": told}
        yield self._event(ended if extras is None else {**ended, "smallcall": extras})

    def forwarded(self, event: Mapping[str, Any]) -> bytes:
        """See `Writer.forwarded`."""
        event = _amend_event(event)
        if self._frame is None:
            self._frame = event.get("response")
        number = event.get("sequence_number")
        self._number = number + 1 if isinstance(number, int) else self._number + 1
        return b"event: " + str(event.get("type")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"

    def forwarded_ending(
        self, events: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """See `Writer.forwarded_ending`."""
        for index, event in enumerate(events):
            last = extras is not None and index == len(events) - 1
            yield self.forwarded({**event, "smallcall": extras} if last else event)

    def failed(self, error: ClientError) -> bytes:
        """See `Writer.failed`. `response.failed` once the response was created, else `error`."""
        told = error_body(error)["error"]
        if not isinstance(self._frame, dict):
            fields = {"code": told["code"], "message": told["message"], "param": told["param"]}
            return self._event({"type": "error", **fields})
        failure = {"code": told["code"], "message": told["message"]}
        ended = {**self._frame, "status": "failed", "error": failure}
        if self._items.done:
            ended["output"] = self._items.done
        return self._event({"type": "response.failed", "response": ended})

    def keep_alive(self) -> bytes:
        """See `Writer.keep_alive`."""
        return COMMENT

    def _event(self, event: Mapping[str, Any]) -> bytes:
        numbered = {**event, "sequence_number": self._number}
        self._number += 1
        return b"event: " + str(event["type"]).encode() + b"\ndata: " + orjson.dumps(numbered) + b"\n\n"
