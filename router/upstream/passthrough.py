"""The large model asked in the client's own dialect, where its provider speaks it: the body goes on as it came.

No SDK and no model of a body is built. Retries, breaker, time-outs, errors and prices are shared with `LitellmModel`,
which asks for all other dialects. Not guaranteed: a key that stands twice inside a nested object goes on as it came,
and the provider may read another of the two than the judge did.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from router.dialects.exchange import Exchange
from router.dialects.provider.provider_json import StreamTexts, read_json
from router.dialects.request import ChatRequest, DialectName, Writer
from router.settings import Large, provider_variable
from router.upstream.attempts import broken_off, refused, timed_out, unreachable
from router.upstream.large_model import Tries, UpstreamError, Usage
from router.upstream.provider_errors import ProviderError, read_error
from router.upstream.translated import LitellmModel
from router.upstream.wires import WIRES, StreamState, Wire, request_body

CONNECT_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_EVENT_BYTES = 16 * 1024 * 1024
_READ_BYTES = 64 * 1024
"""At most so much of a stream is taken at once: it is what a client that does not read makes us hold, twice."""
_COPIED_BYTES = 1024 * 1024
"""A larger body is sent piece by piece, so that the event loop serves others meanwhile."""


@dataclass(frozen=True, slots=True)
class _Target:
    """Where requests of one dialect go."""

    wire: Wire
    url: str
    headers: Mapping[str, str]
    proxy: str | None


def spoken(settings: Large) -> frozenset[DialectName]:
    """The dialects that the large model's provider speaks itself, as set, else by its name in litellm's terms."""
    if settings.forward is not None:
        return frozenset(settings.forward)
    provider = (settings.model or "").partition("/")[0] if "/" in (settings.model or "") else ""
    if settings.drop_params or provider not in ("openai", "anthropic"):
        return frozenset()
    if provider == "anthropic":
        return frozenset({"messages"})
    # Many servers speak OpenAI's chat completions; hardly any but OpenAI's own its Responses.
    return frozenset({"chat_completions"} if settings.api_base else {"chat_completions", "responses"})


class Passthrough:
    """One large model behind a provider that speaks some of our dialects. Belongs to one event loop."""

    def __init__(self, settings: Large, translated: LitellmModel) -> None:
        """`translated` is the same model behind litellm; tries, breaker and prices are shared with it."""
        self._settings, self._translated = settings, translated
        self._targets = {name: _target(WIRES[name], settings) for name in spoken(settings)}
        self._model = translated.model.partition("/")[2] or translated.model
        self._session: aiohttp.ClientSession | None = None
        self.cost_usd = translated.cost_usd

    def speaks(self, dialect: DialectName) -> bool:
        """Whether requests of this dialect can be forwarded."""
        return dialect in self._targets

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Passthrough]:
        """Keep connections open until the block ends."""
        idle_s = self._settings.timeout_s
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(CONNECT_TIMEOUT_S, idle_s), sock_read=idle_s)
        connector = aiohttp.TCPConnector(limit=0)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=jar) as session:
            self._session = session
            yield self

    async def whole(self, exchange: Exchange, tries: Tries) -> tuple[dict[str, Any], Usage | None]:
        """The provider's whole answer and the usage that it reports. Raises UpstreamError."""
        target = self._targets[exchange.dialect.name]
        answer = await self._post(target, target.url, exchange.chat, tries)
        if not isinstance(answer.get(target.wire.answer_field), list):
            raise unreachable()
        return answer, target.wire.usage(answer)

    async def count_tokens(self, chat: ChatRequest) -> int:
        """Tokens of a Messages request, as its provider counts them. Raises UpstreamError."""
        target = self._targets["messages"]
        counted = (await self._post(target, f"{target.url}/count_tokens", chat)).get("input_tokens")
        if not isinstance(counted, int):
            raise unreachable()
        return counted

    async def stream(self, exchange: Exchange, tries: Tries) -> Forwarded:
        """A stream whose first event is at hand. Raises UpstreamError."""
        chat, dialect = exchange.chat, exchange.dialect.name
        target = self._targets[dialect]
        body = request_body(chat.raw, self._model, ask_usage=dialect == "chat_completions")

        async def attempt() -> Forwarded:
            response = await self._asked(target, target.url, chat, body)
            stream = Forwarded(response, target.wire.state(), chat, exchange.writer, self._settings)
            try:
                await stream.open()
            except BaseException:
                await stream.aclose()
                raise
            return stream

        await self._translated.priced()
        return await self._translated.attempts.run(attempt, tries)

    async def _post(self, target: _Target, url: str, chat: ChatRequest, tries: Tries | None = None) -> dict[str, Any]:
        body = request_body(chat.raw, self._model, ask_usage=False)

        async def attempt() -> dict[str, Any]:
            try:
                async with asyncio.timeout(self._settings.timeout_s), await self._asked(target, url, chat, body) as got:
                    answer = read_json(await _bounded(got))
            except (aiohttp.ClientError, TimeoutError, ConnectionError, orjson.JSONDecodeError) as error:
                raise _mapped(error, self._settings) from error
            given = isinstance(answer, dict) and target.wire.answer_field in answer
            said = None if given else read_error(answer)
            if said is not None:
                raise refused(None, said, got.headers, self._settings)
            if not isinstance(answer, dict):
                raise unreachable()
            return answer

        await self._translated.priced()
        return await self._translated.attempts.run(attempt, tries)

    async def _asked(self, target: _Target, url: str, chat: ChatRequest, body: bytes) -> aiohttp.ClientResponse:
        """A response of status 200. Raises UpstreamError."""
        if self._session is None:
            raise RuntimeError("the pass-through is not running")
        headers = {**target.headers, **chat.headers}
        data = body if len(body) < _COPIED_BYTES else io.BytesIO(body)
        try:
            response = await self._session.post(
                url, data=data, headers=headers, allow_redirects=False, proxy=target.proxy
            )
        except (aiohttp.ClientError, TimeoutError, ConnectionError, ssl.SSLError) as error:
            raise _mapped(error, self._settings) from error
        if response.status == 200:
            return response
        async with response:
            raise await self._refusal(response)

    async def _refusal(self, response: aiohttp.ClientResponse) -> UpstreamError:
        answer: Any = None
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError, UpstreamError):
            async with asyncio.timeout(self._settings.timeout_s):
                answer = read_json(await _bounded(response))
        error = read_error(answer, refused=True) or ProviderError()
        return refused(response.status, error, response.headers, self._settings)


