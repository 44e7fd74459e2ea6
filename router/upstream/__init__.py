"""The large model: what the gateway asks of it, and the errors it may answer with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol


class UpstreamError(Exception):
    """The large model did not answer. `status` and `code` are what our client is told.

    UpstreamError
    ├── UpstreamRejectedError   the request itself was refused (4xx): passed on, never retried
    └── UpstreamDownError       time-out, rate limit, 5xx, no connection: was retried
    """

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s


class UpstreamRejectedError(UpstreamError):
    """The request was refused for what it is."""


class UpstreamDownError(UpstreamError):
    """The large model cannot be had now."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider reports them; `cached` are among the prompt's."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class LargeModel(Protocol):
    """Whatever can be escalated to."""

    @property
    def model(self) -> str:
        """Its name in litellm's terms."""

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole chat completion. Raises UpstreamError."""

    async def stream(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a chat completion, usage last. Raises UpstreamError, also in mid-stream."""

    def cost_usd(self, usage: Usage) -> float | None:
        """What that usage costs; None where the price is not known."""


def usage_of(answer: dict[str, Any]) -> Usage | None:
    """The usage object of a completion or chunk."""
    usage = answer.get("usage")
    if not isinstance(usage, dict) or not usage.get("prompt_tokens"):
        return None
    details = usage.get("prompt_tokens_details") or {}
    return Usage(usage["prompt_tokens"], usage.get("completion_tokens") or 0, details.get("cached_tokens") or 0)
