"""The composition root: settings → objects → routes. The lifespan owns whatever lives.

Routes take raw requests and give raw responses; no model of a body is built, and there is no middleware.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from router.access.estimate import LargeRates
from router.cascade.drafting import Drafter
from router.cascade.gateway import Gateway
from router.cascade.recorder import Recorder
from router.constants import Constants
from router.http.admin_experiments import experiment_routes
from router.http.admin_keys import ADMIN_BODY_BYTES, key_routes
from router.http.admission import Admission
from router.http.completion_endpoint import Completion, Front, body_limit, whole_body
from router.http.count_tokens import TokenCounter, counting_route
from router.http.feedback import feedback_route
from router.http.status import DIALECTS, gone, healthy, http_error, metrics_route, models, ready
from router.ledger.retention import Retention
from router.ledger.store import Ledger
from router.outcomes.watch import OutcomeWatch
from router.selection.experiment_store import ExperimentStore
from router.selection.running_experiments import LiveExperiments
from router.server.wiring import (
    access_of,
    auditor_of,
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
from router.upstream.translated import LitellmModel


def create_app(
    settings: Settings,
    *,
    model_folder: Path | None = None,
    small: SmallModel | None = None,
    large: LargeModel | None = None,
    constants: Constants | None = None,
) -> FastAPI:
    """The gateway as an ASGI application.

    Args:
        model_folder: weights for a worker of our own; None: no worker is started.
        small, large: stand in for the worker and for litellm.
        constants: in place of the defaults.

    Raises:
        SettingsError: a bundle cannot be loaded.
    """
    metrics, constants = Metrics(), constants or Constants()
    policies = policies_of(settings, lambda: app.state.small, large)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(
                Ledger.open(settings.ledger.url, synchronous=settings.ledger.synchronous)
            )
            recorder = Recorder(
                ledger,
                metrics,
                store_content=settings.ledger.store_content,
                small_usd_per_hour=settings.small.usd_per_hour,
            )
            stack.push_async_callback(recorder.flush)
            backend, upstream, forwarder, counter, priced = small, large, None, None, None
            if backend is None and model_folder is not None and settings.small.local:
                worker = worker_of(
                    settings, model_folder, stack, constants, lambda _: policies.look(), app.state.worker_refused
                )
                backend = await stack.enter_async_context(worker.running())
            elif backend is None and settings.small.enabled and settings.small.engine.kind == "remote":
                backend = await stack.enter_async_context(remote_of(settings.small.engine).running())
            if upstream is None and settings.large.model:
                model = LitellmModel(
                    settings.large,
                    rng=random.Random(),
                    retried=lambda code: metrics.retries.labels(code).inc(),
                    constants=constants,
                )
                upstream = await stack.enter_async_context(model.running())
                forwarder = await stack.enter_async_context(Passthrough(settings.large, model).running())
                counter, priced = TokenCounter(model, forwarder), model.priced
            app.state.outcomes = await stack.enter_async_context(OutcomeWatch(ledger.engine, metrics).running())
            if settings.ledger.keep_days is not None:
                pruning = asyncio.create_task(
                    Retention(ledger.engine, settings.ledger.keep_days).run(), name="retention"
                )
                stack.callback(pruning.cancel)
            rates, link = LargeRates(upstream, priced), redis_link(settings, constants, metrics, stack)
            app.state.access = await access_of(settings, constants, ledger, rates, metrics, link, stack)
            app.state.stickiness = stickiness_of(settings, constants, rates, link)
            app.state.ledger, app.state.small, app.state.large = ledger, backend, upstream
            live = LiveExperiments(settings, policies, ExperimentStore(ledger.engine), metrics, constants)
            app.state.experiments = await stack.enter_async_context(live.in_force())
            app.state.counter = counter
            policies.look()
            reloaded_on_hangup(policies, live, stack)
            app.state.gateway = Gateway(
                policies,
                Drafter(backend, settings.small),
                upstream,
                recorder,
                forwarder=forwarder,
                draft_if_down=settings.serve_draft_if_large_down,
                auditor=await auditor_of(settings, constants, upstream, ledger, stack),
            )
            yield

    admission = Admission(settings.server.max_inflight, constants.max_inflight_mb, metrics.inflight)
    answering = {f"/v1{dialect.path}": Completion(settings, admission, dialect, constants) for dialect in DIALECTS}
    app = Front(
        answering,
        title="smallcall",
        lifespan=lifespan,
        openapi_url=None,
        middleware=[],
        exception_handlers={HTTPException: http_error, ClientDisconnect: gone},
    )
    app.state.started = int(time.time())
    app.state.worker_refused = lambda why: None
    app.state.small, app.state.policies = None, policies
    limit = body_limit(settings)
    counting = counting_route(admission, lambda request, stay: whole_body(request, limit, stay))
    app.add_api_route("/v1/messages/count_tokens", counting, methods=["POST"])
    app.add_api_route("/v1/feedback", feedback_route(admission, whole_body), methods=["POST"])
    for path, completion in answering.items():
        # Other methods are refused there, and what is mounted below a path is found.
        app.router.routes.append(Route(path, completion, methods=["POST"]))

    async def admin_body(request: Request) -> bytes:
        return await whole_body(request, ADMIN_BODY_BYTES)

    for path, method, endpoint in (*key_routes(admin_body), *experiment_routes(admin_body)):
        app.add_api_route(path, endpoint, methods=[method])
    app.add_api_route("/v1/models", models, methods=["GET"])
    app.add_api_route("/healthz", healthy, methods=["GET"])
    app.add_api_route("/readyz", ready, methods=["GET"])
    app.add_api_route("/metrics", metrics_route(metrics), methods=["GET"])
    return app
