"""What is known of decisions afterwards: one row for each source and call, replaced only by one that is as strong.

`source` is `feedback` (somebody said so) or `implicit` (`router.outcomes.labels`). `call_index` is -1 where the whole
answer is meant. Writing the same again changes nothing but the time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import case, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from router.ledger.store import storable, zoned
from router.ledger.tables import calls, decisions, outcomes

WHOLE_ANSWER = -1
MAX_COMMENT_CHARS = 2_000
_SMALL_CALL = re.compile(r"call_([0-9a-hjkmnp-tv-z]{26})_(\d{1,3})")
_RANKS = {"none": 0, "weak": 1, "medium": 2, "strong": 3}
_KEY = ("decision_id", "source", "call_index")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeLabel:
    """`label`: 1 right, 0 wrong, None: censored, nothing is known of it."""

    decision_id: str
    source: Literal["feedback", "implicit"]
    call_index: int
    at: datetime
    label: int | None
    strength: str
    reason: str
    fault: str
    score: float | None = None
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """A call of a decision."""

    decision_id: str
    call_index: int


def small_place(call_id: str) -> Place | None:
    """The decision that an id of ours names; None for any other id."""
    found = _SMALL_CALL.fullmatch(call_id)
    return Place(found[1], int(found[2])) if found else None


async def places(engine: AsyncEngine, call_ids: Iterable[str], owner: str | None) -> dict[str, Place]:
    """The decisions that made these calls; ids that nobody knows, or that another key's decision made, are left out.
    Providers may use an id twice: the newest decision counts.

    Args:
        owner: the id of the key that asks; None without keys.
    """
    wanted = list(call_ids)
    found = {call_id: place for call_id in wanted if (place := small_place(call_id))}
    async with engine.connect() as connection:
        rest = [call_id for call_id in wanted if call_id not in found]
        if rest:
            query = select(calls.c.call_id, calls.c.decision_id, calls.c.call_index).where(calls.c.call_id.in_(rest))
            mine = query.where(calls.c.decision_id.in_(_owned(owner))).order_by(calls.c.decision_id)
            for row in await connection.execute(mine):
                found[row.call_id] = Place(row.decision_id, row.call_index)
        known = await _known(connection, {place.decision_id for place in found.values()}, owner)
    return {call_id: place for call_id, place in found.items() if place.decision_id in known}


async def known_decision(engine: AsyncEngine, decision_id: str, owner: str | None) -> bool:
    """Whether there is such a decision, and the key's."""
    async with engine.connect() as connection:
        return bool(await _known(connection, {decision_id}, owner))


def _owned(owner: str | None) -> Any:
    query = select(decisions.c.decision_id)
    return query.where(decisions.c.key_id == owner) if owner is not None else query


async def _known(connection: AsyncConnection, ids: set[str], owner: str | None) -> set[str]:
    if not ids:
        return set()
    found = await connection.execute(_owned(owner).where(decisions.c.decision_id.in_(ids)))
    return set(found.scalars())


async def record(engine: AsyncEngine, found: Sequence[OutcomeLabel]) -> None:
    """Write them, each unless a stronger one of its source is there.

    Raises:
        SQLAlchemyError, OSError: the database cannot be written.
    """
    if not found:
        return
    insert = (postgresql if engine.dialect.name == "postgresql" else sqlite).insert(outcomes)
    new = insert.excluded
    rank = case(_RANKS, value=outcomes.c.strength, else_=0)
    statement = insert.on_conflict_do_update(
        index_elements=list(_KEY),
        set_={column.name: new[column.name] for column in outcomes.c if column.name not in _KEY},
        where=case(_RANKS, value=new.strength, else_=0) >= rank,
    )
    async with engine.begin() as connection:
        # In the order of the key: two gateways that write the same conversation must not wait for each other.
        for one in sorted(found, key=lambda one: (one.decision_id, one.source, one.call_index)):
            await connection.execute(statement, _values(one))


def _values(one: OutcomeLabel) -> dict[str, Any]:
    values = {column.name: getattr(one, column.name) for column in outcomes.c}
    if one.comment is not None:
        values["comment"] = storable(one.comment, MAX_COMMENT_CHARS)
    return values


async def of_decision(engine: AsyncEngine, decision_id: str) -> list[OutcomeLabel]:
    """All that is known of one decision."""
    query = select(outcomes).where(outcomes.c.decision_id == decision_id).order_by(*(outcomes.c[name] for name in _KEY))
    async with engine.connect() as connection:
        return [_outcome(row) for row in (await connection.execute(query)).mappings()]


async def of_decisions(engine: AsyncEngine, first: str, last: str) -> list[OutcomeLabel]:
    """Of decisions with ids from `first` to `last`, both included."""
    query = select(outcomes).where(outcomes.c.decision_id.between(first, last)).order_by(outcomes.c.decision_id)
    async with engine.connect() as connection:
        return [_outcome(row) for row in (await connection.execute(query)).mappings()]


def _outcome(row: Mapping[Any, Any]) -> OutcomeLabel:
    values = {str(name): value for name, value in row.items()}
    return OutcomeLabel(**{**values, "at": zoned(values["at"])})


@dataclass(frozen=True, slots=True)
class Known:
    """All that is known of one decision, in short. None: not known."""

    passed: bool | None
    """As somebody said; implicit labels decide nothing here, for they certify nothing."""
    tool_error: bool | None
    """Whether a tool refused a call for what it asked; False only where a result came that did not."""
    wrong: bool
    """Whether anything, however weak, speaks against it."""


def known(found: Sequence[OutcomeLabel]) -> Known:
    """Of the outcomes of one decision."""
    told = [one for one in found if one.source == "feedback" and one.label is not None]
    seen = [one for one in found if one.source == "implicit"]
    refused = any(one.label == 0 and one.strength == "strong" for one in seen)
    executed = any(one.fault in ("none", "call") for one in seen)
    return Known(
        passed=min(one.label or 0 for one in told) == 1 if told else None,
        tool_error=True if refused else False if executed else None,
        wrong=any(one.label == 0 for one in found),
    )


def now() -> datetime:
    """In UTC."""
    return datetime.now(UTC)
