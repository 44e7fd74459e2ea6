"""The large model's answer on its way to the client: the client's own dialect and model name, true usage, and the row
before the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from router.cascade.decision import Decision
from router.cascade.recorder import Recorder
from router.dialects.errors import ClientError
from router.dialects.request import ChatRequest, Dialect, DialectName, Writer
from router.telemetry import where
from router.upstream.estimates import Priced, cut_short_usd
from router.upstream.large_model import LargeModel, LargeStream, UpstreamError, Usage, usage_of

MAX_HELD_CHARS = 1024 * 1024
"""Of the pieces that wait for the row, as Python writes them. A provider that goes on for longer did not mean the end:
they are sent, but for the newest."""
_log = structlog.get_logger("gateway")


def told(error: UpstreamError) -> ClientError:
    """An upstream error as our client sees it."""
    return ClientError(error.status, error.message, error.code, param=error.param, retry_after_s=error.retry_after_s)


async def whole_answer(
    decision: Decision, dialect: Dialect, large: LargeModel, recorder: Recorder
) -> Mapping[str, Any]:
    """A whole answer, its row committed. Raises UpstreamError, ClientError."""
    completion = await large.complete(decision.chat.body)
    count(decision, large, usage_of(completion))
    decision.seen.whole(completion)
    completion["model"] = decision.chat.client_model
    body = dialect.whole(decision.chat, decision.decision_id, completion, asked_extras(decision))
    decision.answer = completion
    await recorder.record(decision)
    return body


async def forwarded_answer(
    decision: Decision, dialect: Dialect, forwarder: Forwarder, recorder: Recorder
) -> Mapping[str, Any]:
    """A whole answer of a provider that speaks the client's dialect. Raises UpstreamError, ClientError."""
    body, usage = await forwarder.whole(decision.chat, dialect.name)
    count(decision, forwarder, usage)
    decision.seen.whole(body)
    body["model"] = decision.chat.client_model
    extras = asked_extras(decision)
    if extras is not None:
        body["smallcall"] = extras
    decision.answer = body
    await recorder.record(decision)
    return body


def asked_extras(decision: Decision) -> dict[str, Any] | None:
    """The `smallcall` object, where the client asked for it."""
    return decision.extras() if decision.chat.include_decision else None


def count(decision: Decision, large: Priced, usage: Usage | None) -> None:
    """Take down what was reported; what was not stays unknown."""
    if usage is not None:
        decision.usage, decision.cost_usd = usage, large.cost_usd(usage)


def cut_short(decision: Decision, large: Priced | None) -> None:
    """Take down what an answer must have cost that did not come to its end; that part is an estimate."""
    if large is None or decision.large_model is None or not decision.tries.made:
        return
    chat, seen = decision.chat, decision.seen
    missing = cut_short_usd(large, decision.usage, decision.cost_usd, chat.size_bytes, seen.chars)
    if missing:
        decision.estimate_usd = missing


class Source(Protocol):
    """A stream of the large model, and its encoding for the client. Iterating yields the pieces that arrived together,
    since several sent at once cost little more than one, and raises UpstreamError."""

    def __aiter__(self) -> AsyncIterator[Sequence[dict[str, Any]]]: ...

    def usage(self, piece: Mapping[str, Any]) -> Usage | None:
        """The usage reported so far, where this piece tells of it. To be asked of every piece, once and in order."""

    def is_final(self, piece: Mapping[str, Any]) -> bool:
        """True if the answer's end begins with this piece, the one that `usage` was asked of last: from now on pieces
        wait for the row."""

    def encode(self, piece: dict[str, Any]) -> Iterable[bytes]:
        """The client's events of one piece. Raises ClientError."""

    def encode_final(self, pieces: Sequence[dict[str, Any]], extras: Mapping[str, Any] | None) -> Iterable[bytes]:
        """The client's events of the last pieces, and of the end. Raises ClientError."""

    async def aclose(self) -> None:
        """Close the connection; safe to call twice."""


