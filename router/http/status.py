"""The gateway's own pages: models, health, readiness, metrics; and the errors of unknown paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import orjson
from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from router.dialects.chat_completions import ChatCompletions
from router.dialects.errors import ClientError
from router.dialects.messages import Messages
from router.dialects.parsing import MAX_NAME_CHARS, PINS
from router.dialects.request import Dialect
from router.dialects.responses import Responses
from router.http.response import error_response
from router.http.services import Services, services_of
from router.telemetry import Metrics
from slm.protocol import Info

CHAT, MESSAGES = ChatCompletions(), Messages()
DIALECTS: tuple[Dialect, ...] = (CHAT, MESSAGES, Responses())


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
        return error_response(error, _dialect(request))
    names = services.gate.visible(key, _own_names(services))
    data = [_shown(name, services.started) for name in names]
    small = None if info is None else _serving(info)
    large = services.large.model if services.large else None
    ours = {"small": small, "large": large, "policy": services.policies.view()}
    pages = {"has_more": False, "first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    body = {"object": "list", "data": data, **pages, "smallcall": ours}
    return Response(orjson.dumps(body), media_type="application/json")


async def model(request: Request) -> Response:
    """`GET /v1/models/{name}`: any name that a request of this caller may have; 404 for all others."""
    services = services_of(request.scope)
    name = request.path_params["name"]
    try:
        key = services.gate.caller(request.headers)
        side_is_missing = name in PINS and name not in _own_names(services)
        if side_is_missing or len(name) > MAX_NAME_CHARS or (key is not None and not key.allows(name)):
            raise ClientError(404, f"there is no model {name[:MAX_NAME_CHARS]}", "model_not_found", param="model")
    except ClientError as error:
        return error_response(error, _dialect(request))
    return Response(orjson.dumps(_shown(name, services.started)), media_type="application/json")


def _dialect(request: Request) -> Dialect:
    """Models are asked for in the same place by all clients; Anthropic's name their version."""
    return MESSAGES if "anthropic-version" in request.headers else CHAT


def _own_names(services: Services) -> list[str]:
    return (
        ["smallcall"]
        + (["smallcall/small"] if services.small else [])
        + (["smallcall/large"] if services.large else [])
    )


def _shown(name: str, started: int) -> dict[str, object]:
    """A model as OpenAI's clients read it and, beside it, as Anthropic's do."""
    ours = {"id": name, "object": "model", "created": started, "owned_by": "smallcall"}
    return {
        **ours,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(started, UTC).isoformat(),
    }


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
