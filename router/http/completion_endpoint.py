"""Requests for answers over ASGI: read, let in, and handed to a delivery, without routing and middleware."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from starlette.datastructures import State
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from router.access.gate import Access
from router.access.keys import VirtualKey
from router.cascade.decision import Terms
from router.constants import Constants
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest, Dialect
from router.http.admission import Admission, Stay
from router.http.response import Delivery, Sending, error_response
from router.selection.assignment import Exposure
from router.selection.running_experiments import LiveExperiments
from router.selection.stickiness import Stickiness
from router.settings import OFFLOAD_BYTES, Settings
from router.telemetry import where

_log = structlog.get_logger("front")

BODY_TIMEOUT_S = 60.0
"""A client that takes longer to send its body gets a 408."""


class Front(FastAPI):
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


class Completion:
    """Answers requests of one dialect. An ASGI application: behind it stands no routing and no middleware."""

    def __init__(self, settings: Settings, admission: Admission, dialect: Dialect, constants: Constants) -> None:
        self._admission, self._dialect = admission, dialect
        self._constants, self._limit = constants, body_limit(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        sending = Sending(send)
        try:
            await self._answer(scope, receive, sending)
        except ClientError as error:  # a delivery tells its own errors
            await error_response(error, self._dialect)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody reads an answer
        except Exception as error:
            _log.error("crashed", where=where(error))
            if sending.begun:
                raise
            failure = ClientError(500, "the gateway failed", "internal_error")
            await error_response(failure, self._dialect)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, sending: Sending) -> None:
        """Raises ClientError, ClientDisconnect."""
        headers, state = _headers(scope), scope["app"].state
        access: Access = state.access
        key = access.caller(headers)
        stay = self._admission.enter()
        try:
            access.arrive(key)
            raw = await _body(headers, receive, self._limit, stay)
            delivery = await self._asked(state, key, headers, raw)
            await delivery.send(receive, sending)
        finally:
            stay.leave()

    async def _asked(self, state: State, key: VirtualKey | None, headers: Mapping[str, str], raw: bytes) -> Delivery:
        """Raises ClientError."""
        experiments: LiveExperiments = state.experiments
        assigned = experiments.assignment
        stickiness: Stickiness = state.stickiness
        key_id = key.key_id if key is not None else None

        def read() -> tuple[ChatRequest, Exposure | None, str | None]:
            chat = self._dialect.read(raw, headers)
            exposure = assigned.exposure(chat, headers, key_id) if assigned is not None else None
            return chat, exposure, stickiness.digest(chat, headers, key_id)

        chat, exposure, digest = await asyncio.to_thread(read) if len(raw) > OFFLOAD_BYTES else read()
        sticky = await stickiness.turn(chat, digest)
        grant = await state.access.admit(key, chat)
        state.outcomes.see(chat, key_id)
        return Delivery(state.gateway, chat, self._dialect, self._constants, Terms(exposure, grant, sticky))


def body_limit(settings: Settings) -> int:
    """Bytes that a body may have."""
    return int(settings.server.max_body_mb * 1024 * 1024)


async def whole_body(request: Request, limit: int, stay: Stay | None = None) -> bytes:
    """A request's whole body, held by `stay`. Raises ClientError: 413, 408, 503; ClientDisconnect."""
    return await _body(request.headers, request.receive, limit, stay)


def _headers(scope: Scope) -> dict[str, str]:
    """By their names in lower case; of several the first. They are looked up many times."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


async def _body(headers: Mapping[str, str], receive: Receive, limit: int, stay: Stay | None) -> bytes:
    """The whole body. Raises ClientError: 413, 408, 503; ClientDisconnect."""
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
                piece = message.get("body", b"")
                if len(body) + len(piece) > limit:
                    raise too_large
                if stay is not None:
                    stay.hold(len(piece))
                body += piece
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise ClientError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s", "body_timeout") from error
