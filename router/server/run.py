"""Runs the gateway as a server: settings and weights in, requests answered until a signal."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from router.access.gate import PublicWithoutKeysError
from router.access.store import KeyStore
from router.ledger.store import Ledger
from router.server.app import create_app
from router.settings import Settings
from router.telemetry import configure_logging
from slm.weights.folders import WeightsError, read_adapter

GC_THRESHOLD = 10_000
"""Objects made beyond those freed before the youngest are looked through. Python's 700 are reached by one request or
two, and what a request makes is freed without the collector."""


class StartError(RuntimeError):
    """The gateway cannot serve; the message names the setting and the remedy."""


def check(settings: Settings) -> None:
    """Refuse what cannot be served, or would serve whoever comes, before anything is loaded.

    Raises:
        PublicWithoutKeysError: others can reach the host, and there is neither a key nor an admin key.
        LedgerUnavailableError, KeysUnavailableError: the database does not answer.
        StartError: the port cannot be had, or the adapter is none.
    """

    async def any_key() -> bool:
        async with Ledger.open(settings.ledger.url) as ledger:
            return bool(await KeyStore(ledger.engine).ring())

    has_key = asyncio.run(any_key())
    server = settings.server
    if not (server.loopback or server.allow_public or settings.access.admin_key is not None or has_key):
        raise PublicWithoutKeysError
    check_port(server.host, server.port)
    if settings.small.local and settings.small.adapter_folder is not None:
        check_adapter(settings.small.adapter_folder)


def check_adapter(folder: Path) -> None:
    """Raises StartError where there is no adapter. Whether it fits the model is seen when the worker loads it."""
    try:
        read_adapter(folder)
    except WeightsError as error:
        raise StartError(f"small.adapter: {error}; give a folder that `smallcall train` wrote, or none") from None


def check_port(host: str, port: int, of_host: str = "server.host", of_port: str = "server.port") -> None:
    """Raises StartError, which names the setting, where nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        field, remedy = (of_port, "choose another port") if taken else (of_host, "is it an address of this machine?")
        why = "is taken" if taken else f"cannot be listened at ({error.strerror})"
        raise StartError(f"{field}: {host}:{port} {why}: {remedy}") from None


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[str], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for one in self.servers[0].sockets:
                host, port = one.getsockname()[:2]
                self._listening(f"http://{f'[{host}]' if ':' in host else host}:{port}")


def serve(settings: Settings, model_folder: Path | None, listening: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished first.

    Args:
        listening: is told each address once it is listened at.

    Raises:
        StartError: the worker refuses what it is to load.
        SystemExit: 3, the gateway could not start; the log says why.
    """
    configure_logging(settings.log_level)
    refused: list[str] = []

    def stop(why: str) -> None:
        refused.append(why)
        server.should_exit = True

    app = create_app(settings, model_folder=model_folder, on_refused=stop)
    gc.set_threshold(GC_THRESHOLD)
    config = uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        log_config=None,
        access_log=False,
        loop="uvloop",
        http="httptools",
        ws="none",
        timeout_graceful_shutdown=10,
    )
    server = _Server(config, listening)
    server.run()
    if refused:
        raise StartError(f"small.model, small.adapter: the worker {refused[0]}")
    if not server.started:
        raise SystemExit(3)
