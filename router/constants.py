"""Bounds and periods of a gateway that nobody has to set, and the settings that they once were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The values that the parts of a gateway are made with: `smallcall serve` takes the defaults, tests take others."""

    max_inflight_mb: float = 1024.0
    """MiB of the bodies of all requests under way; a request beyond them gets a 503."""
    keep_alive_s: float = 10.0
    """A stream in which nothing was sent for so long gets a comment, so that nobody in between closes it."""
    write_timeout_s: float = 60.0
    """A client that takes nothing of its answer for so long counts as disconnected."""
    refresh_s: float = 5.0
    """Keys, spending and experiments that other replicas changed are read again after so long."""
    redis_timeout_s: float = 1.0
    """A Redis that does not answer within it counts as down."""
    max_queue: int = 64
    """Drafts that may wait for the worker; one more goes to the large model."""
    breaker_failures: int = 5
    """After so many failures in a row, the large model is not asked for `breaker_cooldown_s`."""
    breaker_cooldown_s: float = 10.0
    sticky_turns: int = 4
    """Turns that stay with the large model after an escalation, under `sticky: after_escalation`."""
    forget_s: float = 3600.0
    """A conversation that was silent for so long is forgotten."""
    cache_ttl_s: float = 300.0
    """Seconds a provider keeps a prompt in its cache, under `sticky: break_even`."""
    draft_usd: float = 0.0
    """Cost of a draft in machine time and waiting, USD, under `sticky: break_even`."""
    audit_floor: float = 0.005
    """Least probability of an audit; a lower `audits.rate` goes before."""
    audits_per_minute: int = 6
    """Audits that one gateway begins in a minute at most."""
    experiment_window_s: float = 3600.0
    """A unit's requests count so long from its first one, and the unit counts after that."""
    experiment_check_s: float = 60.0
    """Pause between two looks at an experiment's guardrails."""


_DEFAULTS = Constants()
FORMER_SETTINGS: Mapping[str, str] = {
    "server.max_inflight_mb": f"{_DEFAULTS.max_inflight_mb:g}",
    "server.keep_alive_s": f"{_DEFAULTS.keep_alive_s:g}",
    "server.write_timeout_s": f"{_DEFAULTS.write_timeout_s:g}",
    "access.refresh_s": f"{_DEFAULTS.refresh_s:g}",
    "access.redis_timeout_s": f"{_DEFAULTS.redis_timeout_s:g}",
    "small.max_queue": f"{_DEFAULTS.max_queue}",
    "small.grammar": "true",
    "small.engine.frame": "chatml",
    "small.shortlist.above": "the value of small.shortlist.keep",
    "large.breaker_failures": f"{_DEFAULTS.breaker_failures}",
    "large.breaker_cooldown_s": f"{_DEFAULTS.breaker_cooldown_s:g}",
    "large.price.cache_write_1h_usd_per_mtok": "the value of large.price.cache_write_usd_per_mtok",
    "conversations.sticky_turns": f"{_DEFAULTS.sticky_turns}",
    "conversations.forget_s": f"{_DEFAULTS.forget_s:g}",
    "conversations.cache_ttl_s": f"{_DEFAULTS.cache_ttl_s:g}",
    "conversations.draft_usd": f"{_DEFAULTS.draft_usd:g}",
    "audits.floor": f"{_DEFAULTS.audit_floor:g}",
    "audits.per_minute": f"{_DEFAULTS.audits_per_minute}",
    "experiments.*.salt": "the experiment's name",
    "experiments.*.window_s": f"{_DEFAULTS.experiment_window_s:g}",
    "experiments.*.check_every_s": f"{_DEFAULTS.experiment_check_s:g}",
}


def removal_hint(path: Sequence[int | str]) -> str | None:
    """The message for a key that was a setting once, such as `("server", "keep_alive_s")`; None for any other key."""
    parts = [str(part) for part in path]
    if parts[:1] == ["experiments"] and len(parts) > 1:
        parts[1] = "*"
    value = FORMER_SETTINGS.get(".".join(parts))
    return None if value is None else f"removed: it is a constant now ({value})"