class Forwarder(Priced, Protocol):
    """Whatever can ask the large model in some of our dialects."""

    def speaks(self, dialect: DialectName) -> bool:
        """Whether requests of this dialect can be forwarded."""

    async def whole(self, chat: ChatRequest, dialect: DialectName) -> tuple[dict[str, Any], Usage | None]:
        """A whole answer, and what usage it tells. Raises UpstreamError."""

    async def stream(self, chat: ChatRequest, dialect: DialectName, writer: Writer) -> Source:
        """A stream whose first event is at hand. Raises UpstreamError."""


class Translated:
    """Chunks of a chat completion, written in the client's dialect."""

    def __init__(self, stream: LargeStream, writer: Writer) -> None:
        self._stream, self._writer = stream, writer
        self.encode, self.encode_final, self.aclose = writer.events, writer.ending, stream.aclose

    async def __aiter__(self) -> AsyncIterator[Sequence[dict[str, Any]]]:
        async for chunk in self._stream:
            yield (chunk,)

    def is_final(self, piece: Mapping[str, Any]) -> bool:
        """Implements `Source.is_final`: a piece with a finish reason, or with usage and no choices."""
        choices = piece.get("choices")
        if not choices:
            return bool(piece.get("usage"))  # without either it is no end: some providers begin with such a chunk
        return any(choice.get("finish_reason") for choice in choices)

    def usage(self, piece: Mapping[str, Any]) -> Usage | None:
        """See `Source.usage`."""
        return usage_of(piece)


class _Held:
    """The pieces of an end that wait for the row, within bounds."""

    def __init__(self) -> None:
        self.pieces: list[dict[str, Any]] = []
        self._chars = 0

    def put(self, piece: dict[str, Any]) -> list[dict[str, Any]]:
        """Take one more; gives those that need wait no longer."""
        freed: list[dict[str, Any]] = []
        chars = len(str(piece))
        if self._chars + chars > MAX_HELD_CHARS:
            freed, self.pieces, self._chars = self.pieces, [], 0
        self.pieces.append(piece)
        self._chars += chars
        return freed


class Relay:
    """A stream of the large model. Pieces pass as they come, but for those that say the end: they wait for the row."""

    def __init__(self, decision: Decision, source: Source, writer: Writer, prices: Priced, recorder: Recorder) -> None:
        self._decision, self._source, self._writer = decision, source, writer
        self._prices, self._recorder = prices, recorder

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events. What breaks after the first byte ends in an error event, and nothing comes after it."""
        held = _Held()
        source, see = self._source, self._decision.seen.piece
        try:
            async for pieces in source:
                told_now: list[bytes] = []
                for piece in pieces:
                    usage = source.usage(piece)
                    if usage is not None:
                        count(self._decision, self._prices, usage)
                    see(piece)
                    if held.pieces or source.is_final(piece):
                        told_now += [event for one in held.put(piece) for event in source.encode(one)]
                    else:
                        told_now += source.encode(piece)
                if told_now:
                    yield b"".join(told_now)
            ending = list(source.encode_final(held.pieces, asked_extras(self._decision)))
            message = self._decision.seen.message()
            self._decision.answer = {"choices": [{"message": message}]} if message else None
            await self._recorder.record(self._decision)
        except (UpstreamError, ClientError) as error:
            yield await self._broken(error)
        except Exception as error:  # noqa: BLE001 - the client must not take a fault of ours for an answer's end
            _log.error("crashed", where=where(error), decision_id=self._decision.decision_id)
            yield await self._broken(ClientError(500, "the gateway failed in mid-answer", "internal_error"))
        else:
            yield b"".join(ending)

    async def close(self) -> None:
        """Close the upstream connection. A stream that did not come to its end gets its row here: the client left."""
        try:
            await self._source.aclose()
        finally:
            if not self._decision.recorded:
                cut_short(self._decision, self._prices)
                self._decision.left()
                await self._recorder.record(self._decision)

    async def _broken(self, failure: UpstreamError | ClientError) -> bytes:
        if isinstance(failure, UpstreamError):
            if failure.usage is not None:
                count(self._decision, self._prices, failure.usage)
            failure = told(failure)
        self._decision.failed(failure.status, failure.code)
        cut_short(self._decision, self._prices)
        try:
            await self._recorder.record(self._decision)
        except ClientError as unrecorded:
            failure = unrecorded
        return self._writer.failed(failure)
