"""A request as the gateway handles it, whatever the client's dialect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from policies.policy import Request

Pin = Literal["small", "large"]


@dataclass(frozen=True, slots=True)
class LargeOnly:
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
    """The client's own JSON without our extensions: what goes upstream. Never changed after parsing."""
    size_bytes: int
    """Of the body as it came."""
    stream: bool = False
    include_usage: bool = False
    """Whether the client asked for a usage chunk."""
    include_decision: bool = False
    include_signals: bool = False
    pin: Pin | None = None
    large_only: LargeOnly | None = None

    @property
    def tools(self) -> list[dict[str, Any]]:
        """The tool definitions as sent."""
        tools: list[dict[str, Any]] = self.body.get("tools") or []
        return tools
