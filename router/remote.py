"""A completion server as the small model: any that speaks OpenAI's `/completions` with log-probabilities.

The prompt is rendered here, by the same pattern as the worker's, and sent as text. Its control tokens must be the
served model's own, so what a client spells like one is broken up. Guided decoding is the server's option: `vllm`
(`structured_outputs.grammar`) or `llamacpp` (`grammar`), both by `slm.gbnf`; `none` leaves the model free.

A server that tells no log-probabilities is an error: nothing could be judged by. What else such a server does not tell
is NaN: entropy and feasible mass, the margin where fewer than two alternatives come; and no token counts as forced. Our
own endpoint (`router.completions`) tells all of these.
Log-probabilities are those of the whole distribution only if the server says them before its grammar: vLLM does in its
default mode `raw_logprobs`, llama.cpp without `post_sampling_probs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Self

import aiohttp
import orjson
import structlog

from router.local import CONNECT_TIMEOUT_S, SmallModelError
from slm import gbnf, pattern, protocol
from slm.pattern import PatternError, Span, SpanTracker

Guided = Literal["vllm", "llamacpp", "none"]

_log = structlog.get_logger("remote")
_NAN = math.nan
_LINE_BYTES = 1 << 20
"""Longest line of a stream."""
_ANSWER_CHARS_A_TOKEN = 64
"""More text than this for each token that was asked for is not a draft."""
_REFUSAL_BYTES = 4096
_FRAMES = {"chatml": pattern.CHATML, "plain": pattern.PLAIN}
_TOP = 2
"""Alternatives asked for: enough for the margin."""


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """Where the server is and what it can do."""

    api_base: str
    """Without a slash at the end, `/v1` included."""
    model: str
    api_key: str | None = None
    frame: Literal["chatml", "plain"] = "chatml"
    guided: Guided = "vllm"
    check_every_s: float = 5.0


class RemoteModel:
    """A `SmallModel` behind HTTP; belongs to one event loop."""

    def __init__(self, server: RemoteServer) -> None:
        self._server = server
        self._frame = _FRAMES[server.frame]
        self._session: aiohttp.ClientSession | None = None
        self.info: protocol.Info | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Keep the connections, and look from time to time whether the server is there, until the block ends."""
        headers = {"Authorization": f"Bearer {self._server.api_key}"} if self._server.api_key else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with aiohttp.ClientSession(
            headers=headers, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=_LINE_BYTES
        ) as session:
            self._session = session
            task = asyncio.create_task(self._watch(session), name="remote-small-model")
            try:
                yield self
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.info = self._session = None

    def events(self, command: protocol.DraftCommand) -> AbstractAsyncContextManager[AsyncIterator[protocol.Event]]:
        """See `SmallModel.events`."""
        if self._session is None or self.info is None:
            raise SmallModelError("worker_unavailable", "the completion server was not seen yet")
        return self._events(self._session, command)

    @contextlib.asynccontextmanager
    async def _events(
        self, session: aiohttp.ClientSession, command: protocol.DraftCommand
    ) -> AsyncIterator[AsyncIterator[protocol.Event]]:
        body = orjson.dumps(self._body(command))
        try:
            async with (
                asyncio.timeout(command.deadline_s),
                session.post(
                    f"{self._server.api_base}/completions", data=body, headers={"Content-Type": "application/json"}
                ) as response,
            ):
                if response.status != 200:
                    raise await _refusal(response)
                yield _told(response.content, command.max_tokens)
        except TimeoutError as error:
            raise SmallModelError("draft_timeout", "the completion server took too long") from error
        except aiohttp.ClientConnectorError as error:
            raise SmallModelError("worker_unavailable", "the completion server is not there") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise SmallModelError("worker_lost", "the completion server went away") from error

    def _body(self, command: protocol.DraftCommand) -> dict[str, Any]:
        try:
            prompt = prompt_text(command, self._frame)
            guide = self._guide(command)
        except (PatternError, ValueError, KeyError, TypeError) as error:
            raise SmallModelError("draft_refused", f"the request cannot be drafted: {type(error).__name__}") from error
        return {
            "model": self._server.model,
            "prompt": prompt,
            "max_tokens": command.max_tokens,
            "temperature": 0,
            "logprobs": _TOP,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "stop": ["\n\n"],
            **guide,
        }

    def _guide(self, command: protocol.DraftCommand) -> dict[str, Any]:
        if not command.grammar or self._server.guided == "none":
            return {}
        grammar = gbnf.draft_grammar(
            command.tools, command.tool_choice, command.forced_tool, parallel=command.parallel_tool_calls
        )
        return (
            {"grammar": grammar} if self._server.guided == "llamacpp" else {"structured_outputs": {"grammar": grammar}}
        )

    async def _watch(self, session: aiohttp.ClientSession) -> None:
        while True:
            there = await self._there(session)
            if there != (self.info is not None):
                _log.info("remote_seen" if there else "remote_lost", model=self._server.model)
            self.info = self._told_info() if there else None
            await asyncio.sleep(self._server.check_every_s)

    async def _there(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S), session.get(f"{self._server.api_base}/models") as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return False

    def _told_info(self) -> protocol.Info:
        """What can be said of a model that others serve: its weights are known by name only."""
        return protocol.Info(
            protocol=protocol.PROTOCOL_VERSION,
            model=self._server.model,
            weights_sha256="unknown",
            adapter_sha256=None,
            pattern_version=pattern.PATTERN_VERSION,
            architecture="remote",
            dtype="unknown",
            context_tokens=0,
        )


