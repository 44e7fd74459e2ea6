"""The composition root: settings → objects → routes. The lifespan owns whatever lives.

Routes take raw requests and give raw responses; no model of a body is built, and there is no middleware.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers, State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from router.access.admin import ADMIN_BODY_BYTES, key_routes
from router.access.door import Access
from router.access.keys import VirtualKey
from router.access.limits import Counters, LocalCounters
from router.access.reckoning import LargeRates
from router.access.store import KeyStore
from router.counting import TokenCounter, counting_route
from router.delivery import Admission, Delivery, error_response
from router.dialects.chat import ChatRequest, Dialect
from router.dialects.chat_completions import ChatCompletions
from router.dialects.errors import ClientError
from router.dialects.messages import Messages
from router.dialects.responses import Responses
from router.drafting import OFFLOAD_BYTES, Drafter
from router.experiments import Assignment, Exposure, assignment
from router.feedback import feedback_route
from router.gateway import Auditor, Gateway
from router.ledger import Ledger
from router.ledger.retention import Retention
from router.local import SmallModel
from router.outcome_watch import OutcomeWatch
from router.policies_in_force import PoliciesInForce
from router.recorder import Recorder
from router.served_bundle import Running
from router.settings import Settings
from router.stickiness import LocalMemories, Memories, SharedMemories, Stickiness
from router.supervisor import Supervisor, WorkerCommand
from router.telemetry import Metrics
from router.terms import Terms
from router.upstream import LargeModel
from router.upstream.passthrough import Passthrough
from router.upstream.translated import LitellmModel
from slm.protocol import Info

if TYPE_CHECKING:
    from router.redis_link import RedisLink

BODY_TIMEOUT_S = 60.0
"""A client that takes longer to send its body gets a 408."""
_CHAT = ChatCompletions()
_DIALECTS: tuple[Dialect, ...] = (_CHAT, Messages(), Responses())


def create_app(
    settings: Settings,
    *,
    model_folder: Path | None = None,
    small: SmallModel | None = None,
    large: LargeModel | None = None,
) -> FastAPI:
    """The gateway as an ASGI application.

    Args:
        model_folder: weights for a worker of our own; None: no worker is started.
        small, large: stand in for the worker and for litellm.

    Raises:
        SettingsError: a bundle cannot be loaded.
    """
    metrics = Metrics()
    policies = _policies_of(settings, lambda: app.state.small, large)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(Ledger.open(settings.ledger.url))
            recorder = Recorder(
                ledger,
                metrics,
                store_content=settings.ledger.store_content,
                small_usd_per_hour=settings.small.usd_per_hour,
            )
            stack.push_async_callback(recorder.flush)
            backend, upstream, forwarder, counter, priced = small, large, None, None, None
            if backend is None and model_folder is not None and settings.small.enabled:
                worker = _worker(settings, model_folder, stack, policies)
                backend = await stack.enter_async_context(worker.running())
            if upstream is None and settings.large.model:
                model = LitellmModel(
                    settings.large, rng=random.Random(), retried=lambda code: metrics.retries.labels(code).inc()
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
            rates, link = LargeRates(upstream, priced), _redis(settings, metrics, stack)
            app.state.access = await _access(settings, ledger, rates, metrics, link, stack)
            app.state.stickiness = _stickiness(settings, rates, link)
            app.state.ledger, app.state.small, app.state.large = ledger, backend, upstream
            app.state.assignment = found = await _experiment(settings, policies, stack)
            app.state.counter = counter
            policies.look()
            _reloaded_on_hangup(policies, found, stack)
            app.state.gateway = Gateway(
                policies,
                Drafter(backend, settings.small),
                upstream,
                recorder,
                forwarder=forwarder,
                draft_if_down=settings.serve_draft_if_large_down,
                auditor=await _auditor(settings, upstream, ledger, stack),
            )
            yield

    admission = Admission(settings.server.max_inflight, metrics.inflight)
    answering = {f"/v1{dialect.path}": _Completion(settings, admission, dialect) for dialect in _DIALECTS}
    app = _Front(
        answering,
        title="smallcall",
        lifespan=lifespan,
        openapi_url=None,
        middleware=[],
        exception_handlers={HTTPException: _http_error, ClientDisconnect: _gone},
    )
    app.state.started, app.state.grammar = int(time.time()), settings.small.grammar
    app.state.small, app.state.policies = None, policies
    limit = _body_limit(settings)
    counting = counting_route(admission, lambda request: _whole_body(request, limit))
    app.add_api_route("/v1/messages/count_tokens", counting, methods=["POST"])
    app.add_api_route("/v1/feedback", feedback_route(admission, _whole_body, _owner), methods=["POST"])
    for path, completion in answering.items():
        # Other methods are refused there, and what is mounted below a path is found.
        app.router.routes.append(Route(path, completion, methods=["POST"]))
    for path, method, endpoint in key_routes(lambda request: _whole_body(request, ADMIN_BODY_BYTES)):
        app.add_api_route(path, endpoint, methods=[method])
    app.add_api_route("/v1/models", _models, methods=["GET"])
    app.add_api_route("/healthz", _healthy, methods=["GET"])
    app.add_api_route("/readyz", _ready, methods=["GET"])
    app.add_api_route("/metrics", _metrics(metrics), methods=["GET"])
    return app


def _redis(settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack) -> RedisLink | None:
    if settings.access.redis_url is None:
        return None
    from router.redis_link import RedisLink  # brings redis, which few gateways need

    url = settings.access.redis_url.get_secret_value()
    link = RedisLink(url, failed=metrics.redis_failures.inc, clock=time.monotonic)
    stack.push_async_callback(link.close)
    return link


async def _access(
    settings: Settings,
    ledger: Ledger,
    rates: LargeRates,
    metrics: Metrics,
    link: RedisLink | None,
    stack: contextlib.AsyncExitStack,
) -> Access:
    local = LocalCounters(time.monotonic)
    counters: Counters = local
    if link is not None:
        from router.access.redis_counters import RedisCounters

        counters = RedisCounters(link, local, on_down=settings.access.on_redis_down)
    store = KeyStore(ledger.engine)
    access = Access(settings.access, settings.server, store, counters, local, metrics, rates=rates)
    return await stack.enter_async_context(access.running())


def _stickiness(settings: Settings, rates: LargeRates, link: RedisLink | None) -> Stickiness:
    forget_s = settings.conversations.forget_s
    local = LocalMemories(forget_s, time.time)
    memories: Memories = local if link is None else SharedMemories(link, local, forget_s)
    return Stickiness(settings.conversations, memories, rates)


def _policies_of(
    settings: Settings, small: Callable[[], SmallModel | None], large: LargeModel | None
) -> PoliciesInForce:
    """Raises SettingsError where a bundle cannot be loaded."""

    def loaded() -> Info | None:
        backend = small()
        return backend.info if backend is not None else None

    large_model = large.model if large is not None else settings.large.model
    return PoliciesInForce(settings, Running(loaded, settings.small.grammar, large_model))


def _reloaded_on_hangup(
    policies: PoliciesInForce, experiment: Assignment | None, stack: contextlib.AsyncExitStack
) -> None:
    """SIGHUP loads the gateway's own bundle anew."""
    reloading: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        held = experiment is not None and not experiment.stopped
        task = asyncio.create_task(policies.reload(held=held))
        reloading.add(task)
        task.add_done_callback(reloading.discard)

    if threading.current_thread() is threading.main_thread():  # signals reach no other
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, reload)
        stack.callback(loop.remove_signal_handler, signal.SIGHUP)


