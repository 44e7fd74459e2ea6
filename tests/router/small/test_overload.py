"""The gateway before a small model that is overloaded: the scheduler, the engine and the socket are real."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from router.small.worker_client import WorkerClient
from slm.engine.engine import DraftEngine
from slm.worker.scheduler import Scheduler
from slm.worker.server import WorkerServer
from tests.router.cascade.test_gateway import Scripted, ask, post, rows_of
from tests.router.conftest import Make, served
from tests.router.fake_worker import INFO
from tests.slm.worker.test_scheduler import Tripping

MAX_WAIT_S = 0.2


class Small(WorkerClient):
    """A worker that lives in this process."""

    info = INFO


@contextlib.asynccontextmanager
async def worker(engine: Tripping, socket: Path) -> AsyncIterator[Scheduler]:
    """The worker's own server and scheduler around an engine, until the block ends."""
    crashes: list[str] = []
    scheduler = Scheduler(engine, max_queue=8, max_wait_s=MAX_WAIT_S, clock=time.monotonic, crashed=crashes.append)
    scheduler.start()
    server = await asyncio.start_unix_server(WorkerServer(engine._engine, scheduler).serve, path=socket)
    try:
        yield scheduler
    finally:
        engine.gate.set()
        server.close()
        assert await asyncio.to_thread(scheduler.stop, 10)
        assert crashes == []


async def test_an_overloaded_small_model_lets_requests_go_large(
    gateway: Make, llama_folder: Path, tmp_path: Path
) -> None:
    """While one draft holds the slot and another has waited for longer than the bound, a third request is
    answered large at once, for that reason in its row; the two are drafted."""
    engine = Tripping(DraftEngine.load(llama_folder))
    engine.gate.clear()
    async with worker(engine, tmp_path / "s") as scheduler:
        app = gateway(small=Small(tmp_path / "s"), upstream=Scripted())
        async with served(app) as url:
            asking = [asyncio.create_task(post(url, ask(tool_choice="required")))]
            assert await asyncio.to_thread(engine.stepped.wait, 10)
            asking.append(asyncio.create_task(post(url, ask(tool_choice="required"))))
            async with asyncio.timeout(10):
                while not scheduler._waiting:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(MAX_WAIT_S)
            status, headers, _ = await post(url, ask())
            assert (status, headers["x-smallcall-model"]) == (200, "large")
            assert headers["x-smallcall-reason"] == "wait_too_long"
            assert not any(task.done() for task in asking)
            engine.gate.set()
            assert [status for status, _, _ in await asyncio.gather(*asking)] == [200, 200]
            rows = await rows_of(app, 3)
    refused = [row for row in rows if row.reason == "wait_too_long"]
    assert [(row.side, row.small_completion_tokens) for row in refused] == [("large", 0)]
    assert sorted(bool(row.small_completion_tokens) for row in rows) == [False, True, True]