def prompt_text(command: protocol.DraftCommand, frame: pattern.Frame) -> str:
    """The prompt as text in which only our own control tokens are whole. Raises: PatternError."""
    controls = [control for control in (frame.open_control, frame.close_control) if control]
    parts = []
    for segment in pattern.render_prompt(command.messages, command.tools, frame):
        text = segment.text
        if not segment.control and controls:
            text = text.replace("<|", "< |")
        parts.append(text)
    return "".join(parts)


async def _refusal(response: aiohttp.ClientResponse) -> SmallModelError:
    """What a status says; its text only tells a prompt that is too long from other refusals, and is not passed on."""
    text = (await response.content.read(_REFUSAL_BYTES)).decode(errors="replace").lower()
    if response.status in (429, 503):
        return SmallModelError("queue_full", "the completion server is busy")
    if response.status == 413 or (response.status == 400 and "context" in text):
        return SmallModelError("prompt_too_long", "the prompt is longer than the completion server takes")
    if response.status < 500:
        return SmallModelError("draft_refused", f"the completion server refused: HTTP {response.status}")
    return SmallModelError("worker_failed", f"the completion server failed: HTTP {response.status}")


async def _told(stream: aiohttp.StreamReader, max_tokens: int) -> AsyncIterator[protocol.Event]:
    """The events of a stream of completion chunks. Raises SmallModelError."""
    telling = _Telling(max_tokens)
    try:
        async for line in stream:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            for event in telling.read(orjson.loads(data)):
                yield event
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SmallModelError("worker_lost", "the completion server's answer cannot be read") from error
    for event in telling.end():
        yield event


