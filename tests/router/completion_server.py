"""A server of OpenAI completions that writes a given text, in either form in which servers tell log-probabilities."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

Form = Literal["vllm", "llamacpp", "without"]


HOLE = "\N{REPLACEMENT CHARACTER}"
END = "<|im_end|>"


class CompletionServer:
    """Writes `text` a character a token, a byte where a character has several, as byte-level models do.

    Every token is as sure as `logprob`, the next best at half that probability. In vLLM's form the text stays behind
    the tokens by as much as a stop may take back, and the end token is listed with the last of it; in llama.cpp's form
    it is a token without text.
    """

    def __init__(self, text: str, form: Form = "vllm", logprob: float = -0.1) -> None:
        self.text, self.form, self.logprob = text, form, logprob
        self.status, self.refusal = 200, ""
        self.breaks_after: int | None = None
        """Tokens behind which the connection is lost."""
        self.pause_s = 0.0
        self.finish = "stop"
        self.listed_last: tuple[str, ...] = (END,)
        """In vLLM's form: tokens behind the text."""
        self.torn: Literal["holes", "nothing"] = "holes"
        """In vLLM's form: a token inside a character is told as U+FFFD, or as nothing and the last one as the whole."""
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
        return StreamingResponse(self._chunks(self.bodies[-1]), media_type="text/event-stream")

    async def _chunks(self, body: dict[str, Any]) -> AsyncIterator[str]:
        kept = max((len(stop) - 1 for stop in body.get("stop", ())), default=0) if self.form == "vllm" else 0
        told = done = 0
        for place, character in enumerate(self.text):
            if place == self.breaks_after:
                return
            tokens = self._tokens(character)
            for count, token in enumerate(tokens, 1):
                await asyncio.sleep(self.pause_s)
                done += 1
                end = max(told, place + (count == len(tokens)) - kept)
                yield _event(self._choice(self.text[told:end], [token]), done)
                told = end
        last = [(own, b"") for own in self._listed_last()]
        choice = {**self._choice(self.text[told:], last), "finish_reason": self.finish}
        yield _event(choice if last else {**choice, "logprobs": None}, done + len(last))
        yield "data: [DONE]\n\n"

    def _listed_last(self) -> tuple[str, ...]:
        return self.listed_last if self.form == "vllm" else ("",) if self.form == "llamacpp" else ()

    def _tokens(self, character: str) -> list[tuple[str, bytes]]:
        """A character's tokens: each one's own text, and its byte or, of a single one, bytes."""
        raw = [bytes([byte]) for byte in character.encode()]
        if len(raw) == 1:
            return [(character, raw[0])]
        if self.form == "vllm" and self.torn == "nothing":
            return [("", byte) for byte in raw[:-1]] + [(character, raw[-1])]
        return [(HOLE, byte) for byte in raw]

    def _choice(self, text: str, tokens: list[tuple[str, bytes]]) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": self._logprobs(tokens), "finish_reason": None}

    def _logprobs(self, tokens: list[tuple[str, bytes]]) -> dict[str, Any] | None:
        second = self.logprob - 0.6931471805599453
        if self.form == "vllm":
            own = [token for token, _ in tokens]
            return {
                "tokens": own, "token_logprobs": [self.logprob] * len(own), "text_offset": [0] * len(own),
                "top_logprobs": [self._top(token, second) for token in own],
            }  # fmt: skip
        if self.form == "llamacpp":
            return {
                "content": [
                    {
                        "token": token, "bytes": list(raw), "logprob": self.logprob,
                        "top_logprobs": [
                            {"token": token, "logprob": self.logprob}, {"token": "\N{SNOWMAN}", "logprob": second}
                        ],
                    }
                    for token, raw in tokens
                ]
            }  # fmt: skip
        return None

    def _top(self, token: str, second: float) -> dict[str, float]:
        """By text: of two alternatives inside a character the less probable one stands for both."""
        return {token: second} if token in ("", HOLE) else {token: self.logprob, "\N{SNOWMAN}": second}


def _event(choice: dict[str, Any], tokens: int) -> str:
    usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": tokens + 7}
    return f"data: {json.dumps({'choices': [choice], 'usage': usage})}\n\n"
