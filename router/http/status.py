"""The gateway's own pages: models, health, readiness, metrics; and the errors of unknown paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from router.dialects.chat_completions import ChatCompletions
from router.dialects.errors import ClientError
from router.dialects.messages import Messages
from router.dialects.request import Dialect
from router.dialects.responses import Responses
from router.http.response import error_response
from router.http.services import services_of
from router.telemetry import Metrics
from slm.protocol import Info

CHAT = ChatCompletions()
DIALECTS: tuple[Dialect, ...] = (CHAT, Messages(), Responses())


async def http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the shape of the dialect that the path belongs to."""
    assert isinstance(error, HTTPException)
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    path = request.url.path.removeprefix("/v1")
    dialect = next((one for one in DIALECTS if path.startswith(one.path)), CHAT)
    return error_response(ClientError(error.status_code, str(error.detail), code), dialect)


async def gone(request: Request, error: Exception) -> Response:
    """The client left before its body was there: nobody reads this."""
    return Response(status_code=499)


async def models(request: Request) -> Response:
    """`GET /v1/models`: what a client may name, and beside it what the gateway drafts and judges with."""
    services = services_of(request.scope)
    info = services.small.info if services.small is not None else None
    try:
        key = services.gate.caller(request.headers)
    except ClientError as error:
        return error_response(error, CHAT)
    names = (
        ["smallcall"]
        + (["smallcall/small"] if services.small else [])
        + (["smallcall/large"] if services.large else [])
    )
    names = services.gate.visible(key, names)
    data = [{"id": name, "object": "model", "created": services.started, "owned_by": "smallcall"} for name in names]
    small = None if info is None else _serving(info)
    large = services.large.model if services.large else None
    ours = {"small": small, "large": large, "policy": services.policies.view()}
    body = {"object": "list", "data": data, "smallcall": ours}
    return Response(orjson.dumps(body), media_type="application/json")


def _serving(info: Info) -> dict[str, object]:
    """The settings that drafts are made with: a trace keeps it, and a certificate is bound to it."""
    return {
        "model": info.model,
        "weights_sha256": info.weights_sha256,
        "adapter_sha256": info.adapter_sha256,
        "pattern_version": info.pattern_version,
        "dtype": info.dtype,
        "grammar": True,
    }


async def healthy() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


async def ready(request: Request) -> Response:
    """Report for each part whether it can work; 503 until all that is configured can."""
    services = services_of(request.scope)
    parts = {"ledger": await services.ledger.ping()}
    if services.small is not None:
        parts["small"] = services.small.info is not None
    if services.large is not None:
        parts["large"] = services.large.ready
    body = {**parts, "certificates": services.policies.view()["state"]}
    return Response(orjson.dumps(body), 200 if all(parts.values()) else 503, media_type="application/json")


def metrics_route(metrics: Metrics) -> Callable[[Request], Awaitable[Response]]:
    async def show(request: Request) -> Response:
        try:
            services_of(request.scope).gate.metrics_reader(request.headers)
        except ClientError as error:
            return error_response(error, CHAT)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return show
