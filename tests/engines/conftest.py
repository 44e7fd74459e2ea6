"""The tiny Llama's worker in a process of its own, and the same worker behind our endpoint."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from router.completions.app import Terms, create_engine_app
from router.small.remote import RemoteModel, RemoteServer
from router.small.worker_client import SmallModel, WorkerClient
from slm import protocol
from tests.engines.conformance import ENDPOINT, WORKER, Abilities
from tests.router.conftest import served

MODEL = "tiny"


class Direct:
    """A worker as the gateway sees it, whoever started it."""

    def __init__(self, client: WorkerClient, info: protocol.Info) -> None:
        self._client = client
        self.info = info

    def events(
        self, command: protocol.DraftCommand | protocol.CompleteCommand
    ) -> AbstractAsyncContextManager[AsyncIterator[protocol.Event]]:
        """See `SmallModel.events`."""
        return self._client.events(command)


@pytest.fixture(scope="session")
def worker_socket(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a running worker."""
    folder = tmp_path_factory.mktemp("worker")
    socket = folder / "w.sock"
    options = ["--socket", str(socket), "--model", str(llama_folder), "--threads", "1"]
    line = [sys.executable, "-m", "slm.worker.server", *options]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=log)
    try:
        until = time.monotonic() + 120
        while not socket.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until, "the worker did not start"
            time.sleep(0.05)
        yield socket
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
async def worker(worker_socket: Path) -> Direct:
    """The worker, asked directly."""
    client = WorkerClient(worker_socket)
    return Direct(client, await client.ask_info())


@contextlib.asynccontextmanager
async def behind_our_endpoint(worker: Direct) -> AsyncIterator[RemoteModel]:
    """The same worker, asked as a remote server by way of our own endpoint."""
    app = create_engine_app(worker, Terms(model=MODEL, api_key="k"))
    async with served(app) as base:
        remote = RemoteServer(base, MODEL, api_key="k", guided="vllm", check_every_s=0.05)
        async with RemoteModel(remote).running() as model:
            async with asyncio.timeout(20):
                while model.info is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            yield model


@pytest.fixture
async def endpoint(worker: Direct) -> AsyncIterator[RemoteModel]:
    """See `behind_our_endpoint`."""
    async with behind_our_endpoint(worker) as model:
        yield model


@pytest.fixture(params=["worker", "endpoint"])
async def engine(request: pytest.FixtureRequest, worker: Direct) -> AsyncIterator[tuple[SmallModel, Abilities]]:
    """Each engine that needs no download, with what is stated of it."""
    if request.param == "worker":
        yield worker, WORKER
        return
    async with behind_our_endpoint(worker) as model:
        yield model, ENDPOINT
