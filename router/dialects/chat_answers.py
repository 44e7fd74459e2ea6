"""Chat completions as they are answered: the small model's calls whole and in chunks, and server-sent events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from policies.policy import DraftCall

DONE = b"data: [DONE]\n\n"


def sse(event: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


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
    """A whole small answer as the chunks of a stream: role, each call, the end, and usage where asked for.

    The `smallcall` object, if there is one, stands in the last chunk.
    """
    head = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    unfilled = {"usage": None} if include_usage else {}
    extras = {"smallcall": completion["smallcall"]} if "smallcall" in completion else {}
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
    yield last | extras
