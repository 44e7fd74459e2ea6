"""How rows get into the database: through SQLAlchemy, or into a SQLite file by Python's own driver.

The second way is for speed alone: a batch through SQLAlchemy and aiosqlite takes several hundred microseconds of CPU
and four changes of thread, this one some microseconds a row and one change. SQLAlchemy still says what is written:
statement and conversions of values are compiled from its tables.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from sqlalchemy import Insert
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.ext.asyncio import AsyncEngine

Synchronous = Literal["full", "normal"]
"""SQLite's: `normal` does not wait for the disk; what was committed outlives the process, not surely a power cut."""
Values = Mapping[str, Any]
"""A row: values by the names of columns; all rows of one list have the same."""


class Inserts(Protocol):
    """Writes rows of several tables in one transaction. Statements are few, and the same objects each time."""

    async def commit(self, rows: Sequence[tuple[Insert, Sequence[Values]]]) -> None:
        """Return when all rows are committed; where it raises, none is."""

    async def close(self) -> None:
        """Nothing is committed after it."""


def inserts(engine: AsyncEngine, busy_s: float, synchronous: Synchronous) -> Inserts:
    """For the database of `engine`, whose tables exist."""
    database = engine.url.database
    if engine.url.get_backend_name() == "sqlite" and database and database != ":memory:" and "file:" not in database:
        return SqliteInserts(database, busy_s, synchronous)
    return EngineInserts(engine)


class EngineInserts:
    """Through SQLAlchemy."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def commit(self, rows: Sequence[tuple[Insert, Sequence[Values]]]) -> None:
        """See `Inserts.commit`."""
        async with self._engine.begin() as connection:
            for statement, values in rows:
                if values:
                    await connection.execute(statement, values)

    async def close(self) -> None:
        """See `Inserts.close`. The engine is its owner's."""


class SqliteInserts:
    """Into a SQLite file, by one connection in a thread of its own, which SQLite and its waiting for disk and locks do
    not leave. An error closes the connection; the next rows open another."""

    def __init__(self, database: str, busy_s: float, synchronous: Synchronous) -> None:
        self._database, self._busy_s, self._synchronous = database, busy_s, synchronous
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._connection: sqlite3.Connection | None = None
        self._statements: dict[Insert, _Statement] = {}

    async def commit(self, rows: Sequence[tuple[Insert, Sequence[Values]]]) -> None:
        """See `Inserts.commit`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, rows)

    async def close(self) -> None:
        """See `Inserts.close`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _commit(self, rows: Sequence[tuple[Insert, Sequence[Values]]]) -> None:
        try:
            connection = self._connection or self._opened()
            connection.execute("BEGIN IMMEDIATE")
            for insert, values in rows:
                if values:
                    statement = self._statement(insert, tuple(values[0]))
                    connection.executemany(statement.text, map(statement.bound, values))
            connection.execute("COMMIT")
        except BaseException:
            self._close()
            raise

    def _opened(self) -> sqlite3.Connection:
        # Statements of its own end transactions, not the driver's.
        connection = self._connection = sqlite3.connect(self._database, timeout=self._busy_s, isolation_level=None)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        return connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()  # what was not committed is rolled back

    def _statement(self, insert: Insert, columns: tuple[str, ...]) -> _Statement:
        found = self._statements.get(insert)
        if found is None or found.columns != columns:
            found = self._statements[insert] = _Statement(insert, columns)
        return found


class _Statement:
    """A statement for rows of some columns, as SQLAlchemy would send it."""

    def __init__(self, insert: Insert, columns: tuple[str, ...]) -> None:
        known = sqlite_dialect(paramstyle="qmark")
        compiled = insert.compile(dialect=known, column_keys=list(columns))
        self.text, self.columns = str(compiled), columns
        types = {column.name: column.type for column in insert.table.columns}
        self._bound: list[tuple[str, Callable[[Any], Any] | None]] = [
            (name, types[name].dialect_impl(known).bind_processor(known)) for name in compiled.positiontup or ()
        ]

    def bound(self, values: Values) -> list[Any]:
        """The values in the statement's order, converted."""
        return [values[name] if convert is None else convert(values[name]) for name, convert in self._bound]
