"""The mark of `make bench-gateway` that a Python gateway could reach: FastAPI and aiohttp, bytes in, bytes out.

Nothing is parsed, judged, counted or kept. `python -m bench.gateway_bare PORT UPSTREAM_PORT`; with `raw` behind them,
the same as a plain ASGI application without FastAPI.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

_HEADERS = {"content-type": "application/json", "authorization": "Bearer upstream"}


def with_fastapi(url: str) -> FastAPI:
    """A route of FastAPI's."""
    sessions: list[aiohttp.ClientSession] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            sessions.append(session)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        answer = await sessions[0].post(url, data=await request.body(), headers=_HEADERS)
        kind = answer.headers["content-type"]
        if not kind.startswith("text/event-stream"):
            return Response(await answer.read(), answer.status, media_type=kind)
        return StreamingResponse(answer.content.iter_any(), answer.status, media_type=kind)

    return app


def raw(url: str) -> Any:
    """An ASGI application by hand."""
    sessions: list[aiohttp.ClientSession] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            sessions.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await sessions[0].close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        async with sessions[0].post(url, data=body, headers=_HEADERS) as answer:
            kind = answer.headers["content-type"].encode()
            await send({"type": "http.response.start", "status": answer.status, "headers": [(b"content-type", kind)]})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


if __name__ == "__main__":
    address = f"http://127.0.0.1:{sys.argv[2]}/v1/chat/completions"
    application = raw(address) if "raw" in sys.argv[3:] else with_fastapi(address)
    uvicorn.run(application, port=int(sys.argv[1]), log_level="warning", access_log=False)
