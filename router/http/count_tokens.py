"""`POST /v1/messages/count_tokens`: what a Messages request would cost the large model in tokens.

Where the provider speaks Messages its own count is passed on; else it is litellm's estimate for the configured model,
and a header says so. Nothing is decided, so there is no row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from fastapi import Request, Response

from router.access.gate import Access
from router.cascade.escalation import told
from router.dialects.errors import ClientError
from router.dialects.messages import Messages, read_request
from router.dialects.request import ChatRequest
from router.http.admission import Admission, Stay
from router.http.response import error_response
from router.upstream.large_model import UpstreamError
from router.upstream.passthrough import Passthrough
from router.upstream.translated import LitellmModel

MAX_ESTIMATED_BYTES = 4 * 1024 * 1024
"""Of a body whose tokens are estimated here: more than a million tokens of text."""
_DIALECT = Messages()


class TokenCounter:
    """Counts with one large model."""

    def __init__(self, translated: LitellmModel, forwarder: Passthrough) -> None:
        self._translated, self._forwarder = translated, forwarder

    async def count(self, chat: ChatRequest) -> tuple[int, bool]:
        """The tokens of the request, and whether that is an estimate. Raises UpstreamError, ClientError."""
        if self._forwarder.speaks("messages"):
            return await self._forwarder.count_tokens(chat), False
        if chat.size_bytes > MAX_ESTIMATED_BYTES:
            message = f"the body is larger than {MAX_ESTIMATED_BYTES} bytes, too much for an estimate"
            raise ClientError(413, message, "body_too_large")
        return await self._translated.count_tokens(chat.body), True


def counting_route(
    admission: Admission, body: Callable[[Request, Stay], Awaitable[bytes]]
) -> Callable[[Request], Awaitable[Response]]:
    """The route; `body` reads a request's bytes within bounds."""

    async def count(request: Request) -> Response:
        access: Access = request.app.state.access
        try:
            key = access.caller(request.headers)
            stay = admission.enter()
        except ClientError as error:
            return error_response(error, _DIALECT)
        try:
            access.arrive(key)
            chat = read_request(await body(request, stay), request.headers, counting=True)
            grant = await access.admit(key, chat, counted_only=True)
            if grant is not None:
                grant.drop()
            return await _counted(request, chat)
        except ClientError as error:
            return error_response(error, _DIALECT)
        finally:
            stay.leave()

    return count


async def _counted(request: Request, chat: ChatRequest) -> Response:
    counter: TokenCounter | None = request.app.state.counter
    if counter is None:
        raise ClientError(503, "no large model is configured that could count", "large_not_configured")
    try:
        tokens, estimated = await counter.count(chat)
    except UpstreamError as error:
        raise told(error) from error
    headers = {"x-smallcall-token-count": "estimate"} if estimated else {}
    return Response(orjson.dumps({"input_tokens": tokens}), media_type="application/json", headers=headers)
