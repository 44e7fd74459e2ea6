"""The parts of a gateway, made from the settings; `router.server.app` puts them together. The stack frees what they
hold."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from router.access.estimate import LargeRates
from router.access.gate import Gate
from router.access.limits import Counters, LocalCounters
from router.access.store import KeyStore
from router.cascade.gateway import Auditor
from router.constants import Constants
from router.ledger.store import Ledger
from router.selection.active_policies import PoliciesInForce
from router.selection.running_experiments import LiveExperiments
from router.selection.served_bundle import Running
from router.selection.stickiness import LocalMemories, Memories, SharedMemories, Stickiness
from router.settings import Engine, Settings
from router.small.remote import RemoteModel, RemoteServer
from router.small.supervisor import Supervisor, WorkerCommand
from router.small.worker_client import SmallModel
from router.telemetry import Metrics
from router.upstream.large_model import LargeModel
from slm.protocol import Info

if TYPE_CHECKING:
    from router.redis_link import RedisLink


def redis_link(
    settings: Settings, constants: Constants, metrics: Metrics, stack: contextlib.AsyncExitStack
) -> RedisLink | None:
    """Return the Redis link that replicas share; None where `access.redis_url` is not set."""
    if settings.access.redis_url is None:
        return None
    from router.redis_link import RedisLink  # brings redis, which few gateways need

    url = settings.access.redis_url.get_secret_value()
    timeout_s, failed = constants.redis_timeout_s, metrics.redis_failures.inc
    link = RedisLink(url, timeout_s=timeout_s, failed=failed, clock=time.monotonic)
    stack.push_async_callback(link.close)
    return link


async def gate_of(
    settings: Settings,
    constants: Constants,
    ledger: Ledger,
    rates: LargeRates,
    metrics: Metrics,
    link: RedisLink | None,
    stack: contextlib.AsyncExitStack,
) -> Gate:
    """The gate, its keys kept fresh. Raises PublicWithoutKeysError, KeysUnavailableError."""
    local = LocalCounters(time.monotonic)
    counters: Counters = local
    if link is not None:
        from router.access.redis_counters import RedisCounters

        counters = RedisCounters(link, local, on_down=settings.access.on_redis_down)
    store = KeyStore(ledger.engine)
    gate = Gate(
        settings.access, settings.server, store, counters, local, metrics, rates=rates, refresh_s=constants.refresh_s
    )
    return await stack.enter_async_context(gate.running())


def stickiness_of(settings: Settings, constants: Constants, rates: LargeRates, link: RedisLink | None) -> Stickiness:
    """Return the memory of conversations: in this process, or by Redis where there is a link."""
    forget_s = constants.forget_s
    local = LocalMemories(forget_s, time.time)
    memories: Memories = local if link is None else SharedMemories(link, local, forget_s)
    return Stickiness(settings.conversations.sticky, constants, memories, rates)


@dataclass(slots=True)
class SmallSide:
    """The small model of one gateway, set once it is there: policies ask it later than they are made."""

    model: SmallModel | None

    def info(self) -> Info | None:
        """The loaded model; None while nothing is ready."""
        return self.model.info if self.model is not None else None


def policies_of(settings: Settings, small: SmallSide, large: LargeModel | None) -> PoliciesInForce:
    """The policies of the configuration, with their bundles loaded. Raises SettingsError where one cannot be."""
    large_model = large.model if large is not None else settings.large.model
    return PoliciesInForce(settings, Running(small.info, large_model))


def reloaded_on_hangup(
    policies: PoliciesInForce, experiments: LiveExperiments, stack: contextlib.AsyncExitStack
) -> None:
    """SIGHUP loads the gateway's own bundle anew."""
    reloading: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(policies.reload(held=experiments.running))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    if threading.current_thread() is threading.main_thread():  # signals reach no other
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, reload)
        stack.callback(loop.remove_signal_handler, signal.SIGHUP)


async def auditor_of(
    settings: Settings,
    constants: Constants,
    large: LargeModel | None,
    ledger: Ledger,
    stack: contextlib.AsyncExitStack,
) -> Auditor | None:
    """Shadow audits; None where they are off or there is no large model."""
    if not settings.audits.enabled or large is None:
        return None
    # It brings scipy, which a gateway without audits does not need.
    from router.outcomes.shadow_audits import ShadowAuditor

    shadow = ShadowAuditor(
        settings.audits,
        large,
        ledger.engine,
        rng=random.Random(),
        store_content=settings.ledger.store_content,
        floor=constants.audit_floor,
        per_minute=constants.audits_per_minute,
    )
    return await stack.enter_async_context(shadow.running())


def worker_of(
    settings: Settings,
    model_folder: Path,
    stack: contextlib.AsyncExitStack | contextlib.ExitStack,
    constants: Constants,
    on_ready: Callable[[Info], None] = lambda _: None,
    on_refused: Callable[[str], None] = lambda _: None,
) -> Supervisor:
    """The process of the small model; its socket lies in a folder of its own."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smallcall-"))
    small = settings.small
    socket = Path(folder) / "worker.sock"
    adapter, options = small.adapter_folder, (small.threads, constants.max_queue, small.dtype, small.cache_mb)
    shortlist = None if small.shortlist.kind == "none" else small.shortlist.options
    command = WorkerCommand(socket, model_folder, adapter, *options, shortlist, small.max_wait_s, small.device)
    return Supervisor(command, on_ready=on_ready, on_refused=on_refused)


def remote_of(engine: Engine) -> RemoteModel:
    """A completion server as the small side; the settings have seen to it that it is named."""
    assert engine.api_base is not None
    assert engine.model is not None
    key = engine.api_key.get_secret_value() if engine.api_key else None
    return RemoteModel(RemoteServer(engine.api_base.rstrip("/"), engine.model, key, engine.guided))
