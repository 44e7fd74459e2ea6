"""A completion server as the small model: any that speaks OpenAI's `/completions` with log-probabilities.

The prompt is rendered here, by the same pattern as the worker's, and sent as text. Its control tokens must be the
served model's own; what a client spells like one of any usual model's is broken up. Guided decoding is the server's
option: `vllm` (`structured_outputs.grammar`) or `llamacpp` (`grammar`), both by `slm.format.gbnf`; `none` leaves the
model free.

A server that tells no log-probabilities is an error: nothing could be judged by. What else such a server does not tell
is NaN: entropy and feasible mass, the margin where fewer than two alternatives come; and no token counts as forced. Our
own endpoint (`router.completions`) tells all of these.
Log-probabilities are those of the whole distribution only if the server says them before its grammar: vLLM does in its
default mode `raw_logprobs`, llama.cpp without `post_sampling_probs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Self

import aiohttp
import orjson
import structlog

from router.small.remote_stream import parse_stream
from router.small.worker_client import CONNECT_TIMEOUT_S, SmallModelError
from slm import protocol
from slm.format import gbnf, pattern
from slm.format.pattern import PatternError

Guided = Literal["vllm", "llamacpp", "none"]

_log = structlog.get_logger("remote")
_LINE_BYTES = 1 << 20
"""Longest line of a stream."""
_REFUSAL_BYTES = 4096
_CONTROL = re.compile(r"<(?=[|\uff5c]|/?s>|(?:pad|unk|mask|bos|eos|start_of_turn|end_of_turn)>)")
"""Where control tokens of the usual models begin."""
_TOP = 2
"""Alternatives asked for: enough for the margin."""


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """Where the server is and what it can do."""

    api_base: str
    """Without a slash at the end, `/v1` included."""
    model: str
    api_key: str | None = None
    guided: Guided = "vllm"
    check_every_s: float = 5.0


class RemoteModel:
    """A `SmallModel` behind HTTP; belongs to one event loop."""

    def __init__(self, server: RemoteServer) -> None:
        self._server = server
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
        """Implements `SmallModel.events`: the events of one draft."""
        if self._session is None or self.info is None:
            raise SmallModelError("worker_unavailable", "the completion server was not seen yet")
        return self._events(self._session, command)

    @contextlib.asynccontextmanager
    async def _events(
        self, session: aiohttp.ClientSession, command: protocol.DraftCommand
    ) -> AsyncIterator[AsyncIterator[protocol.Event]]:
        url, headers = f"{self._server.api_base}/completions", {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(command.deadline_s):
                # Schemas are hostile, small ones too: the event loop serves others.
                body = await asyncio.to_thread(self._body, command)
                async with session.post(url, data=body, headers=headers) as response:
                    if response.status != 200:
                        raise await _refusal(response)
                    yield parse_stream(response.content, command.max_tokens)
        except TimeoutError as error:
            raise SmallModelError("draft_timeout", "the completion server took too long") from error
        except aiohttp.ClientConnectorError as error:
            raise SmallModelError("worker_unavailable", "the completion server is not there") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise SmallModelError("worker_lost", "the completion server went away") from error

    def _body(self, command: protocol.DraftCommand) -> bytes:
        try:
            prompt = prompt_text(command)
            guide = self._guide(command)
        except (PatternError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SmallModelError("draft_refused", f"the request cannot be drafted: {type(error).__name__}") from error
        return orjson.dumps(
            {
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
        )

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
        """Return what can be said of a model that others serve: its weights are known by name only."""
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


def prompt_text(command: protocol.DraftCommand) -> str:
    """The prompt as text in which only our own control tokens are whole. Raises: PatternError."""
    segments = pattern.render_prompt(command.messages, command.tools)
    return "".join(segment.text if segment.control else _CONTROL.sub("< ", segment.text) for segment in segments)


async def _refusal(response: aiohttp.ClientResponse) -> SmallModelError:
    """Return the error of a status; its text only separates a too long prompt from other refusals, and stays here."""
    text = (await response.content.read(_REFUSAL_BYTES)).decode(errors="replace").lower()
    if response.status in (429, 503):
        return SmallModelError("queue_full", "the completion server is busy")
    if response.status == 413 or (response.status == 400 and "context" in text):
        return SmallModelError("prompt_too_long", "the prompt is longer than the completion server takes")
    if response.status < 500:
        return SmallModelError("draft_refused", f"the completion server refused: HTTP {response.status}")
    return SmallModelError("worker_failed", f"the completion server failed: HTTP {response.status}")
