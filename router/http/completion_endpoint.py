"""One completion from the ASGI call to the ledger row, from top to bottom: steps are named here and live elsewhere.

Rules that hold on every path: nothing of a draft is sent before its verdict; a request is escalated at most once and
never after the first byte; if the small side fails in any way, the large side answers; the row is committed before the
answer's end is sent, and also where the client has gone.

The server's task does the whole work of a request. When the client leaves, or takes nothing for too long, or the server
stops, that task is cancelled, which cancels the draft or the upstream call, and it ends by writing its row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from policies.types import Action
from router.access.keys import VirtualKey
from router.cascade.decision import Admission, Decision
from router.cascade.decision_extras import to_headers
from router.cascade.escalation import to_client_error
from router.cascade.gateway import Gateway, Reply
from router.cascade.refusals import not_servable_small
from router.constants import Constants
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest, Dialect
from router.http.body import body_limit, headers_of, read_body
from router.http.inflight import InflightLimit
from router.http.response import DisconnectWatch, EventStream, KeepAlive, TrackedSend, error_response, send_json
from router.http.services import Services, services_of
from router.selection.assignment import Exposure
from router.settings import OFFLOAD_BYTES, Server
from router.telemetry import where
from router.upstream.large_model import UpstreamError, UpstreamRejected

_log = structlog.get_logger("front")


class CompletionEndpoint:
    """Answers requests of one dialect. An ASGI application: behind it stands no routing and no middleware."""

    def __init__(self, server: Server, inflight: InflightLimit, dialect: Dialect, constants: Constants) -> None:
        self._inflight, self._dialect, self._constants = inflight, dialect, constants
        self._body_limit = body_limit(server)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Implements the ASGI call. What fails before there is a decision becomes an error in the client's dialect."""
        tracked = TrackedSend(send)
        try:
            await self._serve(scope, receive, tracked)
        except ClientError as error:
            await error_response(error, self._dialect)(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody reads an answer
        except Exception as error:
            _log.error("crashed", where=where(error))
            if tracked.begun:
                raise
            failure = ClientError(500, "the gateway failed", "internal_error")
            await error_response(failure, self._dialect)(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: TrackedSend) -> None:
        """Recognise the key, take a slot, read the body, admit, decide and respond. Raises ClientError,
        ClientDisconnect."""
        services, headers = services_of(scope), headers_of(scope)
        key = services.gate.caller(headers)
        slot = self._inflight.enter()
        try:
            services.gate.arrive(key)
            raw = await read_body(headers, receive, self._body_limit, slot)
            chat, admission = await admit(services, self._dialect, key, headers, raw)
            await self._respond(services.gateway, chat, admission, receive, send)
        finally:
            slot.leave()

    async def _respond(
        self, gateway: Gateway, chat: ChatRequest, admission: Admission, receive: Receive, send: TrackedSend
    ) -> None:
        """Answer, whole or as a stream; returns early where the client leaves."""
        watch = DisconnectWatch(receive, send, self._constants.write_timeout_s)
        try:
            decision = gateway.begin(chat, self._dialect, admission)
            await (self._respond_stream if chat.stream else self._respond_whole)(gateway, decision, send)
        except asyncio.CancelledError:
            if not watch.left:
                raise
            watch.forgive()
        finally:
            watch.stop()
            if admission.grant is not None:
                admission.grant.release()

    async def _respond_whole(self, gateway: Gateway, decision: Decision, send: Send) -> None:
        try:
            reply = await answer(gateway, decision)
        except ClientError as error:
            await send_json(send, error.status, self._dialect.error(error), error.headers())
            return
        try:
            await send_json(send, 200, reply.body or {}, to_headers(decision))
        finally:
            await reply.close()

    async def _respond_stream(self, gateway: Gateway, decision: Decision, send: Send) -> None:
        writer, out = decision.exchange.writer, EventStream(send)
        keep_alive = KeepAlive(out, self._constants.keep_alive_s, decision.decision_id, writer.keep_alive)
        try:
            try:
                reply = await answer(gateway, decision)
            except ClientError as error:
                if out.started:
                    await out.write(writer.failed(error))
                    await out.end()
                else:
                    await keep_alive.stop()
                    await send_json(send, error.status, self._dialect.error(error), error.headers())
                return
            try:
                await out.start(to_headers(decision))
                async for events in reply.events():
                    await out.write(events)
                await out.end()
            finally:
                await reply.close()
        finally:
            await keep_alive.stop()


async def admit(
    services: Services, dialect: Dialect, key: VirtualKey | None, headers: Mapping[str, str], raw: bytes
) -> tuple[ChatRequest, Admission]:
    """Read a request, and settle what is settled before it is decided: its experiment's arm, its conversation's turn,
    and what it may take of its key's limits. Raises ClientError."""
    assigned, stickiness = services.experiments.assignment, services.stickiness
    key_id = key.key_id if key is not None else None

    def read() -> tuple[ChatRequest, Exposure | None, str | None]:
        chat = dialect.read(raw, headers)
        exposure = assigned.exposure(chat, headers, key_id) if assigned is not None else None
        return chat, exposure, stickiness.digest(chat, headers, key_id)

    chat, exposure, digest = await asyncio.to_thread(read) if len(raw) > OFFLOAD_BYTES else read()
    sticky = await stickiness.turn(chat, digest)
    grant = await services.gate.admit(key, chat)
    services.outcomes.see(chat, key_id)
    return chat, Admission(exposure, grant, sticky)


async def answer(gateway: Gateway, decision: Decision) -> Reply:
    """Decide one request and commit its row: before a whole answer is sent, before the last events of a stream.

    Raises:
        ClientError: its row is committed already.
    """
    try:
        reply = await _decide(gateway, decision)
        await gateway.record(reply)
    except ClientError as error:
        await gateway.refuse(decision, error)
        raise
    except asyncio.CancelledError:
        await gateway.abandon(decision)
        raise
    except Exception as error:
        _log.error("crashed", where=where(error), decision_id=decision.decision_id)
        failure = ClientError(500, "the gateway failed; the decision id names the log line", "internal_error")
        await gateway.refuse(decision, failure)
        raise failure from error
    return reply


async def _decide(gateway: Gateway, decision: Decision) -> Reply:
    """Judge; then serve the draft, or escalate, or let the draft stand in. Raises ClientError."""
    decision.set_verdict(await gateway.judge(decision))
    if decision.verdict.action is Action.ANSWER:
        return gateway.serve_draft(decision)
    if decision.chat.pin == "small":
        raise not_servable_small(decision.chat, decision.verdict)
    try:
        return await gateway.escalate(decision)
    except UpstreamError as error:
        if isinstance(error, UpstreamRejected) or not gateway.may_stand_in(decision):
            raise to_client_error(error, decision.exchange.dialect.name) from error
    decision.reason = "upstream_unavailable"
    return gateway.serve_draft(decision)
