"""One chat completion from any OpenAI-compatible endpoint, whole or streamed, and what it took.

A reply is data whatever happens: a refused connection, a time-out or nonsense becomes a `ClientReply` with an error
word. Connection errors, 429 and 5xx are tried again, with `Retry-After` honoured; a time-out is not, since the request
may have cost its full price. Bodies are bounded. Nothing is logged.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
import msgspec
from yarl import URL

from evaluation.traces.wire import Assembly, Completion, ErrorBody, Extras, TextCall, WireChunk, WireUsage, texts

MAX_BODY_BYTES = 16 * 1024 * 1024
_DETAIL_CHARS = 500
_LONGEST_WAIT_S = 60.0
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_Wire = TypeVar("_Wire", Completion, WireChunk)


@dataclass(frozen=True, slots=True)
class ClientPrices:
    """USD for a million tokens."""

    input_usd_per_mtok: float
    output_usd_per_mtok: float

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of one request in USD."""
        return (prompt_tokens * self.input_usd_per_mtok + completion_tokens * self.output_usd_per_mtok) / 1e6


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Whom to ask. `base_url` ends before `/chat/completions`, mostly with `/v1`."""

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    stream: bool = False
    include_signals: bool = False
    """Ask a smallcall gateway for its decision and the draft's token signals. Other servers may refuse the field."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the body, such as `temperature`."""
    prices: ClientPrices | None = None
    """Used where the endpoint itself does not say what a request cost."""

    def __post_init__(self) -> None:
        url = URL(self.base_url)
        if url.scheme not in {"http", "https"} or not url.host:
            raise ValueError(f"base_url must be an http or https URL, got scheme {url.scheme!r}")
        if url.user or url.password or url.query_string or url.fragment:
            raise ValueError("base_url must hold no user, password, query or fragment; a key goes into api_key")

    def public(self) -> dict[str, Any]:
        """Return the fields that may be written down: all but the key."""
        return {
            "base_url": self.base_url,
            "model": self.model,
            "stream": self.stream,
            "include_signals": self.include_signals,
            "options": dict(self.options),
            "prices": None
            if self.prices is None
            else {
                "input_usd_per_mtok": self.prices.input_usd_per_mtok,
                "output_usd_per_mtok": self.prices.output_usd_per_mtok,
            },
        }

    def body(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        """The request's JSON."""
        body: dict[str, Any] = {**self.options, "model": self.model, "messages": messages}
        if tools:
            body["tools"] = tools
        if self.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        if self.include_signals:
            body["smallcall"] = {"include": ["decision", "signals"]}
        return body


@dataclass(frozen=True, slots=True)
class Timing:
    """The clocks and the pause, to be replaced in tests."""

    monotonic: Callable[[], float] = time.perf_counter
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True, slots=True)
class ClientReply:
    """The endpoint's reply. `answered` is False where there is no assistant message."""

    started_at: datetime
    attempts: int
    latency_s: float
    ttft_s: float | None = None
    status: int | None = None
    error: str | None = None
    error_detail: str | None = None
    answered: bool = False
    calls: tuple[TextCall, ...] = ()
    text: str | None = None
    finish_reason: str | None = None
    usage: WireUsage | None = None
    extras: Extras | None = None


class _BadResponseError(ValueError):
    """A response that is no chat completion."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The reply to one attempt, and whether another may give more."""

    reply: ClientReply
    retry: bool = False
    wait_s: float | None = None


