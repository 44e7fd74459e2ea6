"""The composition root: settings → objects → routes. The lifespan owns whatever lives.

Routes take raw requests and give raw responses; no model of a body is built, and there is no middleware.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from router.access.estimate import LargeRates
from router.cascade.drafting import Drafter
from router.cascade.ending import end_hooks
from router.cascade.gateway import Gateway
from router.cascade.recorder import Recorder
from router.constants import Constants
from router.http.admin_experiments import experiment_routes
from router.http.admin_keys import ADMIN_BODY_BYTES, key_routes
from router.http.body import body_limit, whole_body
from router.http.completion_endpoint import CompletionEndpoint
from router.http.count_tokens import counting_route
from router.http.feedback import feedback_route
from router.http.inflight import InflightLimit, InflightSlot
from router.http.services import GatewayApp, Services
from router.http.status import DIALECTS, gone, healthy, http_error, metrics_route, model, models, ready
from router.ledger.retention import Retention
from router.ledger.store import Ledger
from router.outcomes.watch import OutcomeWatch
from router.selection.active_policies import PoliciesInForce
from router.selection.experiment_store import ExperimentStore
from router.selection.running_experiments import LiveExperiments
from router.server.wiring import (
    SmallSide,
    auditor_of,
    gate_of,
    policies_of,
    redis_link,
    reloaded_on_hangup,
    remote_of,
    stickiness_of,
    worker_of,
)
from router.settings import Settings
from router.small.worker_client import SmallModel
from router.telemetry import Metrics
from router.upstream.large_model import LargeModel
from router.upstream.passthrough import Passthrough
from router.upstream.token_counter import TokenCounter
from router.upstream.translated import LitellmModel


def create_app(
    settings: Settings,
    *,
    model_folder: Path | None = None,
    small: SmallModel | None = None,
    large: LargeModel | None = None,
    constants: Constants | None = None,
    on_refused: Callable[[str], None] = lambda why: None,
) -> GatewayApp:
    """The gateway as an ASGI application.

    Args:
        model_folder: weights for a worker of our own; None: no worker is started.
        small, large: stand in for the worker and for litellm.
        constants: in place of the defaults.
        on_refused: called with the reason where the worker cannot load what it is given.

    Raises:
        SettingsError: a bundle cannot be loaded.
    """
    metrics, small_side, constants = Metrics(), SmallSide(small), constants or Constants()
    policies = policies_of(settings, small_side, large)

    @contextlib.asynccontextmanager
    async def lifespan(app: GatewayApp) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            app.services = await _services(
                settings, model_folder, small_side, large, policies, metrics, constants, stack, on_refused
            )
            yield

    inflight = InflightLimit(settings.server.max_inflight, constants.max_inflight_mb, metrics.inflight)
    completions = {
        f"/v1{dialect.path}": CompletionEndpoint(settings.server, inflight, dialect, constants) for dialect in DIALECTS
    }
    app = GatewayApp(
        completions,
        title="smallcall",
        lifespan=lifespan,
        openapi_url=None,
        middleware=[],
        exception_handlers={HTTPException: http_error, ClientDisconnect: gone},
    )
    limit = body_limit(settings.server)

    async def counted_body(request: Request, slot: InflightSlot) -> bytes:
        return await whole_body(request, limit, slot)

    async def admin_body(request: Request) -> bytes:
        return await whole_body(request, ADMIN_BODY_BYTES)

    app.add_api_route("/v1/messages/count_tokens", counting_route(inflight, counted_body), methods=["POST"])
    app.add_api_route("/v1/feedback", feedback_route(inflight, whole_body), methods=["POST"])
    for path, completion in completions.items():
        # Other methods are refused there, and what is mounted below a path is found.
        app.router.routes.append(Route(path, completion, methods=["POST"]))
    for path, method, endpoint in (*key_routes(admin_body), *experiment_routes(admin_body)):
        app.add_api_route(path, endpoint, methods=[method])
    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", model, methods=["GET"])
    app.add_api_route("/healthz", healthy, methods=["GET"])
    app.add_api_route("/readyz", ready, methods=["GET"])
    app.add_api_route("/metrics", metrics_route(metrics), methods=["GET"])
    return app


async def _services(
    settings: Settings,
    model_folder: Path | None,
    small_side: SmallSide,
    large: LargeModel | None,
    policies: PoliciesInForce,
    metrics: Metrics,
    constants: Constants,
    stack: contextlib.AsyncExitStack,
    on_refused: Callable[[str], None],
) -> Services:
    """Everything that lives while the gateway serves; `stack` ends it."""
    started = int(time.time())
    ledger = await stack.enter_async_context(Ledger.open(settings.ledger.url, synchronous=settings.ledger.synchronous))
    recorder = Recorder(
        ledger,
        end_hooks(metrics),
        store_content=settings.ledger.store_content,
        small_usd_per_hour=settings.small.usd_per_hour,
    )
    stack.push_async_callback(recorder.flush)
    if small_side.model is None and model_folder is not None and settings.small.local:
        worker = worker_of(settings, model_folder, stack, constants, lambda _: policies.log_states(), on_refused)
        small_side.model = await stack.enter_async_context(worker.running())
    elif small_side.model is None and settings.small.enabled and settings.small.engine.kind == "remote":
        small_side.model = await stack.enter_async_context(remote_of(settings.small.engine).running())
    small, forwarder, counter, priced = small_side.model, None, None, None
    if large is None and settings.large.model:
        model = LitellmModel(
            settings.large,
            rng=random.Random(),
            retried=lambda code: metrics.retries.labels(code).inc(),
            constants=constants,
        )
        large = await stack.enter_async_context(model.running())
        forwarder = await stack.enter_async_context(Passthrough(settings.large, model).running())
        counter, priced = TokenCounter(model, forwarder), model.priced
    outcomes = await stack.enter_async_context(OutcomeWatch(ledger.engine, metrics).running())
    if settings.ledger.keep_days is not None:
        pruning = asyncio.create_task(Retention(ledger.engine, settings.ledger.keep_days).run(), name="retention")
        stack.callback(pruning.cancel)
    rates, link = LargeRates(large, priced), redis_link(settings, constants, metrics, stack)
    gate = await gate_of(settings, constants, ledger, rates, metrics, link, stack)
    live = LiveExperiments(settings, policies, ExperimentStore(ledger.engine), metrics, constants)
    experiments = await stack.enter_async_context(live.in_force())
    policies.log_states()
    reloaded_on_hangup(policies, experiments, stack)
    gateway = Gateway(
        policies,
        Drafter(small, settings.small),
        large,
        recorder,
        forwarder=forwarder,
        draft_if_down=settings.serve_draft_if_large_down,
        auditor=await auditor_of(settings, constants, large, ledger, stack),
    )
    return Services(
        gate=gate,
        gateway=gateway,
        ledger=ledger,
        policies=policies,
        experiments=experiments,
        stickiness=stickiness_of(settings, constants, rates, link),
        outcomes=outcomes,
        small=small,
        large=large,
        counter=counter,
        started=started,
    )
