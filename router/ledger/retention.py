"""Rows that are old enough become sums by day, and are deleted a few at a time.

A whole day is rolled up at once: its sums and the mark that they stand for it are one short transaction, made of reads
that block nobody; from then on reports count the roll-up and not what is left of the rows. A day is rolled up once its
last moment is `keep_days` old, so no row of it is still to come. Two gateways that do the same day meet at the mark,
and the second lets it be. Deleting takes batches of `BATCH` rows, with rests of at least `REST` times what a batch
took, so that writers wait for one batch at most.

Of each key and day, a roll-up tells the `MAX_TOOLS` tools with the most requests; what is beyond them is one,
`(other)`: clients choose the names. What keys spent in days before `keep_days` is forgotten; months and their whole
lives stay.

Deleted with a decision is all that hangs on it: its calls, outcomes and audits. Experiments and off-policy estimates
are read off rows, so `keep_days` must be longer than an experiment.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from time import monotonic

import structlog
from sqlalchemy import delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from evaluation.live.costs import CostLine
from router.ledger.queries.costs import day_lines, start_of
from router.ledger.tables import (
    COUNTED,
    NANO_USD,
    access_spend,
    audits,
    calls,
    decisions,
    outcomes,
    rolled_days,
    rollups,
)
from router.telemetry import where

_log = structlog.get_logger("ledger")
BATCH = 500
REST = 4.0
EVERY_S = 3600.0
MAX_TOOLS = 100
OTHER_TOOLS = "(other)"
_PARTS = (calls, outcomes, audits)
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one round did."""

    days: int
    """Rolled up."""
    rows: int
    """Deleted."""


async def prune(engine: AsyncEngine, keep_days: int, now: datetime, sleep: Sleep = asyncio.sleep) -> Pruned:
    """Roll up and delete what is older than `keep_days` whole days.

    Raises:
        SQLAlchemyError, OSError: the database cannot be read or written.
    """
    end = now.astimezone(UTC).date() - timedelta(days=keep_days)
    """The first day that is kept."""
    days = rows = 0
    while (day := await _oldest(engine)) is not None and day < end:
        days += await _roll_up(engine, day)
        rows += await _delete(engine, day, sleep)
    async with engine.begin() as connection:
        of_a_day = func.length(access_spend.c.period) == len("2026-11-25")
        await connection.execute(delete(access_spend).where(of_a_day, access_spend.c.period < end.isoformat()))
    return Pruned(days, rows)


async def _oldest(engine: AsyncEngine) -> date | None:
    async with engine.connect() as connection:
        at: datetime | None = (await connection.execute(select(func.min(decisions.c.created_at)))).scalar()
    return None if at is None else at.date()


async def _roll_up(engine: AsyncEngine, day: date) -> bool:
    """Whether it was this call that rolled the day up."""
    async with engine.connect() as connection:
        marked = await connection.execute(select(rolled_days.c.day).where(rolled_days.c.day == day))
        if marked.first() is not None:
            return False
    names = [column.name for column in rollups.c]
    lines = [{name: getattr(line, name) for name in names} for line in _fewer_tools(await day_lines(engine, day, day))]
    try:
        async with engine.begin() as connection:
            await connection.execute(insert(rolled_days), [{"day": day}])
            if lines:
                await connection.execute(insert(rollups), lines)
    except IntegrityError:  # another gateway was first
        return False
    return True


def _fewer_tools(lines: Iterable[CostLine]) -> Iterable[CostLine]:
    """A day's lines, of each key those of its `MAX_TOOLS` tools with the most requests; the others' summed up."""
    lines, requests = list(lines), dict[str, Counter[str]]()
    for line in lines:
        if line.tool:
            requests.setdefault(line.key_id, Counter())[line.tool] += line.requests
    kept = {(key, tool) for key, counts in requests.items() for tool, _ in counts.most_common(MAX_TOOLS)}
    made: dict[tuple[str, ...], CostLine] = {}
    for line in lines:
        told = replace(line, tool=OTHER_TOOLS) if line.tool and (line.key_id, line.tool) not in kept else line
        place = told.key_id, told.tool, told.experiment, told.arm, told.side, told.reason
        made[place] = _sum(made[place], told) if place in made else told
    return made.values()


def _sum(one: CostLine, other: CostLine) -> CostLine:
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in (*COUNTED, *NANO_USD)})


async def _delete(engine: AsyncEngine, day: date, sleep: Sleep) -> int:
    """Delete the day's rows; how many there were."""
    old = select(decisions.c.decision_id).where(decisions.c.created_at < start_of(day + timedelta(days=1)))
    deleted = 0
    while True:
        began = monotonic()
        async with engine.begin() as connection:
            ids = list((await connection.execute(old.order_by(decisions.c.created_at).limit(BATCH))).scalars())
            for part in _PARTS:
                await connection.execute(delete(part).where(part.c.decision_id.in_(ids)))
            await connection.execute(delete(decisions).where(decisions.c.decision_id.in_(ids)))
        deleted += len(ids)
        if len(ids) < BATCH:
            return deleted
        await sleep(REST * (monotonic() - began))


class Retention:
    """Prunes now and then, for as long as the gateway runs."""

    def __init__(
        self,
        engine: AsyncEngine,
        keep_days: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._engine, self._keep_days, self._clock, self._sleep = engine, keep_days, clock, sleep

    async def run(self) -> None:
        """Until it is cancelled. A round that fails is told in the log, and the next one is made."""
        while True:
            try:
                done = await prune(self._engine, self._keep_days, self._clock(), self._sleep)
                if done.rows:
                    _log.info("ledger_pruned", days=done.days, rows=done.rows)
            except Exception as error:  # noqa: BLE001 - whatever it is, the next round is made
                _log.warning("ledger_not_pruned", where=where(error))
            await self._sleep(EVERY_S)
