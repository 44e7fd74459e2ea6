"""Polling: something is read anew from the database for as long as the gateway serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from router.telemetry import Metrics, where

_log = structlog.get_logger("refresh")


async def poll(
    what: str,
    refresh: Callable[[], Awaitable[None]],
    every_s: float,
    metrics: Metrics,
    foreseen: tuple[type[Exception], ...],
) -> None:
    """Runs until it is cancelled: a refresh that fails, in whatever way, is logged and counted, and the next one comes.

    Args:
        what: is refreshed, for the log and the metric.
        foreseen: errors whose text may be logged.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            await refresh()
        except Exception as error:  # noqa: BLE001 - what is in force must not stay so for good because of one row
            metrics.refresh_failures.labels(what).inc()
            message = str(error) if isinstance(error, foreseen) else where(error)
            _log.warning("not_refreshed", what=what, error=message)
