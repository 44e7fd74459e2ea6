"""The composition root: settings → objects → routes. The lifespan owns whatever lives."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from policies.baselines import make_policy
from router.dialects.chat import ClientError
from router.dialects.chat_completions import read_request
from router.gateway import Gateway, Reply
from router.ledger import Ledger
from router.local import SmallModel
from router.settings import Settings
from router.supervisor import Supervisor, WorkerCommand
from router.telemetry import Metrics
from router.upstream import LargeModel
from router.upstream.translated import LitellmModel

T = TypeVar("T")


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
            backend = small
            if backend is None and model_folder is not None and settings.small.enabled:
                backend = await stack.enter_async_context(_worker(settings, model_folder, stack).running())
            upstream = large
            if upstream is None and settings.large.model:
                upstream = LitellmModel(settings.large, random.Random())
                upstream.warm_up()
            app.state.ledger, app.state.small, app.state.large = ledger, backend, upstream
            app.state.gateway = Gateway(settings, make_policy(settings.policy), ledger, metrics, backend, upstream)
            yield

    app = FastAPI(title="smallcall", lifespan=lifespan, openapi_url=None)
    app.add_api_route("/v1/chat/completions", _complete(settings), methods=["POST"])
    app.add_api_route("/v1/models", _models, methods=["GET"])
    app.add_api_route("/healthz", _healthy, methods=["GET"])
    app.add_api_route("/readyz", _ready, methods=["GET"])
    app.add_api_route("/metrics", _metrics(metrics), methods=["GET"])
    return app


def _worker(settings: Settings, model_folder: Path, stack: contextlib.AsyncExitStack) -> Supervisor:
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smallcall-"))
    small = settings.small
    socket = Path(folder) / "worker.sock"
    return Supervisor(
        WorkerCommand(socket, model_folder, small.adapter_folder, small.threads, small.max_queue, small.dtype)
    )


def _complete(settings: Settings) -> Any:
    limit = int(settings.server.max_body_mb * 1024 * 1024)

    async def complete(request: Request) -> Response:
        try:
            chat = read_request(await _body(request, limit))
            gateway: Gateway = request.app.state.gateway
            reply = await _unless_disconnected(request, gateway.answer(chat))
        except ClientError as error:
            return _error(error)
        if reply is None:
            return Response(status_code=499)
        return _response(reply)

    return complete


def _response(reply: Reply) -> Response:
    headers = reply.decision.headers()
    if reply.events is not None:
        return StreamingResponse(
            reply.events, media_type="text/event-stream", headers=headers | {"cache-control": "no-cache"}
        )
    return Response(orjson.dumps(reply.body), media_type="application/json", headers=headers)


def _error(error: ClientError) -> Response:
    headers = {"retry-after": f"{error.retry_after_s:.0f}"} if error.retry_after_s is not None else {}
    return Response(
        orjson.dumps(error.body()), status_code=error.status, media_type="application/json", headers=headers
    )


async def _body(request: Request, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise ClientError(413, f"the body is larger than {limit} bytes", "body_too_large")
        pieces.append(piece)
    return b"".join(pieces)


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None where the client left first; then `work` is cancelled."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work)
    watching = asyncio.create_task(left())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            return None
        return working.result()
    finally:
        watching.cancel()
        working.cancel()


async def _models(request: Request) -> Response:
    state = request.app.state
    info = state.small.info if state.small is not None else None
    names = ["smallcall"] + (["smallcall/small"] if state.small else []) + (["smallcall/large"] if state.large else [])
    data = [{"id": name, "object": "model", "created": int(time.time()), "owned_by": "smallcall"} for name in names]
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
        parts["large"] = getattr(state.large, "ready", True)
    return Response(orjson.dumps(parts), 200 if all(parts.values()) else 503, media_type="application/json")


def _metrics(metrics: Metrics) -> Any:
    async def show() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return show