class ChatClient:
    """Asks one endpoint. May be shared by the tasks of one event loop; the session is the caller's."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        *,
        timeout_s: float,
        retries: int,
        timing: Timing,
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._retries = retries
        self._timing = timing
        self._url = endpoint.base_url.rstrip("/") + "/chat/completions"
        self._headers = {} if endpoint.api_key is None else {"authorization": f"Bearer {endpoint.api_key}"}

    async def ask(self, body: Mapping[str, Any]) -> ClientReply:
        """Send one request, with at most `retries` more attempts. Never raises for what the endpoint does."""
        attempt = await self._attempt(body, 1)
        while attempt.retry and attempt.reply.attempts <= self._retries:
            backoff_s = 0.5 * 2 ** (attempt.reply.attempts - 1)
            await self._timing.sleep(min(_LONGEST_WAIT_S, backoff_s if attempt.wait_s is None else attempt.wait_s))
            attempt = await self._attempt(body, attempt.reply.attempts + 1)
        return attempt.reply

    async def _attempt(self, body: Mapping[str, Any], number: int) -> _Attempt:
        started_at, started = self._timing.now(), self._timing.monotonic()

        def failed(error: str, detail: str, *, status: int | None = None) -> ClientReply:
            latency_s = self._timing.monotonic() - started
            return ClientReply(
                started_at, number, latency_s, status=status, error=error, error_detail=detail[:_DETAIL_CHARS]
            )

        status: int | None = None
        try:
            async with self._session.post(
                self._url,
                data=msgspec.json.encode(body),
                headers={**self._headers, "content-type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                allow_redirects=False,
            ) as response:
                status = response.status
                if self._endpoint.stream and response.content_type == "text/event-stream":
                    completion, first_s = await self._streamed(response)
                else:
                    completion, first_s = await _whole(response), None
                wait_s = _retry_after_s(response.headers.get("retry-after"), self._timing.now())
        except TimeoutError:
            return _Attempt(failed("timeout", f"no whole answer within {self._timeout_s:g} s", status=status))
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            return _Attempt(failed("connection", f"{type(error).__name__}: {error}", status=status), retry=True)
        except (_BadResponseError, aiohttp.ClientError) as error:
            return _Attempt(failed("bad_response", f"{type(error).__name__}: {error}", status=status))
        latency_s = self._timing.monotonic() - started
        ttft_s = None if first_s is None else first_s - started
        reply = reply_of(completion, ClientReply(started_at, number, latency_s, ttft_s, status))
        return _Attempt(reply, retry=status == 429 or status >= 500, wait_s=wait_s)

    async def _streamed(self, response: aiohttp.ClientResponse) -> tuple[Completion, float | None]:
        """The stream put together, and when its first text or call came."""
        assembly, first_s = Assembly(), None
        async for event in _events(response):
            if event == b"[DONE]":
                break
            if assembly.add(_decoded(_CHUNK, event)) and first_s is None:
                first_s = self._timing.monotonic()
        return assembly.completion(), first_s


_COMPLETION = msgspec.json.Decoder(Completion)
_CHUNK = msgspec.json.Decoder(WireChunk)


def _decoded(decoder: msgspec.json.Decoder[_Wire], raw: bytes) -> _Wire:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _BadResponseError(str(error)) from error


async def _whole(response: aiohttp.ClientResponse) -> Completion:
    """A response that is not streamed. What is no JSON counts as an error's text unless the status is 200."""
    raw = b"".join([piece async for piece in _bounded(response)])
    try:
        return _decoded(_COMPLETION, raw)
    except _BadResponseError:
        if response.status == 200:
            raise
        return Completion(error=ErrorBody(message=raw[:_DETAIL_CHARS].decode("utf-8", "replace")))


async def _bounded(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body in pieces; at most MAX_BODY_BYTES of it."""
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MAX_BODY_BYTES:
            raise _BadResponseError(f"the body is longer than {MAX_BODY_BYTES} bytes")
        yield piece


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The `data` of server-sent events (WHATWG HTML §9.2); comments and other fields are left out."""
    buffer, data = b"", list[bytes]()
    async for piece in _bounded(response):
        *lines, buffer = (buffer + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def reply_of(completion: Completion, reply: ClientReply) -> ClientReply:
    """The reply with what the completion says; its status is known already."""
    reply = replace(reply, usage=completion.usage, extras=completion.smallcall)
    error = completion.error
    if error is not None or reply.status != 200:
        code = error.code if error is not None else None
        word = code if isinstance(code, str) and _WORD.fullmatch(code) else f"http_{reply.status}"
        detail = (error.message or "")[:_DETAIL_CHARS] if error is not None else ""
        return replace(reply, error=word, error_detail=detail)
    if not completion.choices:
        return replace(reply, error="bad_response", error_detail="no choices")
    choice = completion.choices[0]
    return replace(
        reply,
        answered=True,
        calls=texts(choice.message.tool_calls),
        text=choice.message.content,
        finish_reason=choice.finish_reason,
    )


def _retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110 §10.2.3: seconds or a date); None without a readable one."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (until - now).total_seconds()) if until.tzinfo is not None else None
