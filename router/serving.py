"""Runs the gateway as a server: settings and weights in, requests answered until a signal."""

from __future__ import annotations

from pathlib import Path

import uvicorn

from router.app import create_app
from router.settings import Settings
from router.telemetry import configure_logging


def serve(settings: Settings, model_folder: Path | None) -> None:
    """Serve until SIGTERM or SIGINT; requests under way are finished first."""
    configure_logging(settings.log_level)
    app = create_app(settings, model_folder=model_folder)
    uvicorn.run(
        app,
        host=settings.server.host,
        port=settings.server.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
    )
