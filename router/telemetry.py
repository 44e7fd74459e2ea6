"""Logs and metrics: ids, counts and reasons; never prompts, answers or keys."""

from __future__ import annotations

import asyncio
import logging
import sys

import orjson
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)


def configure_logging(level: str) -> None:
    """JSON lines on stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=True,
    )


def where(error: BaseException) -> str:
    """Type and innermost place of an unforeseen error. Its text is left out: it may quote a prompt."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"


class Metrics:
    """The metrics of `/metrics`, in a registry of its own. Labels take few values: all of them stand in our code."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "smallcall_decisions",
            "Requests decided, by who answered, why, at which stage, and the HTTP status.",
            ["side", "reason", "stage", "status"],
            registry=self.registry,
        )
        self.latency = self._seconds("smallcall_latency_seconds", "From the parsed request to its row.", "side")
        self.draft = self._seconds("smallcall_draft_seconds", "Parts of a draft's time.", "part")
        self.tokens = Counter(
            "smallcall_tokens", "Tokens, as the worker and the provider count them.", ["side", "kind"],
            registry=self.registry,
        )  # fmt: skip
        self.cost = Counter(
            "smallcall_large_cost_usd", "Cost of the large model where it is known, USD.", registry=self.registry
        )
        self.retries = Counter(
            "smallcall_upstream_retries", "Retries of the large model.", ["code"], registry=self.registry
        )
        self.outcomes = Counter(
            "smallcall_outcomes",
            "Labels from later requests, by strength; also those that were dropped or could not be recorded.",
            ["strength"],
            registry=self.registry,
        )
        self.refusals = Counter(
            "smallcall_refusals", "Requests refused by keys, budgets and rates.", ["code"], registry=self.registry
        )
        self.soft_budgets = Counter(
            "smallcall_soft_budgets_spent", "Soft budgets that were spent, once a key and window.",
            registry=self.registry,
        )  # fmt: skip
        self.redis_failures = Counter(
            "smallcall_redis_failures", "Times that Redis did not answer.", registry=self.registry
        )
        self.refresh_failures = Counter(
            "smallcall_refresh_failures",
            "Times that keys or experiments could not be read anew: the last known stay in force.",
            ["what"],
            registry=self.registry,
        )
        self.inflight = Gauge("smallcall_inflight", "Requests under way.", registry=self.registry)
        tasks = Gauge("smallcall_tasks", "Tasks of the event loop.", registry=self.registry)
        tasks.set_function(lambda: len(asyncio.all_tasks()))

    def _seconds(self, name: str, help_text: str, label: str) -> Histogram:
        return Histogram(name, help_text, [label], buckets=_SECONDS, registry=self.registry)
