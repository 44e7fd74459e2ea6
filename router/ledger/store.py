"""Writes and reads decisions. `write` returns when the row is committed; waiting writers share one commit.

Neither `kill -9` nor a power cut loses a row whose `write` returned (as far as the disk keeps its word; of SQLite see
`router.ledger.database`). The queue is bounded: a writer waits, nothing is dropped. Texts are cut to their columns, and
NUL, which PostgreSQL does not store, becomes U+FFFD.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

from sqlalchemy import String, func, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from router.ledger.database import check_url, concerns_database, database_engine, migrate, unreachable
from router.ledger.inserts import Inserts, Synchronous, inserts
from router.ledger.row import DecisionRow, LargeCall
from router.ledger.spending import spending
from router.ledger.tables import audits, calls, decisions

MAX_QUEUED = 4096
MAX_BATCH = 256
BUSY_S = 10.0
"""How long a lock, a statement or a connection is waited for."""
_DECISIONS, _CALLS = insert(decisions), insert(calls)
_COLUMNS = [field.name for field in fields(DecisionRow)]
_TEXTS = [(column.name, column.type.length or 0) for column in decisions.c if isinstance(column.type, String)]


class LedgerUnavailableError(RuntimeError):
    """A row could not be committed."""


class ExposedRequest(NamedTuple):
    """What an experiment needs of a row; see `DecisionRow`."""

    decision_id: str
    created_at: datetime
    unit_sha256: str
    arm: str
    side: str
    large_model: str | None
    large_attempts: int | None
    large_cost_nusd: int | None
    large_estimate_nusd: int | None
    small_cost_nusd: int | None
    audit_cost_nusd: int | None
    """Of the shadow audit behind it; None where none was made, or its cost is not known."""
    latency_s: float
    outcome: str | None
    findings: Sequence[str]
    n_messages: int
    n_tools: int


class _Waiting(NamedTuple):
    row: DecisionRow
    calls: Sequence[LargeCall]
    done: asyncio.Future[None]


class Ledger:
    """Made by `Ledger.open`; belongs to one event loop."""

    def __init__(self, engine: AsyncEngine, inserts: Inserts) -> None:
        self._engine, self._inserts = engine, inserts
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(MAX_QUEUED)
        self.commits = 0
        """Transactions that held rows, since opening."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, busy_s: float = BUSY_S, *, synchronous: Synchronous = "full") -> AsyncIterator[Self]:
        """Open the database at a SQLAlchemy URL (`sqlite+aiosqlite:///file`, `postgresql+asyncpg://host/name`), migrate
        it, write until the block ends.

        Args:
            busy_s: how long a lock, a statement or a connection is waited for.
            synchronous: how SQLite commits rows; other databases do as their server is set.

        Raises:
            LedgerUnavailableError: the database cannot be opened or migrated.
        """
        try:
            check_url(url)
        except ValueError as error:
            raise LedgerUnavailableError(f"the ledger cannot be opened: its URL (ledger.url) {error}") from None
        try:
            engine = database_engine(url, busy_s)
        except OSError as error:
            raise LedgerUnavailableError(unreachable(url, error)) from error
        try:
            await migrate(engine, busy_s)
        except Exception as error:  # drivers and Alembic raise of their own
            await engine.dispose()
            raise LedgerUnavailableError(unreachable(url, error)) from error
        ledger = cls(engine, inserts(engine, busy_s, synchronous))
        writer = asyncio.create_task(ledger._run(), name="ledger-writer")
        try:
            yield ledger
        finally:
            await ledger._queue.join()
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            await ledger._inserts.close()
            await engine.dispose()

    @property
    def engine(self) -> AsyncEngine:
        """For the ledger's other tables."""
        return self._engine

    async def write(self, row: DecisionRow, large_calls: Sequence[LargeCall] = ()) -> None:
        """Return when `row` is committed, and with it the calls that the large model made. A cancelled caller's row is
        committed all the same.

        Raises:
            LedgerUnavailableError: it could not be committed.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Waiting(row, large_calls, done))
        await asyncio.shield(done)

    async def get(self, decision_id: str) -> DecisionRow | None:
        """The row of one decision."""
        async with self._engine.connect() as connection:
            found = (await connection.execute(select(decisions).where(decisions.c.decision_id == decision_id))).first()
        return None if found is None else _row(found._asdict())

    async def count(self) -> int:
        """Number of rows."""
        async with self._engine.connect() as connection:
            return (await connection.execute(select(func.count()).select_from(decisions))).scalar_one()

    async def page(self, limit: int = 1000, after: str = "") -> list[DecisionRow]:
        """Rows in the order of their ids, which is the order of time, from behind the id `after`."""
        query = select(decisions).where(decisions.c.decision_id > after).order_by(decisions.c.decision_id).limit(limit)
        async with self._engine.connect() as connection:
            return [_row(found._asdict()) for found in (await connection.execute(query)).all()]

    async def exposures(self, experiment: str, limit: int = 10_000, after: str = "") -> list[ExposedRequest]:
        """Requests of an experiment, paged as by `page`."""
        columns = {**decisions.c, "audit_cost_nusd": audits.c.cost_nusd}
        query = (
            select(*(columns[name] for name in ExposedRequest._fields))
            .select_from(decisions.outerjoin(audits, audits.c.decision_id == decisions.c.decision_id))
            .where(decisions.c.experiment == experiment, decisions.c.decision_id > after)
        )
        async with self._engine.connect() as connection:
            found = await connection.execute(query.order_by(decisions.c.decision_id).limit(limit))
            return [ExposedRequest(*row)._replace(created_at=zoned(row.created_at)) for row in found.all()]

    async def ping(self) -> bool:
        """Whether the database answers, at once also where it is large."""
        try:
            async with self._engine.connect() as connection:
                await connection.execute(select(decisions.c.decision_id).limit(1))
        except (SQLAlchemyError, OSError):
            return False
        return True

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._commit(batch)
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        try:
            await self._insert(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the writer lives on and its callers are told
            if len(batch) == 1 or concerns_database(error):  # of the database: its next row would wait as long
                self._fail(batch, error)
                return
            for waiting in batch:  # one bad row must not take its neighbours with it
                await self._commit([waiting])
        else:
            for waiting in batch:
                _settle(waiting.done, None)

    def _fail(self, batch: Sequence[_Waiting], error: Exception) -> None:
        for waiting in batch:
            failure = LedgerUnavailableError(f"the row could not be committed: {type(error).__name__}")
            failure.__cause__ = error
            _settle(waiting.done, failure)

    async def _insert(self, batch: Sequence[_Waiting]) -> None:
        rows = [_values(waiting.row) for waiting in batch]
        made = [value for waiting in batch for value in _calls(waiting)]
        spent = spending([waiting.row for waiting in batch], self._engine.dialect.name)
        await self._inserts.commit([(_DECISIONS, rows), (_CALLS, made), spent])
        self.commits += 1


def _settle(done: asyncio.Future[None], failure: LedgerUnavailableError | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
        done.exception()  # a caller that was cancelled will not fetch it


def _values(row: DecisionRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _COLUMNS}
    values["findings"] = list(row.findings)
    for name, length in _TEXTS:
        if values[name] is not None:
            values[name] = storable(values[name], length)
    return values


def _calls(waiting: _Waiting) -> list[dict[str, Any]]:
    return [
        {
            "decision_id": waiting.row.decision_id,
            "call_index": index,
            "call_id": storable(call.call_id, 256),
            "tool": storable(call.tool, 256),
        }
        for index, call in enumerate(waiting.calls)
    ]


def storable(text: str, length: int) -> str:
    """`text` as a column of that length takes it."""
    return text[:length].replace("\0", "\ufffd")


def _row(values: dict[str, Any]) -> DecisionRow:
    values["findings"] = tuple(values["findings"])
    values["created_at"] = zoned(values["created_at"])
    return DecisionRow(**values)


def zoned(at: datetime) -> datetime:
    """SQLite forgets the zone; it is UTC."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
