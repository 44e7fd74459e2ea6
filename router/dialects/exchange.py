"""One request, the dialect that it came in, and what its answer is written with."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from router.dialects.request import ChatRequest, Dialect, Writer

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [high + low for high in _CROCKFORD for low in _CROCKFORD]


def new_decision_id(unix_ms: int | None = None) -> str:
    """26 characters in the layout of a ULID: 48 bits of Unix milliseconds, 80 random bits, in Crockford's base 32,
    lower case. Sorts by time; cannot be guessed."""
    value = (unix_ms if unix_ms is not None else time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return "".join([_PAIRS[value >> shift & 1023] for shift in range(120, -1, -10)])


@dataclass(slots=True)
class Exchange:
    """One request and its answer to be; everything that answers it is handed this one value."""

    chat: ChatRequest
    dialect: Dialect
    decision_id: str = field(default_factory=new_decision_id)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    writer: Writer = field(init=False)
    """Writes the answer's events, where the client asked for a stream."""

    def __post_init__(self) -> None:
        self.writer = self.dialect.writer(self.chat, self.decision_id)
