"""The large model: what the gateway asks of it, what it reports, and the errors it may answer with.

UpstreamError
├── UpstreamRejected      the request itself was refused: passed on, never retried
├── UpstreamRateLimited   429 after all retries, or a quota that is used up, which is never retried
├── UpstreamTimeout       no answer in time, after all retries
└── UpstreamUnavailable   5xx, no connection, our credentials refused, a broken stream, the circuit open
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class ErrorKind(StrEnum):
    """What a provider's error means. Only a rate, an overload and a server's fault pass by themselves."""

    CONTEXT_LENGTH = "context_length"
    RATE = "rate"
    QUOTA = "quota"
    OVERLOAD = "overload"
    AUTH = "auth"
    INVALID_REQUEST = "invalid_request"
    POLICY = "policy"
    SERVER = "server"


class UpstreamError(Exception):
    """The large model did not answer. `status`, `code`, `message` and `param` are what our client gets to see."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        retryable: bool = False,
        kind: ErrorKind | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s, self.retryable = retry_after_s, retryable
        self.kind = kind
        """What the provider's error means; None where it answered with none."""
        self.usage: Usage | None = None
        """What was used all the same, where the provider reported it."""


class UpstreamRejected(UpstreamError):
    """The request was refused for what it is."""


class UpstreamRateLimited(UpstreamError):
    """Too many requests for the provider."""


class UpstreamTimeout(UpstreamError):
    """No answer in time."""


class UpstreamUnavailable(UpstreamError):
    """The large model cannot be had now."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider reports them. Never estimated: what was not reported is not known."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Among the prompt's."""
    reported: Mapping[str, Any]
    """The provider's whole usage object, which prices may need."""
    service_tier: str | None = None


@dataclass(slots=True)
class Tries:
    """How often the large model was asked for one request."""

    made: int = 0


class LargeStream(Protocol):
    """Chunks of a chat completion in OpenAI's shape. Usage, where the provider reports it, comes last, in a chunk
    without choices. Iterating raises UpstreamError where the stream breaks off."""

    def __aiter__(self) -> AsyncIterator[dict[str, Any]]: ...

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice, and before the first chunk."""


class LargeModel(Protocol):
    """Whatever can be escalated to. Bodies are the client's chat completions; the implementation sets the model."""

    @property
    def model(self) -> str:
        """Its name in litellm's terms."""

    @property
    def ready(self) -> bool:
        """Whether it can be asked without waiting for something to load."""

    async def complete(self, body: Mapping[str, Any], tries: Tries | None = None) -> dict[str, Any]:
        """A whole chat completion in OpenAI's shape; `tries` counts each time it is asked. Raises UpstreamError."""

    async def stream(self, body: Mapping[str, Any], tries: Tries | None = None) -> LargeStream:
        """A stream whose first chunk is at hand; `tries` as for `complete`. Raises UpstreamError."""

    def cost_usd(self, usage: Usage) -> float | None:
        """What that usage costs; None where the price is not known."""


def usage_of(answer: Mapping[str, Any]) -> Usage | None:
    """The usage of a completion or chunk, or None where none was reported."""
    usage = answer.get("usage")
    if not isinstance(usage, dict) or not isinstance(usage.get("prompt_tokens"), int) or not usage["prompt_tokens"]:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage.get("completion_tokens") or 0,
        cached_tokens=details.get("cached_tokens") or 0,
        reported=usage,
        service_tier=answer.get("service_tier"),
    )