async def _experiment(
    settings: Settings, policies: PoliciesInForce, stack: contextlib.AsyncExitStack
) -> Assignment | None:
    """The running experiment's assignment, watched; what its rows say of its guardrails is heeded from the start."""
    found = assignment(settings.experiments, policies.made)
    if found is None:
        return None
    from router.experiment_state import Watch  # brings scipy, which a gateway without experiments does not need

    watch = Watch(settings.ledger.url, settings.experiments[found.name], found)
    await watch.look()
    running = asyncio.create_task(watch.run(), name="experiment-watch")
    stack.callback(running.cancel)
    return found


async def _auditor(
    settings: Settings, large: LargeModel | None, ledger: Ledger, stack: contextlib.AsyncExitStack
) -> Auditor | None:
    if not settings.audits.enabled or large is None:
        return None
    from router.audits import Auditor as Shadow  # brings scipy, which a gateway without audits does not need

    shadow = Shadow(
        settings.audits, large, ledger.engine, rng=random.Random(), store_content=settings.ledger.store_content
    )
    return await stack.enter_async_context(shadow.running())


def _worker(
    settings: Settings, model_folder: Path, stack: contextlib.AsyncExitStack, policies: PoliciesInForce
) -> Supervisor:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smallcall-"))
    small = settings.small
    socket = Path(folder) / "worker.sock"
    adapter, options = small.adapter_folder, (small.threads, small.max_queue, small.dtype)
    shortlist = None if small.shortlist.kind == "none" else small.shortlist.options
    command = WorkerCommand(socket, model_folder, adapter, *options, shortlist)
    return Supervisor(command, on_ready=lambda _: policies.look())


