"""`POST /v1/messages/count_tokens`: what a Messages request would cost the large model in tokens.

Where the provider speaks Messages its own count is passed on; else it is litellm's estimate for the configured model,
and a header says so. Nothing is decided, so there is no row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from fastapi import Request, Response

from router.cascade.escalation import to_client_error
from router.dialects.errors import ClientError
from router.dialects.messages import Messages, read_request
from router.dialects.request import ChatRequest
from router.http.inflight import InflightLimit, InflightSlot
from router.http.response import error_response
from router.http.services import services_of
from router.upstream.large_model import UpstreamError
from router.upstream.token_counter import TokenCounter

_DIALECT = Messages()


def counting_route(
    inflight: InflightLimit, body: Callable[[Request, InflightSlot], Awaitable[bytes]]
) -> Callable[[Request], Awaitable[Response]]:
    """The route; `body` reads a request's bytes within bounds."""

    async def count(request: Request) -> Response:
        services = services_of(request.scope)
        gate = services.gate
        try:
            key = gate.caller(request.headers)
            slot = inflight.enter()
        except ClientError as error:
            return error_response(error, _DIALECT)
        try:
            gate.arrive(key)
            chat = read_request(await body(request, slot), request.headers, counting=True)
            grant = await gate.admit(key, chat, counted_only=True)
            if grant is not None:
                grant.release()
            return await _counted(services.counter, chat)
        except ClientError as error:
            return error_response(error, _DIALECT)
        finally:
            slot.leave()

    return count


async def _counted(counter: TokenCounter | None, chat: ChatRequest) -> Response:
    if counter is None:
        raise ClientError(503, "no large model is configured that could count", "large_not_configured")
    try:
        tokens, estimated = await counter.count(chat)
    except UpstreamError as error:
        raise to_client_error(error, "messages") from error
    headers = {"x-smallcall-token-count": "estimate"} if estimated else {}
    return Response(orjson.dumps({"input_tokens": tokens}), media_type="application/json", headers=headers)
