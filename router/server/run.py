"""Runs the gateway as a server: settings and weights in, requests answered until a signal."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import uvicorn

from router.access.gate import PublicWithoutKeysError
from router.access.store import KeyStore
from router.ledger.store import Ledger
from router.server.app import create_app
from router.settings import Settings
from router.telemetry import configure_logging

GC_THRESHOLD = 10_000
"""Objects made beyond those freed before the youngest are looked through. Python's 700 are reached by one request or
two, and what a request makes is freed without the collector."""


def check_host(settings: Settings) -> None:
    """Refuse what would serve whoever comes, before anything is loaded.

    Raises:
        PublicWithoutKeysError: others can reach the host, and there is neither a key nor an admin key.
        LedgerUnavailableError, KeysUnavailableError: the database does not answer.
    """

    async def any_key() -> bool:
        async with Ledger.open(settings.ledger.url) as ledger:
            return bool(await KeyStore(ledger.engine).ring())

    if settings.server.loopback or settings.server.allow_public or settings.access.admin_key is not None:
        return
    if not asyncio.run(any_key()):
        raise PublicWithoutKeysError


def serve(settings: Settings, model_folder: Path | None) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished first."""
    configure_logging(settings.log_level)
    app = create_app(settings, model_folder=model_folder)
    gc.set_threshold(GC_THRESHOLD)
    uvicorn.run(
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
