"""The ledger loses no row that was acknowledged."""

import asyncio
import contextlib
import re
import resource
import sqlite3
import subprocess
import sys
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine

from router.ledger.row import DecisionRow, LargeCall, nano_usd
from router.ledger.store import MAX_QUEUED, Ledger, LedgerUnavailableError
from router.ledger.tables import REVISION, decisions
from tests.databases import fresh_database


def row(decision_id: str, **changes: object) -> DecisionRow:
    made = DecisionRow(
        decision_id=decision_id,
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        dialect="chat_completions",
        client_model="gpt-4o",
        side="large",
        reason="no_tools",
        stage="before",
        policy="p",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def sqlite(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'deep' / 'ledger.db'}"


async def test_a_row_is_read_back_as_written(ledger_url: str) -> None:
    """Every field survives, also across a reopening."""
    written = row(
        "a",
        findings=("schema at /x: breaks enum",),
        content={"é": [1, None]},
        large_cost_nusd=nano_usd(0.00125),
        score=0.5,
    )
    async with Ledger.open(ledger_url) as ledger:
        await ledger.write(written)
    async with Ledger.open(ledger_url) as ledger:
        assert await ledger.get("a") == written
        assert await ledger.get("b") is None
        assert await ledger.page() == [written]
        assert await ledger.ping()


async def test_concurrent_writers_share_commits(ledger_url: str) -> None:
    """A thousand writers are all committed, in far fewer transactions."""
    async with Ledger.open(ledger_url) as ledger:
        await asyncio.gather(*(ledger.write(row(f"{i:04}")) for i in range(1000)))
        assert await ledger.count() == 1000
        assert ledger.commits < 100


async def test_a_bad_row_fails_alone(ledger_url: str) -> None:
    """Rows that share a batch with a duplicate are committed; only its own writer sees the error."""
    async with Ledger.open(ledger_url) as ledger:
        await ledger.write(row("a"))
        results = await asyncio.gather(*(ledger.write(row(i)) for i in "abc"), return_exceptions=True)
        assert [type(result) for result in results] == [LedgerUnavailableError, type(None), type(None)]
        assert await ledger.count() == 3


async def test_a_cancelled_writers_row_is_committed(ledger_url: str) -> None:
    """A client that goes away does not take its row along."""
    async with Ledger.open(ledger_url) as ledger:
        task = asyncio.create_task(ledger.write(row("a")))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    async with Ledger.open(ledger_url) as ledger:
        assert await ledger.count() == 1


async def test_two_gateways_may_open_a_new_ledger_at_once(ledger_url: str) -> None:
    """Migrations do not collide, and both write."""

    async def use(name: str) -> None:
        async with Ledger.open(ledger_url) as ledger:
            await ledger.write(row(name))

    await asyncio.gather(*(use(f"g{i}") for i in range(4)))
    async with Ledger.open(ledger_url) as ledger:
        assert await ledger.count() == 4


async def test_a_lock_on_a_new_file_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses at once to turn a file to WAL that another process is writing, whatever its busy time-out."""
    file = tmp_path / "deep" / "ledger.db"
    file.parent.mkdir()
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("CREATE TABLE other (x)")
    other.execute("BEGIN IMMEDIATE")
    asyncio.get_running_loop().call_later(0.2, other.close)
    async with Ledger.open(sqlite(tmp_path)) as ledger:
        await ledger.write(row("a"))
        assert await ledger.count() == 1


async def test_a_locked_database_fails_all_who_wait_at_once(tmp_path: Path) -> None:
    """Forty writers do not wait forty times for a lock; when it is gone, rows are committed again."""
    async with Ledger.open(sqlite(tmp_path), busy_s=0.4) as ledger:
        other = sqlite3.connect(tmp_path / "deep" / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with asyncio.timeout(8):
            results = await asyncio.gather(*(ledger.write(row(f"a{i}")) for i in range(40)), return_exceptions=True)
        assert {type(result) for result in results} == {LedgerUnavailableError}
        other.close()
        await ledger.write(row("b"))
        assert [found.decision_id for found in await ledger.page()] == ["b"]


async def test_a_full_disk_fails_rows_until_there_is_room(tmp_path: Path) -> None:
    """Under load: no writer hangs, none is told of a row that is not there, and the ledger comes back by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes: dict[str, BaseException | None] = {}
    async with Ledger.open(sqlite(tmp_path)) as ledger:

        async def work(name: str) -> None:
            for i in range(60):
                try:
                    await ledger.write(row(f"{name}{i}"))
                except LedgerUnavailableError as error:
                    outcomes[f"{name}{i}"] = error
                else:
                    outcomes[f"{name}{i}"] = None

        resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))  # of any file; the kernel says EFBIG
        try:
            async with asyncio.timeout(30):
                await asyncio.gather(*map(work, "abcdefgh"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert len(outcomes) == 480
        committed = {name for name, error in outcomes.items() if error is None}
        assert 0 < len(committed) < 480
        await ledger.write(row("z"))
        assert {found.decision_id for found in await ledger.page()} == committed | {"z"}


async def test_a_server_that_goes_away_fails_rows_until_it_is_back(postgres: str) -> None:
    """Connections that the server cuts cost at most the rows under way; the next ones find a new connection."""
    with fresh_database(postgres) as url:
        async with Ledger.open(url, busy_s=3) as ledger:
            await ledger.write(row("a"))
            other = await asyncpg.connect(postgres.replace("+asyncpg", ""))
            name = url.rpartition("/")[2]
            await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
            await ledger.write(row("b"))
            await other.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
            await other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
            results = await asyncio.gather(*(ledger.write(row(f"c{i}")) for i in range(40)), return_exceptions=True)
            assert {type(result) for result in results} == {LedgerUnavailableError}
            assert not await ledger.ping()
            await other.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
            await other.close()
            await ledger.write(row("d"))
            assert [found.decision_id for found in await ledger.page()] == ["a", "b", "d"]


async def test_a_table_that_is_locked_is_not_waited_for_for_ever(postgres: str) -> None:
    """Of PostgreSQL: all who wait fail together when the time is over."""
    with fresh_database(postgres) as url:
        async with Ledger.open(url, busy_s=0.5) as ledger:
            other = await asyncpg.connect(url.replace("+asyncpg", ""))
            held = other.transaction()
            await held.start()
            await other.execute("LOCK TABLE decisions")
            async with asyncio.timeout(8):
                results = await asyncio.gather(*(ledger.write(row(f"a{i}")) for i in range(40)), return_exceptions=True)
            assert {type(result) for result in results} == {LedgerUnavailableError}
            await held.rollback()
            await other.close()
            await ledger.write(row("b"))
            assert [found.decision_id for found in await ledger.page()] == ["b"]


async def test_hostile_text_is_stored(ledger_url: str) -> None:
    """NUL and texts that are longer than their column come from clients and providers, and must not cost the row."""
    written = row("a", client_model="m\0" + "x" * 300, findings=("x\0y",), content={"a": "\0"}, tool="t" * 999)
    async with Ledger.open(ledger_url) as ledger:
        await ledger.write(written, [LargeCall("call_\0" + "x" * 300, "f\0")])
        kept = await ledger.get("a")
    assert kept is not None
    assert (kept.client_model, len(kept.tool or "")) == ("m\ufffd" + "x" * 254, 256)


@pytest.mark.parametrize("url", ["mysql+aiomysql://me:secret@x/y", "postgresql://me:secret@x/y", "nonsense"])
async def test_an_unknown_kind_of_database_is_refused_without_its_password(url: str) -> None:
    """At opening, and the error does not quote the URL."""
    with pytest.raises(LedgerUnavailableError) as raised:
        async with Ledger.open(url):
            pass
    assert "secret" not in str(raised.value)
    assert "URL" in str(raised.value)


async def test_a_server_that_is_not_there_is_a_clear_error() -> None:
    """Nobody listens at that port."""
    with pytest.raises(LedgerUnavailableError, match="cannot be opened"):
        async with Ledger.open("postgresql+asyncpg://nobody@127.0.0.1:1/none"):
            pass


async def test_the_queue_is_bounded_and_a_writer_waits(ledger_url: str) -> None:
    """More writers than the queue holds: all wait, and every row is committed."""
    async with Ledger.open(ledger_url) as ledger:
        number = MAX_QUEUED + 500
        await asyncio.gather(*(ledger.write(row(f"{i:05}")) for i in range(number)))
        assert await ledger.count() == number


async def test_an_unusable_database_is_a_clear_error(tmp_path: Path) -> None:
    """A file that is no database is refused at opening."""
    (tmp_path / "x.db").write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerUnavailableError, match="cannot be opened"):
        async with Ledger.open(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"):
            pass


def test_killing_the_writer_loses_no_acknowledged_row(ledger_url: str) -> None:
    """Every id that was printed after `write` returned is there after `kill -9`."""
    script = f"""
import asyncio, itertools
from tests.router.ledger.test_store import row
from router.ledger.store import Ledger
async def main():
    async with Ledger.open({ledger_url!r}) as ledger:
        async def work(name):
            for i in itertools.count():
                await ledger.write(row(f"{{name}}-{{i}}"))
                print(f"{{name}}-{{i}}", flush=True)
        await asyncio.gather(*(work(n) for n in "abcdefgh"))
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [process.stdout.readline().strip() for _ in range(300)]
    process.kill()
    seen += process.stdout.read().split("\n")[:-1]
    process.stdout.close()
    process.wait()

    async def stored() -> set[str]:
        async with Ledger.open(ledger_url) as ledger:
            return {found.decision_id for found in await ledger.page(limit=100_000)}

    assert set(filter(None, map(str.strip, seen))) <= asyncio.run(stored())


async def test_migrations_make_the_table_that_the_code_uses(ledger_url: str) -> None:
    """Alembic sees no difference between the migrated database and the metadata; the row has the same columns."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    async with Ledger.open(ledger_url):
        pass
    engine = create_async_engine(ledger_url)

    def compare(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == REVISION
        return list(compare_metadata(context, decisions.metadata))

    async with engine.connect() as connection:
        differences = await connection.run_sync(compare)
    await engine.dispose()
    assert [d for d in differences if "ledger_lock" not in str(d) and "alembic" not in str(d)] == []
    assert [field.name for field in fields(DecisionRow)] == list(decisions.columns.keys())


def test_the_documentation_tells_of_every_column() -> None:
    """In the table's order, each with whether it may be null."""
    text = (Path(__file__).parents[3] / "docs" / "ledger.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (yes|no) \|", text, re.MULTILINE)
    told = [(name, null == "yes") for names, null in lines for name in re.findall(r"\w+", names)]
    assert told == [(column.name, column.nullable) for column in decisions.columns]


def test_a_time_without_zone_is_refused() -> None:
    """Nobody guesses time zones."""
    with pytest.raises(ValueError, match="time zone"):
        row("a", created_at=datetime(2026, 1, 1))  # noqa: DTZ001
