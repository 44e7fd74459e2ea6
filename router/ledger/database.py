"""A database at a SQLAlchemy URL: how it is opened, made durable, and migrated. SQLite and PostgreSQL.

SQLite runs in WAL mode with synchronous=FULL; PostgreSQL as its server is set: `synchronous_commit` is on by default.
Sessions are in UTC on both. Not guaranteed: other databases, though SQLAlchemy may know them.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from router.ledger.tables import REVISION

DRIVERS = {"sqlite": "aiosqlite", "postgresql": "asyncpg"}
"""Kinds of databases that are known, and the one driver of each."""
_BUSY_PAUSE_S = 0.05
_MIGRATION_LOCK = 0x736D616C6C63  # "smallc": an advisory lock of PostgreSQL's needs a number


def check_url(url: str) -> None:
    """Raises ValueError, which does not quote the URL (it may hold a password), where it cannot be used."""
    try:
        parsed = make_url(url)
        backend, driver = parsed.get_backend_name(), parsed.get_driver_name()
    except (ArgumentError, ValueError):
        raise ValueError("not a SQLAlchemy URL") from None
    if DRIVERS.get(backend) != driver:
        known = " or ".join(f"{name}+{one}://" for name, one in DRIVERS.items())
        raise ValueError(f"must begin with {known}")


def unreachable(url: str, error: Exception) -> str:
    """One line that says what cannot be opened and what to look at; of a URL only host, port, name or file."""
    parsed = make_url(url)
    why = (getattr(error, "strerror", None) or type(error).__name__).removesuffix(".")
    if parsed.get_backend_name() == "postgresql":
        where = f"{parsed.host or 'the local socket'}:{parsed.port or 5432}/{parsed.database or ''}"
        remedy = "does the server run there, may this machine reach it, and are user, password and database right?"
        return f"ledger.url: PostgreSQL at {where} cannot be opened ({why}): {remedy}"
    remedy = "can the folder be made and written, is the disk full, and is the file a database?"
    return f"ledger.url: the SQLite file {parsed.database} cannot be opened ({why}): {remedy}"


def database_engine(url: str, busy_s: float) -> AsyncEngine:
    """An engine, unconnected.

    Args:
        busy_s: how long a lock, a statement or a new connection is waited for.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        settings = {"timezone": "UTC", "application_name": "smallcall"}
        options = {"timeout": busy_s, "command_timeout": busy_s, "server_settings": settings}
        return create_async_engine(url, pool_pre_ping=True, connect_args=options)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(url)

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


def concerns_database(error: Exception) -> bool:
    """Whether the database itself is at fault, so that the next row would wait as long and fail alike."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if type(error).__module__.startswith("asyncpg"):  # SQLAlchemy does not wrap what happens while connecting
        return True
    if isinstance(error, sqlite3.OperationalError | sqlite3.InterfaceError):
        return True
    return isinstance(error, OperationalError | InterfaceError | OSError)  # TimeoutError is one


async def migrate(engine: AsyncEngine, busy_s: float) -> None:
    """Bring the tables to the newest revision. While another process turns a new file to WAL, SQLite says "busy" at
    once and not after its time-out, so the waiting is done here.

    Raises:
        SQLAlchemyError, OSError: it cannot be opened or migrated.
    """
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
    if _current(connection):
        return
    # Two gateways that start at once: the second waits here for the first one's migration.
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS ledger_lock (held INTEGER)")
        connection.exec_driver_sql("INSERT INTO ledger_lock VALUES (1)")
        connection.exec_driver_sql("DELETE FROM ledger_lock")
    else:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        if _current(connection):
            return
    # Alembic takes longer to import than most of what a start needs.
    import alembic.command
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def _current(connection: Connection) -> bool:
    if not inspect(connection).has_table("alembic_version"):
        return False
    return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all() == [REVISION]
