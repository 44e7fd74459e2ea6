"""Each decision ends here, once: metrics, one log line, and a committed row."""

from __future__ import annotations

import asyncio

import structlog

from router.cascade.decision import Decision
from router.dialects.errors import ClientError
from router.ledger.store import Ledger, LedgerUnavailableError
from router.selection.served_bundle import ServedBundle
from router.settings import OFFLOAD_BYTES
from router.telemetry import Metrics

_log = structlog.get_logger("gateway")


class Recorder:
    """Writes rows. Belongs to one event loop."""

    def __init__(
        self, ledger: Ledger, metrics: Metrics, *, store_content: bool, small_usd_per_hour: float = 0.0
    ) -> None:
        self._ledger, self._metrics, self._store_content = ledger, metrics, store_content
        self._small_usd_per_hour = small_usd_per_hour
        self._writing: set[asyncio.Task[None]] = set()

    async def record(self, decision: Decision) -> None:
        """Return when the row is committed; a second call does nothing. A caller that is cancelled meanwhile leaves the
        row to be committed all the same.

        Raises:
            ClientError: 503, the ledger is down: no answer goes out without its row.
        """
        if decision.recorded:
            return
        decision.recorded = True
        writing = asyncio.create_task(self._write(decision))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.shield(writing)

    @property
    def store_content(self) -> bool:
        """Whether requests and answers are kept."""
        return self._store_content

    async def flush(self) -> None:
        """Wait for the rows of requests whose tasks are gone."""
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _write(self, decision: Decision) -> None:
        try:
            large = decision.chat.size_bytes > OFFLOAD_BYTES
            digests = await asyncio.to_thread(decision.digests) if large else decision.digests()
            row = decision.row(digests, store_content=self._store_content, small_usd_per_hour=self._small_usd_per_hour)
            await self._ledger.write(row, decision.seen.large_calls)
        except LedgerUnavailableError as error:
            _log.error("ledger_unavailable", decision_id=decision.decision_id, error=str(error))
            decision.failed(503, "ledger_unavailable")
            raise ClientError(503, "the decision could not be recorded", "ledger_unavailable") from error
        finally:
            if decision.grant is not None:
                decision.grant.settle(decision.taken())
            if decision.sticky is not None:
                await decision.sticky.ended(decision.side, decision.draft is not None, decision.usage, decision.status)
            self._measure(decision)

    def _measure(self, decision: Decision) -> None:
        metrics, usage, builder, latency_s = self._metrics, decision.usage, decision.builder, decision.latency_s
        stage, status = str(decision.verdict.stage), str(decision.status)
        metrics.decisions.labels(decision.side, decision.reason, stage, status).inc()
        metrics.latency.labels(decision.side).observe(latency_s)
        if usage is not None:
            metrics.tokens.labels("large", "prompt").inc(usage.prompt_tokens)
            metrics.tokens.labels("large", "cached").inc(usage.cached_tokens)
            metrics.tokens.labels("large", "completion").inc(usage.completion_tokens)
        metrics.cost.inc(decision.cost_usd or 0.0)
        _charge(decision)
        if builder is not None and builder.started is not None:
            metrics.tokens.labels("small", "prompt").inc(builder.started.prompt_tokens)
            metrics.tokens.labels("small", "completion").inc(len(builder.tokens))
            metrics.draft.labels("queue").observe(builder.started.queue_s)
            metrics.draft.labels("prefill").observe(builder.started.prefill_s)
        if builder is not None and builder.done is not None:
            metrics.draft.labels("decode").observe(builder.done.decode_s)
        _log.info(
            "decided",
            decision_id=decision.decision_id,
            side=decision.side,
            reason=decision.reason,
            status=decision.status,
            error=decision.error_code,
            key=decision.grant.key.key_id if decision.grant else None,
            latency_s=round(latency_s, 4),
        )


def _charge(decision: Decision) -> None:
    """Tell the budget, where the policy keeps one, what the large model's answer cost. One that was refused cost
    nothing; one of unknown cost, such as a stream that was broken off, is charged as a mean one."""
    judge = decision.judged_by
    controller = judge.controller if isinstance(judge, ServedBundle) else None
    if controller is None or decision.large_model is None:
        return
    if decision.cost_usd is not None or decision.status < 400 or decision.client_disconnected:
        controller.spend(decision.cost_usd)
