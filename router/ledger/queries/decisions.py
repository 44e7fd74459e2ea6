"""Decisions as people look for them: the newest first, by what they filter on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from router.ledger.store import zoned
from router.ledger.tables import audits, decisions

_D = decisions.c
LISTED = (
    "decision_id", "created_at", "side", "reason", "tool", "score", "threshold", "outcome", "status", "error_code",
    "key_id", "tenant", "experiment", "arm", "large_model", "large_cost_nusd", "small_cost_nusd", "latency_s",
)  # fmt: skip
"""Columns of a list."""
MAX_LISTED = 1000
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_TIME_CHARACTERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which decisions; None: any."""

    side: str | None = None
    reason: str | None = None
    tool: str | None = None
    key_id: str | None = None
    experiment: str | None = None
    arm: str | None = None
    since: datetime | None = None
    error: str | None = None
    """Part of the error's code, or of a finding, in any case of letters."""
    before: str | None = None
    """Older than the decision of this id."""


async def listed(engine: AsyncEngine, wanted: Wanted, limit: int) -> list[dict[str, Any]]:
    """At most `limit` of them, by the columns of `LISTED`, the newest first."""
    async with engine.connect() as connection:
        found = (await connection.execute(query(wanted, limit))).mappings().all()
    return [{**row, "created_at": zoned(row["created_at"])} for row in map(_named, found)]


def query(wanted: Wanted, limit: int) -> Select[Any]:
    """Walks the index of ids, which sort by time, from its end: however many rows there are, the first page of them
    all, or of frequent ones, is read at once."""
    asked = select(*(_D[name] for name in LISTED)).where(*_conditions(wanted))
    return asked.order_by(_D.decision_id.desc()).limit(min(limit, MAX_LISTED))


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    equal = {name: getattr(wanted, name) for name in ("side", "reason", "tool", "key_id", "experiment", "arm")}
    found: list[ColumnElement[bool]] = [_D[name] == value for name, value in equal.items() if value is not None]
    if wanted.since is not None:
        found.append(_D.decision_id >= first_id(wanted.since))
    if wanted.before is not None:
        found.append(_D.decision_id < wanted.before)
    if wanted.error is not None:
        finding = _D.findings.cast(Text)
        found.append(or_(*(column.icontains(wanted.error, autoescape=True) for column in (_D.error_code, finding))))
    return found


def first_id(at: datetime) -> str:
    """What no decision of that time or later has an id below."""
    milliseconds, characters = int(at.timestamp() * 1000), []
    for _ in range(_TIME_CHARACTERS):
        milliseconds, last = divmod(milliseconds, len(_ALPHABET))
        characters.append(_ALPHABET[last])
    return "".join(reversed(characters))


async def audit_of(engine: AsyncEngine, decision_id: str) -> Mapping[str, Any] | None:
    """The shadow audit of a decision, if there was one."""
    async with engine.connect() as connection:
        found = await connection.execute(select(audits).where(audits.c.decision_id == decision_id))
        row = found.mappings().first()
    return None if row is None else _named(row)


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}
