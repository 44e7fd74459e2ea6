"""The composition root: settings → objects → routes. The lifespan owns whatever lives.

Routes take raw requests and give raw responses; no model of a body is built, and there is no middleware.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from policies.baselines import make_policy
from router.counting import TokenCounter, counting_route
from router.delivery import Admission, Delivery, error_response
from router.dialects.chat import ChatRequest, Dialect
from router.dialects.chat_completions import ChatCompletions
from router.dialects.errors import ClientError
from router.dialects.messages import Messages
from router.dialects.responses import Responses
from router.drafting import OFFLOAD_BYTES, Drafter
from router.experiments import Assignment, Exposure, assignment
from router.gateway import Gateway
from router.ledger import Ledger
from router.local import SmallModel
from router.recorder import Recorder
from router.remote import RemoteModel, RemoteServer
from router.settings import Engine, Settings
from router.supervisor import Supervisor, WorkerCommand
from router.telemetry import Metrics
from router.upstream import LargeModel
from router.upstream.passthrough import Passthrough
from router.upstream.translated import LitellmModel

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
    """
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            ledger = await stack.enter_async_context(Ledger.open(settings.ledger.url))
            recorder = Recorder(ledger, metrics, store_content=settings.ledger.store_content)
            stack.push_async_callback(recorder.flush)
            backend, upstream, forwarder, counter = small, large, None, None
            if backend is None and model_folder is not None and settings.small.local:
                backend = await stack.enter_async_context(_worker(settings, model_folder, stack).running())
            elif backend is None and settings.small.enabled and settings.small.engine.kind == "remote":
                backend = await stack.enter_async_context(_remote(settings.small.engine).running())
            if upstream is None and settings.large.model:
                model = LitellmModel(
                    settings.large, rng=random.Random(), retried=lambda code: metrics.retries.labels(code).inc()
                )
                upstream = await stack.enter_async_context(model.running())
                forwarder = await stack.enter_async_context(Passthrough(settings.large, model).running())
                counter = TokenCounter(model, forwarder)
            app.state.ledger, app.state.small, app.state.large = ledger, backend, upstream
            app.state.assignment = await _experiment(settings, stack)
            app.state.counter = counter
            app.state.gateway = Gateway(
                make_policy(settings.policy),
                Drafter(backend, settings.small),
                upstream,
                recorder,
                forwarder=forwarder,
                draft_if_down=settings.serve_draft_if_large_down,
            )
            yield

    app = FastAPI(
        title="smallcall",
        lifespan=lifespan,
        openapi_url=None,
        middleware=[],
        exception_handlers={HTTPException: _http_error, ClientDisconnect: _gone},
    )
    app.state.started = int(time.time())
    admission = Admission(settings.server.max_inflight, metrics.inflight)
    limit = int(settings.server.max_body_mb * 1024 * 1024)
    counting = counting_route(admission, lambda request: _body(request, limit))
    app.add_api_route("/v1/messages/count_tokens", counting, methods=["POST"])
    for dialect in _DIALECTS:
        app.add_api_route(f"/v1{dialect.path}", _complete(settings, admission, dialect), methods=["POST"])
    app.add_api_route("/v1/models", _models, methods=["GET"])
    app.add_api_route("/healthz", _healthy, methods=["GET"])
    app.add_api_route("/readyz", _ready, methods=["GET"])
    app.add_api_route("/metrics", _metrics(metrics), methods=["GET"])
    return app


async def _experiment(settings: Settings, stack: contextlib.AsyncExitStack) -> Assignment | None:
    """The running experiment's assignment, watched; what its rows say of its guardrails is heeded from the start."""
    found = assignment(settings.experiments)
    if found is None:
        return None
    from router.experiment_state import Watch  # brings scipy, which a gateway without experiments does not need

    watch = Watch(settings.ledger.url, settings.experiments[found.name], found)
    await watch.look()
    running = asyncio.create_task(watch.run(), name="experiment-watch")
    stack.callback(running.cancel)
    return found


def _worker(settings: Settings, model_folder: Path, stack: contextlib.AsyncExitStack) -> Supervisor:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smallcall-"))
    small = settings.small
    socket = Path(folder) / "worker.sock"
    adapter, options = small.adapter_folder, (small.threads, small.max_queue, small.dtype, small.cache_mb)
    return Supervisor(WorkerCommand(socket, model_folder, adapter, *options))


def _remote(engine: Engine) -> RemoteModel:
    assert engine.api_base is not None
    assert engine.model is not None
    key = engine.api_key.get_secret_value() if engine.api_key else None
    return RemoteModel(RemoteServer(engine.api_base.rstrip("/"), engine.model, key, engine.frame, engine.guided))


def _complete(settings: Settings, admission: Admission, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
    limit = int(settings.server.max_body_mb * 1024 * 1024)

    async def complete(request: Request) -> Response:
        try:
            admission.enter()
        except ClientError as error:
            return error_response(error, dialect)
        try:
            raw, headers = await _body(request, limit), request.headers
            assigned: Assignment | None = request.app.state.assignment

            def read() -> tuple[ChatRequest, Exposure | None]:
                chat = dialect.read(raw, headers)
                return chat, assigned.exposure(chat, headers) if assigned is not None else None

            chat, exposure = await asyncio.to_thread(read) if len(raw) > OFFLOAD_BYTES else read()
        except ClientError as error:
            admission.leave()
            return error_response(error, dialect)
        except BaseException:
            admission.leave()
            raise
        return Delivery(
            request.app.state.gateway, chat, dialect, settings.server.keep_alive_s, admission.leave, exposure
        )

    return complete


async def _body(request: Request, limit: int) -> bytes:
    """The whole body. Raises ClientError: 413, 408."""
    too_large = ClientError(413, f"the body is larger than {limit} bytes", "body_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise too_large
    except TimeoutError as error:
        raise ClientError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", "body_timeout") from error
    return bytes(body)


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
    names = ["smallcall"] + (["smallcall/small"] if state.small else []) + (["smallcall/large"] if state.large else [])
    data = [{"id": name, "object": "model", "created": state.started, "owned_by": "smallcall"} for name in names]
    small = None if info is None else {"model": info.model, "weights_sha256": info.weights_sha256}
    large = state.large.model if state.large else None
    body = {"object": "list", "data": data, "smallcall": {"small": small, "large": large}}
    return Response(orjson.dumps(body), media_type="application/json")


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
    return Response(orjson.dumps(parts), 200 if all(parts.values()) else 503, media_type="application/json")


def _metrics(metrics: Metrics) -> Callable[[], Awaitable[Response]]:
    async def show() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return show