class _Telling:
    """Chunks of one completion in the worker's words."""

    def __init__(self, max_tokens: int) -> None:
        self._most = max_tokens * _ANSWER_CHARS_A_TOKEN
        self._began = time.monotonic()
        self._first_s: float | None = None
        self._text, self._tokens, self._spans = "", 0, SpanTracker()
        self._planned = False
        self._finish: str | None = None

    def read(self, chunk: Mapping[str, Any]) -> list[protocol.Event]:
        """Raises ValueError and its like where it is no chunk of a completion."""
        if "error" in chunk:
            raise ValueError("an error in the stream")
        events: list[protocol.Event] = []
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began
            usage = chunk.get("usage") or {}
            events.append(
                protocol.Started(
                    prompt_tokens=int(usage.get("prompt_tokens") or 0),
                    cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
                    queue_s=0.0,
                    prefill_s=self._first_s,
                )
            )
        for choice in chunk.get("choices") or ():
            for piece in _pieces(choice):
                events += self._piece(piece)
            self._finish = choice.get("finish_reason") or self._finish
        return events

    def _piece(self, piece: _Piece) -> list[protocol.Event]:
        self._text += piece.text
        self._tokens += 1
        if len(self._text) > self._most:
            raise ValueError("more text than was asked for")
        span = self._spans.feed(piece.text or "\N{REPLACEMENT CHARACTER}")
        events: list[protocol.Event] = [
            protocol.Token(
                id=-1,
                text=piece.text,
                logprob=min(piece.logprob, 0.0),
                margin=piece.margin,
                entropy=piece.entropy,
                feasible_mass=piece.feasible_mass,
                forced=piece.forced,
                span=int(span if piece.text else Span.SYNTAX),
                layer_agreement=piece.layer_agreement,
            )
        ]
        if not self._planned and "\n" in self._text:
            self._planned = True
            with contextlib.suppress(PatternError):
                kind, names = pattern.parse_plan(self._text.partition("\n")[0])
                events.append(protocol.PlanMade(kind=kind, names=list(names)))
        return events

    def end(self) -> list[protocol.Event]:
        """The end of the draft. Raises SmallModelError where the stream broke off."""
        if self._finish is None or self._first_s is None:
            raise SmallModelError("worker_lost", "the completion has no end")
        return [
            protocol.Done(
                text=self._text.rstrip("\n"),
                finish="length" if self._finish == "length" else "stop",
                decode_s=time.monotonic() - self._began - self._first_s,
                steps=self._tokens,
                tokens=self._tokens,
            )
        ]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One token; what the server does not tell is NaN."""

    text: str
    logprob: float
    margin: float
    entropy: float = _NAN
    feasible_mass: float = _NAN
    forced: bool = False
    layer_agreement: float | None = None


def _pieces(choice: Mapping[str, Any]) -> list[_Piece]:
    """A chunk's tokens, in either of the two forms in which servers tell log-probabilities of completions.

    Raises SmallModelError where there is text without them.
    """
    told = choice.get("logprobs") or {}
    if told.get("content"):  # llama.cpp: as chat completions tell them
        return [
            _Piece(str(one["token"]), float(one["logprob"]), _margin([top["logprob"] for top in one["top_logprobs"]]))
            for one in told["content"]
        ]
    if told.get("tokens"):  # OpenAI's own form and vLLM's
        return _our_pieces(told, choice["smallcall"]) if choice.get("smallcall") else _plain_pieces(told)
    if choice.get("text"):
        raise SmallModelError("worker_failed", "the completion server tells no log-probabilities")
    return []


def _plain_pieces(told: Mapping[str, Any]) -> list[_Piece]:
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return [
        _Piece(str(token), float(logprob), _margin(list((top or {}).values())))
        for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    ]


def _our_pieces(told: Mapping[str, Any], ours: Mapping[str, Any]) -> list[_Piece]:
    """What our own endpoint tells beside the log-probabilities."""
    names = ("margin", "entropy", "feasible_mass", "forced", "layer_agreement")
    rows = zip(told["tokens"], told["token_logprobs"], *(ours[name] for name in names), strict=True)
    return [
        _Piece(
            str(token), float(logprob), float(margin), float(entropy), float(mass), bool(forced),
            None if agreement is None else float(agreement),
        )
        for token, logprob, margin, entropy, mass, forced, agreement in rows
    ]  # fmt: skip


def _margin(logprobs: Sequence[float]) -> float:
    """p1 − p2 of the two most probable tokens."""
    best = sorted((float(one) for one in logprobs), reverse=True)
    return math.exp(best[0]) - math.exp(best[1]) if len(best) > 1 else _NAN
