"""A server of OpenAI completions that writes a given text, in either form in which servers tell log-probabilities."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

Form = Literal["vllm", "llamacpp", "without"]


class CompletionServer:
    """Writes `text` a character a token; every token as sure as `logprob`, the next best at half that probability."""

    def __init__(self, text: str, form: Form = "vllm", logprob: float = -0.1) -> None:
        self.text, self.form, self.logprob = text, form, logprob
        self.status, self.refusal = 200, ""
        self.breaks_after: int | None = None
        """Tokens behind which the connection is lost."""
        self.pause_s = 0.0
        self.finish = "stop"
        self.there = True
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.app = FastAPI()
        self.app.add_api_route("/v1/models", self._models, methods=["GET"])
        self.app.add_api_route("/v1/completions", self._completions, methods=["POST"])

    async def _models(self) -> Response:
        return Response("{}", 200 if self.there else 503)

    async def _completions(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        self.bodies.append(await request.json())
        if self.status != 200:
            return Response(self.refusal, self.status)
        return StreamingResponse(self._chunks(), media_type="text/event-stream")

    async def _chunks(self) -> AsyncIterator[str]:
        for place, character in enumerate(self.text):
            if place == self.breaks_after:
                return
            await asyncio.sleep(self.pause_s)
            choice = {"index": 0, "text": character, "logprobs": self._logprobs(character), "finish_reason": None}
            usage = {"prompt_tokens": 7, "completion_tokens": place + 1, "total_tokens": place + 8}
            yield f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n"
        last = {"index": 0, "text": "", "logprobs": None, "finish_reason": self.finish}
        yield f"data: {json.dumps({'choices': [last]})}\n\ndata: [DONE]\n\n"

    def _logprobs(self, token: str) -> dict[str, Any] | None:
        second = self.logprob - 0.6931471805599453
        if self.form == "vllm":
            return {
                "tokens": [token], "token_logprobs": [self.logprob], "text_offset": [0],
                "top_logprobs": [{token: self.logprob, "\N{SNOWMAN}": second}],
            }  # fmt: skip
        if self.form == "llamacpp":
            tops = [{"token": token, "logprob": self.logprob}, {"token": "\N{SNOWMAN}", "logprob": second}]
            *head, last = [bytes([byte]) for byte in token.encode()]  # a token a byte, as byte-level models have them
            told = [{"token": "\N{REPLACEMENT CHARACTER}", "bytes": list(byte)} for byte in head]
            told.append({"token": token if not head else "\N{REPLACEMENT CHARACTER}", "bytes": list(last)})
            return {"content": [{**one, "logprob": self.logprob, "top_logprobs": tops} for one in told]}
        return None
