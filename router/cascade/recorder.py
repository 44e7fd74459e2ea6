"""Each decision ends here, once: a committed row, and then what hangs on a decision's end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from router.cascade.decision import Decision
from router.cascade.decision_row import digests_of, to_row
from router.cascade.ending import EndHook
from router.dialects.errors import ClientError
from router.ledger.store import Ledger, LedgerUnavailableError
from router.settings import OFFLOAD_BYTES

_log = structlog.get_logger("gateway")


class Recorder:
    """Ends decisions. Belongs to one event loop.

    Args:
        hooks: run in order after the row, also where it could not be committed; see `router.cascade.ending`.
        store_content: whether requests and answers are kept.
        small_usd_per_hour: the price of the small model's machine.
    """

    def __init__(
        self, ledger: Ledger, hooks: Sequence[EndHook], *, store_content: bool, small_usd_per_hour: float = 0.0
    ) -> None:
        self._ledger, self._hooks, self._store_content = ledger, hooks, store_content
        self._small_usd_per_hour = small_usd_per_hour
        self._ending: set[asyncio.Task[None]] = set()

    async def record(self, decision: Decision) -> None:
        """Return when the row is committed and the hooks have run; a second call does nothing. A caller that is
        cancelled meanwhile leaves the row to be committed all the same.

        Raises:
            ClientError: 503, the ledger is down: no answer goes out without its row.
        """
        if decision.recorded:
            return
        decision.recorded = True
        ending = asyncio.create_task(self._end(decision))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        await asyncio.shield(ending)

    @property
    def store_content(self) -> bool:
        """True if requests and answers are kept."""
        return self._store_content

    async def flush(self) -> None:
        """Wait for the rows of requests whose tasks are gone."""
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _end(self, decision: Decision) -> None:
        try:
            await self._commit(decision)
        finally:
            for hook in self._hooks:
                await hook(decision)

    async def _commit(self, decision: Decision) -> None:
        """Raises ClientError: 503."""
        chat, usd_per_hour = decision.chat, self._small_usd_per_hour
        try:
            large = chat.size_bytes > OFFLOAD_BYTES
            digests = await asyncio.to_thread(digests_of, chat) if large else digests_of(chat)
            row = to_row(decision, digests, store_content=self._store_content, small_usd_per_hour=usd_per_hour)
            await self._ledger.write(row, decision.large.summary.large_calls)
        except LedgerUnavailableError as error:
            _log.error("ledger_unavailable", decision_id=decision.decision_id, error=str(error))
            decision.fail(503, "ledger_unavailable")
            raise ClientError(503, "the decision could not be recorded", "ledger_unavailable") from error
