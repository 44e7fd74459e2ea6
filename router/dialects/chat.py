"""A request as the gateway handles it, whatever the client's dialect; and what a client may be told is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from policies.policy import Request

Pin = Literal["small", "large"]


class ClientError(Exception):
    """An error that the client sees, in OpenAI's shape.

    Args:
        status: HTTP status.
        message: for a person; no secrets, no provider addresses.
        code: a stable word.
        param: the field of the request that is wrong.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        type_: str = "invalid_request_error",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.param, self.type, self.retry_after_s = param, type_, retry_after_s

    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request, checked as far as the gateway must understand it."""

    client_model: str
    view: Request
    """What the judge and the small model see; no tools where the request offers none."""
    body: dict[str, Any]
    """The client's own JSON without our extensions: what goes upstream."""
    stream: bool = False
    include_usage: bool = False
    """Whether the client asked for a usage chunk."""
    include_decision: bool = False
    include_signals: bool = False
    pin: Pin | None = None
    large_reason: str | None = None
    """Why only the large model can answer, where that is so."""

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tool definitions as sent."""
        tools: list[dict[str, Any]] = self.body.get("tools") or []
        return tools
