"""What a pass-through must know of each dialect: where it is asked, how usage is reported, and where a stream ends.

Everything else passes as it came. Of a request only the model's name is replaced (and, in a stream of chat
completions, usage is asked for); every other value keeps its bytes, so the provider's prompt cache sees what the
client wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec
import orjson

from router.dialects.request import DialectName
from router.upstream.large_model import Usage, usage_of

_RAW = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANTHROPIC_VERSION = "2023-06-01"


def request_body(raw: bytes, model: str, *, ask_usage: bool) -> bytes:
    """A client's body under the provider's model name, without our extension.

    A key that stands twice at the top takes its last value, as it did when the request was judged.
    """
    fields = _RAW.decode(raw)
    fields.pop("smallcall", None)
    fields["model"] = msgspec.Raw(orjson.dumps(model))
    if ask_usage:
        given = fields.get("stream_options")
        options = orjson.loads(bytes(given)) if given is not None else None
        fields["stream_options"] = msgspec.Raw(orjson.dumps({**(options or {}), "include_usage": True}))
    return msgspec.json.encode(fields)


class StreamState(Protocol):
    """What is seen of one stream as it goes by. Belongs to one stream."""

    complete: bool
    """Whether the stream came to its own end."""

    def see(self, event: Mapping[str, Any]) -> Usage | None:
        """Take one event; the usage known so far, where this event reports it."""

    def is_final(self, event: Mapping[str, Any]) -> bool:
        """Whether the end begins with this event, which is the one that was seen last."""

    def rename(self, event: dict[str, Any], model: str) -> None:
        """Put the client's name for the model where the provider's stands."""


class Wire(Protocol):
    """One dialect as a provider speaks it. Stateless."""

    base: str
    """Where its own provider is asked."""
    path: str
    key_variable: str
    """The provider's own environment variable for a key."""
    answer_field: str
    """What every whole answer has."""

    def headers(self, key: str | None) -> dict[str, str]:
        """By which a request is authorised."""

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """Of a whole answer."""

    def state(self) -> StreamState:
        """For one stream."""


class ChatWire:
    """OpenAI's chat completions."""

    base, path, key_variable = "https://api.openai.com/v1", "/chat/completions", "OPENAI_API_KEY"
    answer_field = "choices"

    def headers(self, key: str | None) -> dict[str, str]:
        """See `Wire.headers`."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """See `Wire.usage`."""
        return usage_of(answer)

    def state(self) -> StreamState:
        """See `Wire.state`."""
        return _Chunks()


class _Chunks:
    complete = False
    _ends = False

    def see(self, event: Mapping[str, Any]) -> Usage | None:
        choices, spent = event.get("choices"), event.get("usage")
        if not choices:
            self._ends = bool(spent)  # without choices and usage it is no end: some providers begin with such a chunk
        elif _finished(choices):
            self._ends = self.complete = True
        else:
            self._ends = False  # whatever usage it reports: some providers report it in every chunk
        return usage_of(event) if spent else None

    def is_final(self, event: Mapping[str, Any]) -> bool:
        return self._ends

    def rename(self, event: dict[str, Any], model: str) -> None:
        event["model"] = model


def _finished(choices: Iterable[Mapping[str, Any]]) -> bool:
    for choice in choices:  # noqa: SIM110 - a generator takes twice as long, for every chunk
        if choice.get("finish_reason"):
            return True
    return False


class MessagesWire:
    """Anthropic's Messages."""

    base, path, key_variable = "https://api.anthropic.com/v1", "/messages", "ANTHROPIC_API_KEY"
    answer_field = "content"

    def headers(self, key: str | None) -> dict[str, str]:
        """See `Wire.headers`."""
        return {"anthropic-version": _ANTHROPIC_VERSION} | ({"x-api-key": key} if key else {})

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """See `Wire.usage`."""
        return _messages_usage(answer.get("usage"))

    def state(self) -> StreamState:
        """See `Wire.state`."""
        return _MessageEvents()


