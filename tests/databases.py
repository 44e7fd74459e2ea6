"""Databases for tests: SQLite files, and databases of a real PostgreSQL server.

The server is the one at SMALLCALL_TEST_POSTGRES_URL (`postgresql+asyncpg://user@host/name`, whose user may make
databases), else one that answers at 127.0.0.1:5432 without a password, else one of our own, if `initdb` is there. In CI
a missing server is a failure; elsewhere such tests are skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from router.lab.gateway_process import free_port

USUAL = "postgresql+asyncpg://postgres@127.0.0.1:5432/postgres"
_FOLDERS = [*Path("/usr/lib/postgresql").glob("*/bin"), Path("/usr/local/bin"), Path("/opt/homebrew/bin")]


def _plain(url: str) -> str:
    return url.replace("+asyncpg", "")


def _answers(url: str) -> bool:
    async def ask() -> None:
        connection = await asyncpg.connect(_plain(url), timeout=3)
        await connection.close()

    try:
        asyncio.run(ask())
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
        return False
    return True


def _execute(url: str, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(_plain(url), timeout=10)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a database from which others may be made."""
    told = os.environ.get("SMALLCALL_TEST_POSTGRES_URL")
    if told:
        yield told
    elif _answers(USUAL):
        yield USUAL
    else:
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(_own_server())
            if url is None:
                if os.environ.get("CI"):
                    pytest.fail("no PostgreSQL: set SMALLCALL_TEST_POSTGRES_URL, or install its server")
                pytest.skip("no PostgreSQL server, and no initdb to start one")
            yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'deep' / 'ledger.db'}"
        return
    server: str = request.getfixturevalue("postgres")
    with fresh_database(server) as url:
        yield url


@contextlib.contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """An empty database of that server, dropped at the end."""
    name = f"smallcall_test_{secrets.token_hex(6)}"
    _in_thread(server, f"CREATE DATABASE {name}")
    try:
        yield server.rpartition("/")[0] + "/" + name
    finally:
        _in_thread(server, f"DROP DATABASE {name} WITH (FORCE)")


def _in_thread(server: str, statement: str) -> None:
    """Fixtures of asynchronous tests stand beside a running loop."""
    import threading

    failed: list[BaseException] = []

    def run() -> None:
        try:
            _execute(server, statement)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def _own_server() -> Iterator[str | None]:
    initdb = shutil.which("initdb", path=os.pathsep.join(map(str, [os.environ.get("PATH", ""), *_FOLDERS])))
    if initdb is None:
        yield None
        return
    programs = Path(initdb).resolve().parent
    root = os.geteuid() == 0  # PostgreSQL refuses to run as root
    user = "postgres" if root else getpass.getuser()
    with tempfile.TemporaryDirectory(prefix="smallcall-pg-") as folder:
        if root:
            shutil.chown(folder, user)
        data, port = Path(folder) / "data", free_port()
        options = {"user": user} if root else {}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            **options,
        )
        command = [programs / "postgres", "-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        process = subprocess.Popen(
            [*command, "-k", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **options
        )
        try:
            url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"
            until = time.monotonic() + 30
            while not _answers(url):
                assert process.poll() is None, "PostgreSQL ended at once"
                assert time.monotonic() < until, "PostgreSQL did not start"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(30)
