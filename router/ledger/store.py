"""Writes and reads decisions. `write` returns when the row is committed; waiting writers share one commit.

SQLite runs in WAL mode with synchronous=FULL: neither `kill -9` nor a power cut loses a row whose `write` returned (as
far as the disk keeps its word). The queue is bounded: a writer waits, nothing is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from sqlalchemy import Connection, event, func, insert, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from router.ledger.row import DecisionRow
from router.ledger.spending import insertion, spending
from router.ledger.tables import REVISION, access_spend, decisions

MAX_QUEUED = 4096
MAX_BATCH = 256
BUSY_S = 10.0
"""How long a lock of SQLite's is waited for."""
_BUSY_PAUSE_S = 0.05
_COLUMNS = [field.name for field in fields(DecisionRow)]


class LedgerUnavailableError(RuntimeError):
    """A row could not be committed."""


class ExposedRequest(NamedTuple):
    """What an experiment needs of a row; see `DecisionRow`."""

    decision_id: str
    created_at: datetime
    unit_sha256: str
    arm: str
    large_model: str | None
    large_cost_nusd: int | None
    latency_s: float
    outcome: str | None
    findings: Sequence[str]
    n_messages: int
    n_tools: int


class Ledger:
    """Made by `Ledger.open`; belongs to one event loop."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._queue: asyncio.Queue[tuple[DecisionRow, asyncio.Future[None]]] = asyncio.Queue(MAX_QUEUED)
        self.commits = 0
        """Transactions that held rows, since opening."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, busy_s: float = BUSY_S) -> AsyncIterator[Self]:
        """Open the database at a SQLAlchemy URL (`sqlite+aiosqlite:///file`), migrate it, write until the block ends.

        Args:
            busy_s: how long another process's lock on an SQLite file is waited for.

        Raises:
            LedgerUnavailableError: the database cannot be opened or migrated.
        """
        engine = _engine(url, busy_s)
        try:
            await _migrated(engine, busy_s)
        except (SQLAlchemyError, OSError) as error:
            await engine.dispose()
            raise LedgerUnavailableError(f"the ledger cannot be opened: {type(error).__name__}") from error
        ledger = cls(engine)
        writer = asyncio.create_task(ledger._run(), name="ledger-writer")
        try:
            yield ledger
        finally:
            await ledger._queue.join()
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer
            await engine.dispose()

    @property
    def engine(self) -> AsyncEngine:
        """For the ledger's other tables."""
        return self._engine

    async def write(self, row: DecisionRow) -> None:
        """Return when `row` is committed. A cancelled caller's row is committed all the same.

        Raises:
            LedgerUnavailableError: it could not be committed.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._queue.put((row, done))
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
        wanted = [decisions.c[name] for name in ExposedRequest._fields]
        query = select(*wanted).where(decisions.c.experiment == experiment, decisions.c.decision_id > after)
        async with self._engine.connect() as connection:
            found = await connection.execute(query.order_by(decisions.c.decision_id).limit(limit))
            return [ExposedRequest(*row)._replace(created_at=_zoned(row.created_at)) for row in found.all()]

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

    async def _commit(self, batch: Sequence[tuple[DecisionRow, asyncio.Future[None]]]) -> None:
        try:
            await self._insert([row for row, _ in batch])
        except (OperationalError, InterfaceError, OSError) as error:  # the database: its next row would wait as long
            self._fail(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the writer lives on and its callers are told
            if len(batch) == 1:
                self._fail(batch, error)
                return
            for waiting in batch:  # one bad row must not take its neighbours with it
                await self._commit([waiting])
        else:
            for _, done in batch:
                _settle(done, None)

    def _fail(self, batch: Sequence[tuple[DecisionRow, asyncio.Future[None]]], error: Exception) -> None:
        for _, done in batch:
            failure = LedgerUnavailableError(f"the row could not be committed: {type(error).__name__}")
            failure.__cause__ = error
            _settle(done, failure)

    async def _insert(self, rows: Sequence[DecisionRow]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(insert(decisions), [_values(row) for row in rows])
            spent = spending(rows)
            if spent:
                await connection.execute(insertion(access_spend, connection.dialect.name), spent)
        self.commits += 1


def _settle(done: asyncio.Future[None], failure: LedgerUnavailableError | None) -> None:
    if done.done():
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)
        done.exception()  # a caller that was cancelled will not fetch it


def _engine(url: str, busy_s: float) -> AsyncEngine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    if parsed.get_backend_name() == "sqlite":

        @event.listens_for(engine.sync_engine, "connect")
        def _durable(connection: Any, _: Any) -> None:
            try:
                for pragma in (f"busy_timeout={busy_s * 1000:.0f}", "journal_mode=WAL", "synchronous=FULL"):
                    cursor = connection.cursor()
                    cursor.execute(f"PRAGMA {pragma}")
                    cursor.close()
            except BaseException:
                connection.close()  # SQLAlchemy forgets it, and its thread and its locks would stay
                raise

    return engine


async def _migrated(engine: AsyncEngine, busy_s: float) -> None:
    """Migrate. While another process turns a new file to WAL, SQLite says "busy" at once and not after its time-out,
    so the waiting is done here."""
    clock = asyncio.get_running_loop().time
    until = clock() + busy_s
    while True:
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_migrate)
        except OperationalError as error:
            code = getattr(error.orig, "sqlite_errorcode", None)
            if code is None or code & 0xFF != sqlite3.SQLITE_BUSY or clock() > until:
                raise
            await asyncio.sleep(_BUSY_PAUSE_S)
        else:
            return


def _migrate(connection: Connection) -> None:
    if inspect(connection).has_table("alembic_version"):
        stamped = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
        if stamped == [REVISION]:
            return
    # Alembic takes longer to import than most of what a start needs.
    import alembic.command
    import alembic.config

    if connection.dialect.name == "sqlite":
        # Two gateways that start at once: the second waits here for the first one's migration.
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS ledger_lock (held INTEGER)")
        connection.exec_driver_sql("INSERT INTO ledger_lock VALUES (1)")
        connection.exec_driver_sql("DELETE FROM ledger_lock")
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def _values(row: DecisionRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _COLUMNS}
    values["findings"] = list(row.findings)
    return values


def _row(values: dict[str, Any]) -> DecisionRow:
    values["findings"] = tuple(values["findings"])
    values["created_at"] = _zoned(values["created_at"])
    return DecisionRow(**values)


def _zoned(at: datetime) -> datetime:
    """SQLite forgets the zone; it is UTC."""
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
