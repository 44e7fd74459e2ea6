"""A recorded large model served as an OpenAI-compatible endpoint: for the demo, for tests, for load.

It answers `POST /v1/chat/completions`, whole or streamed, with what the model once answered to the same content (see
`evaluation.recorded.wire.content_key`), with the recorded tokens as usage and, if asked, at the recorded speed. What
was never asked gets a 404 that says so: nothing is made up. Where a recording has no tokens, `usage` is left out: the
cost is unknown, and a client that then estimates tokens estimates. Only the total latency was recorded: a stream is
paced evenly over it.

Not guaranteed: that the model would answer today as it did then, or so to another `tool_choice` than `auto`; another
choice is only served where the recorded answer satisfies it. The server is for loopback: it has no TLS and no limits
but the size of a request.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from aiohttp import web

from evaluation.cases.case import Case
from evaluation.cases.study_data import RecordedAnswer
from evaluation.recorded.faults import Cut, Disconnect, Garbage, Hang, Schedule, Status, never
from evaluation.recorded.index import NotServed, Recordings, served_name
from evaluation.recorded.wire import chunks, completion, error_body, usage

MAX_REQUEST_BYTES = 16 * 1024 * 1024
MAX_RECEIVED = 1000
"""The number of last requests that are kept."""

_SHUTDOWN_S = 1.0
_JSON = "application/json"


@dataclass(slots=True)
class Received:
    """One request as it was seen. Fields are None until known; `status` stays None where no response was finished."""

    ordinal: int
    body: Mapping[str, Any] | None = None
    model: str | None = None
    case_id: str | None = None
    status: int | None = None
    answered: bool = False
    """True once the last byte of a recorded answer was written."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class RecordedServer:
    """The endpoint: `async with RecordedServer(answers, cases) as server: ... server.url`."""

    def __init__(
        self,
        answers: Iterable[RecordedAnswer],
        cases: Iterable[Case],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: Literal["none", "recorded"] = "none",
        latency_scale: float = 1.0,
        api_key: str | None = None,
        faults: Schedule = never,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Port 0 takes a free one. With `api_key`, another bearer token gets a 401. `now` gives Unix seconds.

        Raises ValueError where latencies are wanted and not recorded, and where `Recordings` does.
        """
        self.recordings = Recordings(answers, cases)
        self._scale = latency_scale if latency == "recorded" else 0.0
        if latency == "recorded" and any(answer.latency_s is None for answer in self.recordings):
            raise ValueError("latencies were not recorded for this model")
        self._host, self._port = host, port
        self._api_key, self._faults, self._sleep, self._now = api_key, faults, sleep, now
        self._runner: web.AppRunner | None = None
        self._arrived = 0
        self.received: deque[Received] = deque(maxlen=MAX_RECEIVED)
        """The last requests, oldest first; one still under way has `status` None."""
        self.totals: Counter[str] = Counter()
        """Over all requests: `requests`, `answered`, and `prompt_tokens` and `completion_tokens` of whole answers."""

    @property
    def url(self) -> str:
        """The base URL, with `/v1`. Raises RuntimeError unless the server runs."""
        if self._runner is None or not self._runner.addresses:
            raise RuntimeError("the recorded server is not running")
        host, port = self._runner.addresses[0][:2]
        return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._complete)
        # A handler that hangs on purpose ends with its client, and never holds up the end of the server for long.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model", "owned_by": "recorded"} for name in self.recordings.models]
        return web.json_response({"object": "list", "data": models})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        seen = Received(self._arrived)
        self._arrived += 1
        self.totals["requests"] += 1
        self.received.append(seen)
        try:
            self._authorise(request)
            body = await _body(request)
            seen.body, seen.model = body, body.get("model")
            match self._faults(seen.ordinal):
                case Status(code=code, retry_after_s=retry_after_s):
                    return _failed(seen, code, retry_after_s)
                case Garbage():
                    seen.status = 200
                    return web.Response(body=b"\x00<html>not what was asked for", content_type=_JSON)
                case Disconnect():
                    _close(request)
                    return web.Response(status=500)
                case Hang(seconds=seconds):
                    await self._sleep(seconds)
                    return await self._answer(request, seen, body, None)
                case fault:
                    return await self._answer(request, seen, body, fault)
        except NotServed as error:
            seen.status = error.status
            return web.json_response(error.body, status=error.status)

    def _authorise(self, request: web.Request) -> None:
        if self._api_key is None:
            return
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._api_key.encode()):
            raise NotServed(401, "incorrect API key", code="invalid_api_key")

    async def _answer(
        self, request: web.Request, seen: Received, body: Mapping[str, Any], cut: Cut | None
    ) -> web.StreamResponse:
        recorded = self.recordings.find(body)
        seen.case_id = recorded.id
        if body.get("stream"):
            response = await self._stream(request, recorded, body, seen.ordinal, cut)
        else:
            response = await self._whole(request, recorded, seen.ordinal, cut)
        if cut is None:
            self._count(seen, recorded)
        return response

    async def _whole(
        self, request: web.Request, recorded: RecordedAnswer, ordinal: int, cut: Cut | None
    ) -> web.StreamResponse:
        await self._sleep((recorded.latency_s or 0.0) * self._scale)
        text = json.dumps(completion(recorded, **self._frame(recorded, ordinal))).encode()
        response = web.StreamResponse(headers={"Content-Type": _JSON, "Content-Length": str(len(text))})
        await response.prepare(request)
        await response.write(text if cut is None else text[: len(text) // 2])
        return await _end(request, response, cut)

    async def _stream(
        self, request: web.Request, recorded: RecordedAnswer, body: Mapping[str, Any], ordinal: int, cut: Cut | None
    ) -> web.StreamResponse:
        options = body.get("stream_options")
        include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        events = [
            f"data: {json.dumps(chunk)}\n\n".encode()
            for chunk in chunks(recorded, include_usage=include_usage, **self._frame(recorded, ordinal))
        ]
        pause_s = (recorded.latency_s or 0.0) * self._scale / len(events)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        for event in events if cut is None else events[: cut.chunks]:
            await self._sleep(pause_s)
            await response.write(event)
        if cut is None:
            await response.write(b"data: [DONE]\n\n")
        return await _end(request, response, cut)

    def _frame(self, recorded: RecordedAnswer, ordinal: int) -> dict[str, Any]:
        return {
            "completion_id": f"chatcmpl-recorded-{ordinal}",
            "created": int(self._now()),
            "model": served_name(recorded.model),
        }

    def _count(self, seen: Received, recorded: RecordedAnswer) -> None:
        tokens = usage(recorded) or {"prompt_tokens": 0, "completion_tokens": 0}
        seen.status, seen.answered = 200, True
        seen.prompt_tokens, seen.completion_tokens = tokens["prompt_tokens"], tokens["completion_tokens"]
        self.totals.update(answered=1, prompt_tokens=seen.prompt_tokens, completion_tokens=seen.completion_tokens)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except web.HTTPRequestEntityTooLarge as error:
        raise NotServed(413, f"the body is larger than {MAX_REQUEST_BYTES} bytes", code="too_large") from error
    except (ValueError, RecursionError) as error:
        raise NotServed(400, "the body is not JSON", code="invalid_json") from error
    if not isinstance(body, dict):
        raise NotServed(400, "the body is not a JSON object", code="invalid_json")
    return body


def _failed(seen: Received, code: int, retry_after_s: float | None) -> web.Response:
    seen.status = code
    kind, word = ("rate_limit_error", "rate_limit_exceeded") if code == 429 else ("server_error", "injected_fault")
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    return web.json_response(error_body("injected fault", kind=kind, code=word), status=code, headers=headers)


async def _end(request: web.Request, response: web.StreamResponse, cut: Cut | None) -> web.StreamResponse:
    if cut is None:
        await response.write_eof()
    else:
        _close(request)
    return response


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


async def serve(server: RecordedServer, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Run `server` until `stop` is set; `ready` gets the base URL once it accepts. OSError: the port is taken."""
    async with server:
        ready(server.url)
        await stop.wait()
