"""Faults that the recorded server shows on demand: what a real provider does on a bad day.

A schedule says which fault a request meets, by the request's ordinal (from 0, in order of arrival), so that it is the
same in every run and needs no state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Status:
    """An OpenAI-shaped error with this HTTP status; `retry_after_s` becomes the header of that name."""

    code: int
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Hang:
    """Nothing for this many seconds, then the answer as recorded. A client that leaves ends it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Garbage:
    """Status 200 and bytes that are neither JSON nor an event stream's frame."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The connection is closed before a byte of the response."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The answer breaks off: a stream after `chunks` events, a whole answer in the middle of its body."""

    chunks: int = 1


Fault = Status | Hang | Garbage | Disconnect | Cut
Schedule = Callable[[int], Fault | None]


def never(ordinal: int) -> Fault | None:
    """No fault, ever."""
    return None


def always(fault: Fault) -> Schedule:
    """The same fault for every request."""
    return lambda ordinal: fault


def in_turn(faults: Sequence[Fault | None]) -> Schedule:
    """The first request meets the first entry, and so on; requests beyond the sequence meet none."""
    return lambda ordinal: faults[ordinal] if ordinal < len(faults) else None


def every(count: int, fault: Fault) -> Schedule:
    """Each `count`-th request meets the fault: ordinals count − 1, 2·count − 1, … Raises ValueError for count < 1."""
    if count < 1:
        raise ValueError("count must be at least 1")
    return lambda ordinal: fault if ordinal % count == count - 1 else None
