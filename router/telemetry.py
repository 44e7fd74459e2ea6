"""Logs and metrics: ids, counts and reasons; never prompts, answers or keys."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(level: str) -> None:
    """JSON lines on stderr."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class Metrics:
    """What `/metrics` shows. Labels take few values: sides, and reasons that stand in the code."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.decisions = Counter(
            "smallcall_decisions", "Requests decided.", ["side", "reason", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "smallcall_latency_seconds",
            "From the request's last byte to the answer's last byte.",
            ["side"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.tokens = Counter("smallcall_tokens", "Tokens.", ["side", "kind"], registry=self.registry)
        self.cost = Counter("smallcall_large_cost_usd", "Cost of the large model, USD.", registry=self.registry)