class Forwarded:
    """A provider's stream on its way to a client of the same dialect. See `router.cascade.escalation.Source`."""

    def __init__(
        self, response: aiohttp.ClientResponse, state: StreamState, chat: ChatRequest, writer: Writer, settings: Large
    ) -> None:
        self._response, self._state, self._chat = response, state, chat
        self._writer, self._settings = writer, settings
        self._reading = response.content.iter_chunked(_READ_BYTES)
        self._rest = b""
        self._texts = StreamTexts()
        self._first: list[dict[str, Any]] | None = None
        self._broken: UpstreamError | None = None
        """What is wrong behind the events that were given last."""

    async def open(self) -> None:
        """Wait for the first events, so that what fails can still be retried. Raises UpstreamError."""
        self._first = await self._next()
        if self._first is None:
            raise unreachable()

    async def __aiter__(self) -> AsyncIterator[list[dict[str, Any]]]:
        events = self._first
        while events is not None:
            yield events
            events = await self._next()

    def is_final(self, piece: Mapping[str, Any]) -> bool:
        """Implements `Source.is_final`."""
        return self._state.is_final(piece)

    def usage(self, piece: Mapping[str, Any]) -> Usage | None:
        """Implements `Source.usage`."""
        return self._state.see(piece)

    def encode(self, piece: dict[str, Any]) -> tuple[bytes]:
        """Implements `Source.encode`."""
        self._state.rename(piece, self._chat.client_model)
        return (self._writer.forwarded(piece),)

    def encode_final(self, pieces: Sequence[dict[str, Any]], extras: Mapping[str, Any] | None) -> Iterator[bytes]:
        """Implements `Source.encode_final`."""
        for piece in pieces:
            self._state.rename(piece, self._chat.client_model)
        yield from self._writer.forwarded_ending(pieces, extras)

    async def aclose(self) -> None:
        """Close the connection: what nobody reads any more is not paid for."""
        self._response.close()

    async def _next(self) -> list[dict[str, Any]] | None:
        """The next events, at least one, or None after the last. Raises UpstreamError."""
        while self._broken is None:
            try:
                piece = await anext(self._reading, None)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                if self._first is None or isinstance(error, TimeoutError):
                    raise _mapped(error, self._settings) from error
                raise broken_off() from error
            if piece is None:
                if self._first is not None and not self._state.complete:
                    raise broken_off()
                return None
            events = self._events(piece)
            if events:
                return events
        raise self._broken

    def _events(self, piece: bytes) -> list[dict[str, Any]]:
        """The objects of the server-sent events that end in `piece`; `[DONE]`, comments and events without data are
        read over. Those before one that is wrong are given."""
        *blocks, self._rest = (self._rest + piece.replace(b"\r", b"")).split(b"\n\n")
        events: list[dict[str, Any]] = []
        for block in blocks:
            data = _data(block)
            if not data or data == b"[DONE]":
                continue
            try:
                event = self._texts.read(data)
            except orjson.JSONDecodeError:
                self._broken = unreachable() if self._first is None and not events else broken_off()
                return events
            failure = read_error(event)
            if failure is not None:
                self._broken = refused(None, failure, self._response.headers, self._settings)
                self._broken.usage = self._state.see(event) if isinstance(event, dict) else None
                return events
            if isinstance(event, dict):
                events.append(event)
        if len(self._rest) > MAX_EVENT_BYTES:
            self._broken = unreachable()
        return events


def _data(block: bytes) -> bytes:
    """The data of one server-sent event."""
    if block.startswith(b"data:") and b"\n" not in block:
        return block[5:].strip()
    return b"\n".join(line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:"))


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The whole body. Raises UpstreamUnavailable where it is too large."""
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise unreachable()
    return bytes(body)


def _mapped(error: Exception, settings: Large) -> UpstreamError:
    return timed_out(settings) if isinstance(error, TimeoutError) else unreachable()


def _target(wire: Wire, settings: Large) -> _Target:
    base = (settings.api_base or wire.base).rstrip("/")
    if wire.path == "/messages" and not base.endswith("/v1"):
        base += "/v1"
    key = settings.api_key.get_secret_value() if settings.api_key else provider_variable(wire.key_variable)
    headers = {**wire.headers(key), "content-type": "application/json"}
    host = urllib.parse.urlsplit(base).hostname or ""
    scheme = urllib.parse.urlsplit(base).scheme
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    return _Target(wire, base + wire.path, headers, proxy)
