"""A request as the gateway handles it, whatever the client's dialect, and what a dialect must be able to do.

Inside, everything is OpenAI's chat completions: a dialect turns its requests into them and their answers into its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from policies.types import Request
from router.dialects.errors import ClientError

Pin = Literal["small", "large"]
DialectName = Literal["chat_completions", "messages", "responses"]


@dataclass(frozen=True, slots=True)
class LargeOnlyRequest:
    """Why only the large model can answer: a stable reason, and the field of the request that makes it so."""

    reason: str
    param: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request, checked as far as the gateway must understand it."""

    client_model: str
    view: Request
    """What the judge and the small model see; no tools where the request offers none that they can read."""
    body: dict[str, Any]
    """The request as chat completions, without our extensions: what is translated for the provider. Never changed."""
    size_bytes: int
    """Of the body as it came."""
    stream: bool = False
    include_usage: bool = False
    """Whether the client is told the usage at a stream's end."""
    include_decision: bool = False
    include_signals: bool = False
    include_explain: bool = False
    pin: Pin | None = None
    large_only: LargeOnlyRequest | None = None
    native_only: LargeOnlyRequest | None = None
    """Why only a large model that speaks the client's own dialect can answer."""
    raw: bytes = b""
    """The body as it came."""
    native: Mapping[str, Any] = field(default_factory=dict)
    """The body as it came, decoded; of chat completions it is `body`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of the request that belong to its dialect and go with it to a provider that speaks it."""

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tool definitions as chat completions have them."""
        tools: list[dict[str, Any]] = self.body.get("tools") or []
        return tools


class Writer(Protocol):
    """One streamed answer, written event by event from the chunks of a chat completion. Belongs to one stream."""

    def events(self, chunk: Mapping[str, Any]) -> Iterable[bytes]:
        """The server-sent events that a chunk becomes."""

    def ending(self, chunks: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None) -> Iterable[bytes]:
        """The last chunks, and what ends the stream; `extras` is the `smallcall` object, where it was asked for."""

    def forwarded(self, event: Mapping[str, Any]) -> bytes:
        """An event of a provider that speaks this dialect itself, as it came."""

    def forwarded_ending(
        self, events: Sequence[Mapping[str, Any]], extras: Mapping[str, Any] | None
    ) -> Iterable[bytes]:
        """The last such events, and what ends the stream."""

    def failed(self, error: ClientError) -> bytes:
        """The event by which a stream ends that broke off, or never began."""

    def keep_alive(self) -> bytes:
        """What may be sent at any moment to say that the answer is still being made."""


class Dialect(Protocol):
    """A wire format between clients and the gateway. Stateless."""

    name: DialectName
    path: str
    """Where it is served, below `/v1`."""

    def read(self, raw: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """Parse and check a body. Header names are lower case. Raises ClientError: 400, naming the field."""

    def whole(
        self, chat: ChatRequest, decision_id: str, completion: Mapping[str, Any], extras: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """A whole answer. Raises ClientError where the completion cannot be told in this dialect."""

    def amend(self, answer: dict[str, Any]) -> None:
        """Put right, in place, what a provider's whole answer in this dialect says against what it holds."""

    def writer(self, chat: ChatRequest, decision_id: str) -> Writer:
        """For one streamed answer."""

    def error(self, error: ClientError) -> Mapping[str, Any]:
        """The body of an error."""
