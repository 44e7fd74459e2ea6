"""The server: `/v1/completions`, `/v1/models`, `/healthz`, over whatever completes.

One task a request; where the client leaves, its completion is cancelled and its slot is free. Bounded: bodies, requests
under way, the worker's queue, the time of a completion. Errors are in OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from router.completions.body import CompletionBody, read_body
from router.completions.rendering import Telling
from router.dialects.errors import ClientError, wrong
from router.http.body import whole_body
from router.http.response import until_left
from router.small.worker_client import SmallModelError
from slm import protocol

BODY_BYTES = 8 << 20
MAX_UNDER_WAY = 256
DEADLINE_S = 120.0
_JSON = {"content-type": "application/json"}
_EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Completing(Protocol):
    """Whatever completes; see `router.small.supervisor.Supervisor`."""

    @property
    def info(self) -> protocol.Info | None: ...

    def events(self, command: protocol.CompleteCommand) -> AbstractAsyncContextManager[AsyncIterator[protocol.Event]]:
        """Raises SmallModelError where it cannot."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The server's options: its model's name (the worker's own where None), the key that callers must have (none
    where None), and the time that a completion may take, its place in the queue included."""

    model: str | None = None
    api_key: str | None = None
    deadline_s: float = DEADLINE_S


def create_engine_app(
    completing: Completing,
    terms: Terms | None = None,
    running: Callable[[], AbstractAsyncContextManager[object]] = contextlib.nullcontext,
) -> FastAPI:
    """The ASGI application. `running` is entered while it serves."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running():
            yield

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        return _error_response(ClientError(error.status_code, str(error.detail), code))

    endpoint = CompletionsApp(completing, terms or Terms())
    app = FastAPI(lifespan=lifespan, openapi_url=None, exception_handlers={HTTPException: failed})
    app.router.routes.append(Route("/v1/completions", endpoint, methods=["POST"]))
    app.add_api_route("/v1/models", endpoint.models, methods=["GET"])
    app.add_api_route("/healthz", endpoint.healthy, methods=["GET"])
    return app


class CompletionsApp:
    """The routes. As an ASGI application it is `/v1/completions`."""

    def __init__(self, completing: Completing, terms: Terms) -> None:
        self._completing, self._terms = completing, terms
        self._started = int(time.time())
        self._under_way = 0

    async def healthy(self) -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: the one model, and what it was loaded from; 503 while it is being loaded."""
        try:
            self._admit(request)
            info = self._info()
        except ClientError as error:
            return _error_response(error)
        model = {
            "id": self._terms.model or info.model,
            "object": "model",
            "created": self._started,
            "owned_by": "smallcall",
            "max_model_len": info.context_tokens,
            "smallcall": {
                "weights_sha256": info.weights_sha256,
                "adapter_sha256": info.adapter_sha256,
                "pattern_version": info.pattern_version,
                "dtype": info.dtype,
            },
        }
        return Response(orjson.dumps({"object": "list", "data": [model]}), headers=_JSON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Implements the ASGI call: answers one request."""
        request = Request(scope, receive)
        try:
            self._admit(request)
            info = self._info()
            if self._under_way >= MAX_UNDER_WAY:
                raise ClientError(503, "too many requests are under way", "overloaded", retry_after_s=1)
            self._under_way += 1
            try:
                body = read_body(await whole_body(request, BODY_BYTES), self._terms.model or info.model)
                await _while_there(self._answered(body, _Answer(send)), receive)
            finally:
                self._under_way -= 1
        except ClientError as error:
            await _error_response(error)(scope, receive, send)
        except ClientDisconnect:
            pass  # Nobody reads an answer.

    def _admit(self, request: Request) -> None:
        """Raises ClientError: 401."""
        key = self._terms.api_key
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            raise ClientError(401, "no valid key", "invalid_api_key")

    def _info(self) -> protocol.Info:
        """Raises ClientError: 503."""
        if self._completing.info is None:
            raise ClientError(503, "the model is being loaded", "model_loading", retry_after_s=1)
        return self._completing.info

    async def _answered(self, body: CompletionBody, answer: _Answer) -> None:
        """Answer, whole or streamed. Raises ClientError as long as nothing was sent."""
        telling = Telling(body)
        try:
            async with self._completing.events(body.command(self._terms.deadline_s)) as events:
                async for event in events:
                    await _tell(event, body, telling, answer)
        except SmallModelError as error:
            await answer.fail(ClientError(503, str(error), error.code, retry_after_s=1))
        except ClientError as error:
            await answer.fail(error)


async def _tell(event: protocol.Event, body: CompletionBody, telling: Telling, answer: _Answer) -> None:
    """One event of the worker. Raises ClientError where it is a failure."""
    match event:
        case protocol.DraftFailed(code=code, message=message):
            raise _failure(code, message, body)
        case protocol.Started():
            telling.start(event)
        case protocol.Token() if body.stream:
            if (chunk := telling.chunk(event)) is not None:
                await answer.event(chunk)
        case protocol.Token():
            telling.add(event)
        case protocol.Done(finish="deadline"):
            raise _late()
        case protocol.Done():
            await (answer.end(telling.last(event)) if body.stream else answer.whole(telling.whole(event)))


class _Answer:
    """The response to one request."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False

    async def whole(self, body: Mapping[str, Any]) -> None:
        await self._start(_JSON)
        await self._write(orjson.dumps(body), more=False)

    async def event(self, chunk: Mapping[str, Any]) -> None:
        await self._start(_EVENTS)
        await self._write(b"data: " + orjson.dumps(chunk) + b"\n\n", more=True)

    async def end(self, chunks: list[Mapping[str, Any]]) -> None:
        for chunk in chunks:
            await self.event(chunk)
        await self._write(b"data: [DONE]\n\n", more=False)

    async def fail(self, error: ClientError) -> None:
        """Tell of it in the stream; where nothing was sent yet, raise it."""
        if not self._started:
            raise error
        await self.event(error.body())
        await self._write(b"", more=False)

    async def _start(self, headers: Mapping[str, str]) -> None:
        if not self._started:
            self._started = True
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _write(self, body: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


async def _while_there(answered: Any, receive: Receive) -> None:
    """Await the answer, or cancel it where the client leaves first."""
    answering, leaving = asyncio.ensure_future(answered), asyncio.ensure_future(until_left(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (answering, leaving):
            if not task.done():
                task.cancel()
        await asyncio.wait({answering, leaving})
    if not answering.cancelled():
        answering.result()


def _failure(code: str, message: str, body: CompletionBody) -> ClientError:
    """The worker's failure as OpenAI's servers tell it."""
    if code == "prompt_too_long":
        return ClientError(
            400, f"longer than the model's context: {message}", "context_length_exceeded", param="prompt"
        )
    if code == "schema_unsupported":
        return wrong("structured_outputs.grammar" if body.structured_outputs else "grammar", message)
    if code == "bad_request":
        return wrong(message.partition(":")[0], message.partition(": ")[2])
    if code in ("queue_full", "wait_too_long"):
        return ClientError(429, message, code, retry_after_s=1)
    return _late() if code == "deadline" else ClientError(500, "the completion failed", "internal")


def _late() -> ClientError:
    return ClientError(504, "the completion took too long", "deadline")


def _error_response(error: ClientError) -> Response:
    return Response(orjson.dumps(error.body()), error.status, headers={**_JSON, **error.headers()})
