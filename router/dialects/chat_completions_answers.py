"""Chat completions as they are answered: the small model's calls whole and in chunks, and streams of chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from policies.types import DraftCall
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
"""A server-sent comment: clients read over it."""


def sse(event: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


class ChunkWriter:
    """Chunks as they are, under the client's own model name. See `Writer`."""

    def __init__(self, chat: ChatRequest) -> None:
        self._chat = chat

    def events(self, chunk: Mapping[str, Any]) -> Iterator[bytes]:
        """See `Writer.events`."""
        yield sse({**chunk, "model": self._chat.client_model})

    def ending(self, chunks: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None) -> Iterator[bytes]:
        """See `Writer.ending`. The usage chunk is left out where it was not asked for."""
        told = [chunk for chunk in chunks if self._chat.include_usage or chunk.get("choices")]
        for index, chunk in enumerate(told):
            last = extras is not None and index == len(told) - 1
            yield from self.events({**chunk, "smallcall": extras} if last else chunk)
        yield DONE

    def forwarded(self, event: Mapping[str, Any]) -> bytes:
        """See `Writer.forwarded`."""
        return sse(event)

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