class _MessageEvents:
    complete = False

    def __init__(self) -> None:
        self._usage: dict[str, Any] = {}

    def see(self, event: Mapping[str, Any]) -> Usage | None:
        kind = event.get("type")
        spent = event.get("message", {}).get("usage") if kind == "message_start" else event.get("usage")
        self.complete = self.complete or kind == "message_stop"
        if not isinstance(spent, dict):
            return None
        # Counts are cumulative: those of `message_delta` take the place of those of `message_start`.
        self._usage |= {key: value for key, value in spent.items() if value is not None}
        return _messages_usage(self._usage)

    def is_final(self, event: Mapping[str, Any]) -> bool:
        return event.get("type") == "message_delta"

    def rename(self, event: dict[str, Any], model: str) -> None:
        if isinstance(event.get("message"), dict):
            event["message"]["model"] = model


def _messages_usage(spent: Any) -> Usage | None:
    """Anthropic spent tokens read from and written to the cache apart; here they are among the prompt's, as prices
    expect them."""
    if not isinstance(spent, dict) or not isinstance(spent.get("input_tokens"), int):
        return None
    read, written = (spent.get(f"cache_{kind}_input_tokens") or 0 for kind in ("read", "creation"))
    reported = {
        "prompt_tokens": spent["input_tokens"] + read + written,
        "completion_tokens": spent.get("output_tokens") or 0,
        "prompt_tokens_details": {"cached_tokens": read},
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
    }
    if written and isinstance(spent.get("cache_creation"), dict):  # how long what was written is kept
        reported["prompt_tokens_details"]["cache_creation_token_details"] = spent["cache_creation"]
    if isinstance(spent.get("server_tool_use"), dict):
        reported["server_tool_use"] = spent["server_tool_use"]
    return _usage(reported, spent.get("service_tier"))


class ResponsesWire:
    """OpenAI's Responses."""

    base, path, key_variable = "https://api.openai.com/v1", "/responses", "OPENAI_API_KEY"
    answer_field = "output"

    def headers(self, key: str | None) -> dict[str, str]:
        """See `Wire.headers`."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def usage(self, answer: Mapping[str, Any]) -> Usage | None:
        """See `Wire.usage`."""
        return _responses_usage(answer)

    def state(self) -> StreamState:
        """See `Wire.state`."""
        return _ResponseEvents()


class _ResponseEvents:
    complete = False

    def see(self, event: Mapping[str, Any]) -> Usage | None:
        self.complete = self.complete or self.is_final(event)
        return _responses_usage(event.get("response"))

    def is_final(self, event: Mapping[str, Any]) -> bool:
        return event.get("type") in ("response.completed", "response.incomplete")

    def rename(self, event: dict[str, Any], model: str) -> None:
        if isinstance(event.get("response"), dict):
            event["response"]["model"] = model


def _responses_usage(answer: Any) -> Usage | None:
    spent = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(spent, dict) or not isinstance(spent.get("input_tokens"), int):
        return None
    reported = {
        "prompt_tokens": spent["input_tokens"],
        "completion_tokens": spent.get("output_tokens") or 0,
        "prompt_tokens_details": {"cached_tokens": (spent.get("input_tokens_details") or {}).get("cached_tokens") or 0},
        "completion_tokens_details": spent.get("output_tokens_details") or {},
    }
    return _usage(reported, answer.get("service_tier"))


def _usage(reported: dict[str, Any], tier: Any) -> Usage | None:
    reported["total_tokens"] = reported["prompt_tokens"] + reported["completion_tokens"]
    return usage_of({"usage": reported, "service_tier": tier if isinstance(tier, str) else None})


WIRES: Mapping[DialectName, Wire] = {
    "chat_completions": ChatWire(),
    "messages": MessagesWire(),
    "responses": ResponsesWire(),
}
