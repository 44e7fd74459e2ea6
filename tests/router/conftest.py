"""A gateway on a real port, with a scripted small model and a recorded large one."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from router.constants import Constants
from router.http.services import GatewayApp
from router.server.app import create_app
from router.settings import Settings
from router.small.worker_client import SmallModelError
from slm import protocol
from tests.router.fake_worker import INFO, draft_events


class ScriptedSmall:
    """A small model at the seam: writes the text it is given, one token a character, each as sure as it is told."""

    info = INFO

    def __init__(
        self, text: str, logprob: float = -0.01, pause_s: float = 0.0, error: BaseException | None = None
    ) -> None:
        self.text, self.logprob, self.pause_s, self.error = text, logprob, pause_s, error
        self.commands: list[protocol.DraftCommand] = []
        self.cancelled = 0
        self.written = 0

    @contextlib.asynccontextmanager
    async def events(self, command: protocol.DraftCommand) -> AsyncIterator[AsyncIterator[protocol.Event]]:
        self.commands.append(command)
        if self.error:
            raise self.error
        finished: list[bool] = []
        try:
            yield self._events(finished)
        finally:
            self.cancelled += not finished

    async def _events(self, finished: list[bool]) -> AsyncIterator[protocol.Event]:
        for event in draft_events(self.text, self.logprob):
            if isinstance(event, protocol.Token):
                await asyncio.sleep(self.pause_s)
                self.written += 1
            elif isinstance(event, protocol.Done):
                finished.append(True)
            yield event


def away() -> ScriptedSmall:
    """A small model whose worker is away."""
    return ScriptedSmall("", error=SmallModelError("worker_unavailable", "away"))


@contextlib.asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The base URL of `app` on a free port, until the block ends."""
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done(), task.exception()
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await task


Make = Callable[..., GatewayApp]
CONSTANTS = Constants(refresh_s=0.2, redis_timeout_s=60.0)


@pytest.fixture
def gateway(tmp_path: Path) -> Make:
    """Make a gateway's app: `gateway(small=…, upstream=…, large_base=…, constants=…, **settings)`.

    It looks often at what others changed, and gives a Redis on a busy machine its time.
    """

    def make(
        *,
        small: Any = None,
        upstream: Any = None,
        large_base: str | None = None,
        constants: Constants = CONSTANTS,
        **values: Any,
    ) -> GatewayApp:
        values.setdefault("policy", {"kind": "threshold", "threshold": 0.5})
        values["ledger"] = {"url": f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}", **values.get("ledger", {})}
        if large_base:
            values["large"] = {
                "model": "openai/gpt-4o-2024-08-06",
                "api_base": large_base,
                "api_key": "sk-secret-of-the-gateway",
                "retries": 2,
                **values.get("large", {}),
            }
        return create_app(Settings.model_validate(values), small=small, large=upstream, constants=constants)

    return make