class _Front(FastAPI):
    """The application; requests for answers do not go through its routing, which takes longer than all else that the
    gateway does with a body that is forwarded."""

    def __init__(self, answering: Mapping[str, ASGIApp], **options: Any) -> None:
        super().__init__(**options)
        self._answering = answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and scope["method"] == "POST":
            answering = self._answering.get(scope["path"])
            if answering is not None:
                scope["app"] = self
                await answering(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _Completion:
    """Answers requests of one dialect. An ASGI application: behind it stands no routing and no middleware."""

    def __init__(self, settings: Settings, admission: Admission, dialect: Dialect) -> None:
        self._admission, self._dialect = admission, dialect
        self._keep_alive_s, self._limit = settings.server.keep_alive_s, _body_limit(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = Headers(scope=scope)
        try:
            access: Access = scope["app"].state.access
            key = access.caller(headers)
            self._admission.enter()
        except ClientError as error:
            await error_response(error, self._dialect)(scope, receive, send)
            return
        try:
            delivery = await self._asked(scope["app"].state, key, headers, receive)
            await delivery.send(receive, send)
        except ClientError as error:  # of a body that cannot be read; a delivery tells its own errors
            await error_response(error, self._dialect)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody reads an answer
        finally:
            self._admission.leave()

    async def _asked(self, state: State, key: VirtualKey | None, headers: Headers, receive: Receive) -> Delivery:
        """Raises ClientError, ClientDisconnect."""
        raw = await _body(headers, receive, self._limit)
        assigned: Assignment | None = state.assignment
        stickiness: Stickiness = state.stickiness

        def read() -> tuple[ChatRequest, Exposure | None, str | None]:
            chat = self._dialect.read(raw, headers)
            exposure = assigned.exposure(chat, headers) if assigned is not None else None
            return chat, exposure, stickiness.digest(chat, headers)

        chat, exposure, digest = await asyncio.to_thread(read) if len(raw) > OFFLOAD_BYTES else read()
        sticky = await stickiness.turn(chat, digest)
        grant = await state.access.admit(key, chat)
        state.outcomes.see(chat, key.key_id if key is not None else None)
        return Delivery(state.gateway, chat, self._dialect, self._keep_alive_s, Terms(exposure, grant, sticky))


def _owner(request: Request) -> str | None:
    """The id of the key that asks; None without keys. Raises ClientError: 401."""
    access: Access = request.app.state.access
    key = access.caller(request.headers)
    return key.key_id if key is not None else None


def _body_limit(settings: Settings) -> int:
    return int(settings.server.max_body_mb * 1024 * 1024)


async def _whole_body(request: Request, limit: int) -> bytes:
    return await _body(request.headers, request.receive, limit)


async def _body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The whole body. Raises ClientError: 413, 408; ClientDisconnect."""
    too_large = ClientError(413, f"the body is larger than {limit} bytes", "body_too_large")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise ClientError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", "body_timeout") from error


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the shape of the dialect that the path belongs to."""
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    path = request.url.path.removeprefix("/v1")
    dialect = next((one for one in _DIALECTS if path.startswith(one.path)), _CHAT)
    return error_response(ClientError(error.status_code, str(error.detail), code), dialect)


async def _gone(request: Request, error: Exception) -> Response:
    """The client left before its body was there: nobody reads this."""
    return Response(status_code=499)


async def _models(request: Request) -> Response:
    state = request.app.state
    info = state.small.info if state.small is not None else None
    try:
        key = state.access.caller(request.headers)
    except ClientError as error:
        return error_response(error, _CHAT)
    names = ["smallcall"] + (["smallcall/small"] if state.small else []) + (["smallcall/large"] if state.large else [])
    names = state.access.visible(key, names)
    data = [{"id": name, "object": "model", "created": state.started, "owned_by": "smallcall"} for name in names]
    small = None if info is None else _serving(info, state.grammar)
    large = state.large.model if state.large else None
    ours = {"small": small, "large": large, "policy": state.policies.view()}
    body = {"object": "list", "data": data, "smallcall": ours}
    return Response(orjson.dumps(body), media_type="application/json")


def _serving(info: Info, grammar: bool) -> dict[str, object]:
    """What drafts are made with: a trace keeps it, and a certificate is bound to it."""
    return {
        "model": info.model,
        "weights_sha256": info.weights_sha256,
        "adapter_sha256": info.adapter_sha256,
        "pattern_version": info.pattern_version,
        "dtype": info.dtype,
        "grammar": grammar,
    }


async def _healthy() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


async def _ready(request: Request) -> Response:
    """Whether each part can work; 503 until all that is configured can."""
    state = request.app.state
    parts = {"ledger": await state.ledger.ping()}
    if state.small is not None:
        parts["small"] = state.small.info is not None
    if state.large is not None:
        parts["large"] = state.large.ready
    body = {**parts, "certificates": state.policies.view()["state"]}
    return Response(orjson.dumps(body), 200 if all(parts.values()) else 503, media_type="application/json")


def _metrics(metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        try:
            request.app.state.access.metrics_reader(request.headers)
        except ClientError as error:
            return error_response(error, _CHAT)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return show
