"""Observes requests behind the path that answers them: labels of earlier calls, written in the background.

What is observed waits in a queue that is bounded in requests and in bytes; beyond that it is dropped and counted. A
ledger that cannot be written loses labels, never an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import NamedTuple

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from router.dialects.request import ChatRequest
from router.ledger.outcomes import OutcomeLabel, now, places, record
from router.outcomes.labels import Observation, brings_results, error_flags, observations
from router.settings import OFFLOAD_BYTES
from router.telemetry import Metrics, where

_log = structlog.get_logger("outcomes")
MAX_WAITING = 256
MAX_BYTES = 32 * 1024 * 1024


class _Waiting(NamedTuple):
    chat: ChatRequest
    owner: str | None


class OutcomeWatch:
    """Belongs to one event loop; made by `running`."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics, clock: Callable[[], datetime] = now) -> None:
        self._engine, self._metrics, self._clock = engine, metrics, clock
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(MAX_WAITING)
        self._bytes = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[OutcomeWatch]:
        """Observe until the block ends; what waits then is still written."""
        working = asyncio.create_task(self._run(), name="outcome-watch")
        try:
            yield self
        finally:
            await self._queue.join()
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working

    def see(self, chat: ChatRequest, owner: str | None) -> None:
        """Take a request, if it brings results. Returns at once.

        Args:
            owner: the id of the key that asks; labels reach decisions of the same key only.
        """
        if not brings_results(chat.view.messages):
            return
        if self._queue.full() or self._bytes + chat.size_bytes > MAX_BYTES:
            self._metrics.outcomes.labels("dropped").inc()
            return
        self._bytes += chat.size_bytes
        self._queue.put_nowait(_Waiting(chat, owner))

    async def _run(self) -> None:
        while True:
            waiting = await self._queue.get()
            try:
                await self._observe(waiting)
            except Exception as error:  # noqa: BLE001 - the next request is observed all the same
                self._metrics.outcomes.labels("failed").inc()
                _log.warning("outcomes_not_recorded", where=where(error))
            finally:
                self._bytes -= waiting.chat.size_bytes
                self._queue.task_done()

    async def _observe(self, waiting: _Waiting) -> None:
        chat = waiting.chat

        def read() -> tuple[Observation, ...]:
            return observations(chat.view.messages, error_flags(chat.native))

        found = await asyncio.to_thread(read) if chat.size_bytes > OFFLOAD_BYTES else read()
        if not found:
            return
        at = await places(self._engine, {one.call_id for one in found}, waiting.owner)
        made = {
            at[one.call_id]: OutcomeLabel(
                decision_id=at[one.call_id].decision_id,
                source="implicit",
                call_index=at[one.call_id].call_index,
                at=self._clock(),
                label=one.label,
                strength=one.strength,
                reason=one.reason,
                fault=one.fault,
            )
            for one in found
            if one.call_id in at
        }
        await record(self._engine, list(made.values()))
        for one in made.values():
            self._metrics.outcomes.labels(one.strength).inc()
