"""Chat completions as they are answered: the small model's calls whole and in chunks, and streams of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from policies.types import DraftCall
from router.dialects.errors import ClientError
from router.dialects.provider.call_deltas import NO_ARGUMENTS, StreamedCalls, is_empty, objects
from router.dialects.provider.finish_reasons import finish_reason
from router.dialects.request import ChatRequest

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
"""A server-sent comment: clients read over it."""


def sse(event: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


class ChunkWriter:
    """Chunks as they are, under the client's own model name, but for what they say wrongly of their calls: clients tell
    calls apart by index only, and read arguments as JSON. See `Writer`."""

    def __init__(self, chat: ChatRequest) -> None:
        self._chat = chat
        self._choices: dict[int, _Choice] = {}

    def events(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """See `Writer.events`."""
        yield self.forwarded({**chunk, "model": self._chat.client_model})

    def ending(self, chunks: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None) -> Iterator[bytes]:
        """See `Writer.ending`. The usage chunk is left out where it was not asked for."""
        told = [chunk for chunk in chunks if self._chat.include_usage or chunk.get("choices")]
        for index, chunk in enumerate(told):
            last = extras is not None and index == len(told) - 1
            yield from self.events({**chunk, "smallcall": extras} if last else chunk)
        yield DONE

    def forwarded(self, event: Mapping[str, Any]) -> bytes:
        """See `Writer.forwarded`."""
        before = b""
        for choice in event.get("choices") or ():
            delta, finish = choice.get("delta"), choice.get("finish_reason")
            if not finish and not (delta and delta.get("tool_calls")):
                continue  # once for every few characters of a stream
            index = choice.get("index")
            seen = self._choices.setdefault(index if isinstance(index, int) else 0, _Choice())
            if isinstance(delta, dict):
                seen.take(delta)
            if isinstance(finish, str):
                choice["finish_reason"] = seen.finish(finish)
                added = seen.arguments()
                if added:
                    filled = {**choice, "delta": {"tool_calls": added}, "finish_reason": None}
                    shown = {key: value for key, value in event.items() if key not in ("usage", "smallcall")}
                    before += sse({**shown, "choices": [filled]})
        return before + sse(event)

    def forwarded_ending(
        self, events: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None
    ) -> Iterator[bytes]:
        """See `Writer.forwarded_ending`."""
        return self.ending(events, extras)

    def failed(self, error: ClientError) -> bytes:
        """See `Writer.failed`."""
        return sse(error.body())

    def keep_alive(self) -> bytes:
        """See `Writer.keep_alive`."""
        return COMMENT


class _Choice:
    """One of the answers that a stream tells."""

    def __init__(self) -> None:
        self._calls = StreamedCalls()

    def take(self, delta: Mapping[str, Any]) -> None:
        """A piece; where the index of a call was another's, it gets one of its own."""
        for piece in objects(delta.get("tool_calls")):
            call, _ = self._calls.take(piece)
            piece["index"] = call.index

    def finish(self, told: str) -> str:
        """Why it ended. `function_call` is a word from before tools, whose calls are not seen here."""
        return told if told == "function_call" else finish_reason(told, called=bool(self._calls.calls))

    def arguments(self) -> list[dict[str, Any]]:
        """Pieces that give arguments to the calls that have none."""
        missing = [call for call in self._calls.calls if call.empty]
        return [{"index": call.index, "function": {"arguments": NO_ARGUMENTS}} for call in missing]


def amend_completion(answer: Mapping[str, Any]) -> None:
    """Put right in place what a provider says wrongly of the calls of a whole answer."""
    for choice in objects(answer.get("choices")):
        message = choice.get("message")
        if not isinstance(message, dict):
            continue
        calls = objects(message.get("tool_calls"))
        for call in calls:
            function = call.get("function")
            if isinstance(function, dict) and is_empty(function.get("arguments", "")):
                function["arguments"] = NO_ARGUMENTS
        told = choice.get("finish_reason")
        if isinstance(told, str) and told != "function_call":
            choice["finish_reason"] = finish_reason(told, called=bool(calls))


def small_completion(
    decision_id: str, created: int, model: str, calls: Sequence[DraftCall], usage: Mapping[str, int]
) -> dict[str, Any]:
    """A whole answer of the small side; without calls its content is empty.

    Args:
        decision_id: at most 32 characters, so that ids of calls keep to the 40 that OpenAI takes back.
        created: Unix seconds.
    """
    message: dict[str, Any] = {"role": "assistant", "content": None if calls else ""}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"call_{decision_id}_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(calls)
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "tool_calls" if calls else "stop",
    }
    return {
        "id": f"chatcmpl-{decision_id}",
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage,
    }


def chunks_of(completion: Mapping[str, Any], *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """A whole small answer as the chunks of a stream: role, each call, the end, and usage where asked for."""
    head = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    unfilled = {"usage": None} if include_usage else {}
    choice = completion["choices"][0]
    message = choice["message"]

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        part = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [part], **unfilled}

    yield chunk({"role": "assistant", "content": message["content"]})
    for index, call in enumerate(message.get("tool_calls", ())):
        yield chunk({"tool_calls": [{"index": index, **call}]})
    last = chunk({}, choice["finish_reason"])
    if include_usage:
        yield last
        last = {**head, "choices": [], "usage": completion["usage"]}
    yield last
