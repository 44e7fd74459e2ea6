"""The large model's answer on its way to the client: the client's own dialect and model name, true usage, and the row
before the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from router.cascade.decision import Decision
from router.cascade.decision_extras import asked_extras
from router.cascade.recorder import Recorder
from router.dialects.errors import ClientError
from router.dialects.exchange import Exchange
from router.dialects.request import DialectName, Writer
from router.telemetry import where
from router.upstream.estimates import Priced, truncated_cost_usd
from router.upstream.large_model import ErrorKind, LargeModel, LargeStream, Tries, UpstreamError, Usage, usage_of
from router.upstream.provider_errors import FACES

MAX_HELD_CHARS = 1024 * 1024
"""Of the pieces that wait for the row, as Python writes them. A provider that goes on for longer did not mean the end:
they are sent, but for the newest."""
_TOO_LONG = "prompt is too long"
"""By these words Anthropic's clients know that a conversation must be made shorter."""
_log = structlog.get_logger("gateway")


def to_client_error(error: UpstreamError, dialect: DialectName) -> ClientError:
    """An upstream error as our client sees it: with its dialect's status and words."""
    status, message, face = error.status, error.message, FACES[error.kind] if error.kind else None
    if dialect == "messages" and face is not None:
        status = face.messages_status or status
        if error.kind is ErrorKind.CONTEXT_LENGTH and _TOO_LONG not in message.lower():
            message = f"{_TOO_LONG}: {message}"
    return ClientError(
        status,
        message,
        error.code,
        param=error.param,
        type_=face.type if face is not None else None,
        retry_after_s=error.retry_after_s,
        permanent=face is not None and not face.retryable,
    )


async def whole_answer(decision: Decision, large: LargeModel) -> Mapping[str, Any]:
    """A whole answer, translated into the client's dialect. Raises UpstreamError, ClientError."""
    exchange = decision.exchange
    completion = await large.complete(exchange.chat.body, decision.large.tries)
    record_usage(decision, large, usage_of(completion))
    decision.large.summary.whole(completion)
    completion["model"] = exchange.chat.client_model
    body = exchange.dialect.whole(exchange.chat, exchange.decision_id, completion, asked_extras(decision))
    decision.answer = completion
    return body


async def forwarded_answer(decision: Decision, forwarder: Forwarder) -> Mapping[str, Any]:
    """A whole answer of a provider that speaks the client's dialect. Raises UpstreamError, ClientError."""
    body, usage = await forwarder.whole(decision.exchange, decision.large.tries)
    record_usage(decision, forwarder, usage)
    decision.large.summary.whole(body)
    decision.exchange.dialect.amend(body)
    body["model"] = decision.chat.client_model
    extras = asked_extras(decision)
    if extras is not None:
        body["smallcall"] = extras
    decision.answer = body
    return body


def record_usage(decision: Decision, large: Priced, usage: Usage | None) -> None:
    """Take down the usage that was reported, and its cost; what was not reported stays unknown."""
    if usage is not None:
        decision.large.usage, decision.large.cost_usd = usage, large.cost_usd(usage)


def estimate_truncated_cost(decision: Decision, large: Priced | None) -> None:
    """Take down what an answer must have cost that did not come to its end; that part is an estimate."""
    work = decision.large
    if large is None or work.model is None or not work.tries.made:
        return
    size_bytes, chars = decision.chat.size_bytes, work.summary.chars
    work.estimate_usd = truncated_cost_usd(large, work.usage, work.cost_usd, size_bytes, chars) or work.estimate_usd


class Source(Protocol):
    """A stream of the large model, and its encoding for the client. Iterating yields the pieces that arrived together,
    since several sent at once cost little more than one, and raises UpstreamError."""

    def __aiter__(self) -> AsyncIterator[Sequence[dict[str, Any]]]: ...

    def usage(self, piece: Mapping[str, Any]) -> Usage | None:
        """The usage reported so far, where this piece reports it. To be asked of every piece, once and in order."""

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
    """Whatever can ask the large model in some of our dialects. `tries` counts how often it was asked."""

    def speaks(self, dialect: DialectName) -> bool:
        """Whether requests of this dialect can be forwarded."""

    async def whole(self, exchange: Exchange, tries: Tries) -> tuple[dict[str, Any], Usage | None]:
        """A whole answer, and the usage that it reports. Raises UpstreamError."""

    async def stream(self, exchange: Exchange, tries: Tries) -> Source:
        """A stream whose first event is at hand. Raises UpstreamError."""


class Translated:
    """Chunks of a chat completion, written in the client's dialect."""

    def __init__(self, stream: LargeStream, writer: Writer) -> None:
        self._stream = stream
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

    def __init__(self, decision: Decision, source: Source, prices: Priced, recorder: Recorder) -> None:
        self._decision, self._source, self._prices, self._recorder = decision, source, prices, recorder

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events; the row is committed before the last ones. What breaks after the first byte ends in an
        error event, and nothing comes after it."""
        held = _Held()
        decision, source = self._decision, self._source
        summary = decision.large.summary
        summarise = summary.piece
        try:
            async for pieces in source:
                events: list[bytes] = []
                for piece in pieces:
                    usage = source.usage(piece)
                    if usage is not None:
                        record_usage(decision, self._prices, usage)
                    summarise(piece)
                    if held.pieces or source.is_final(piece):
                        events += [event for one in held.put(piece) for event in source.encode(one)]
                    else:
                        events += source.encode(piece)
                if events:
                    yield b"".join(events)
            ending = list(source.encode_final(held.pieces, asked_extras(decision)))
            message = summary.message()
            decision.answer = {"choices": [{"message": message}]} if message else None
            await self._recorder.record(decision)
        except (UpstreamError, ClientError) as error:
            yield await self._broken(error)
        except Exception as error:  # noqa: BLE001 - the client must not take a fault of ours for an answer's end
            _log.error("crashed", where=where(error), decision_id=decision.decision_id)
            yield await self._broken(ClientError(500, "the gateway failed in mid-answer", "internal_error"))
        else:
            yield b"".join(ending)

    async def close(self) -> None:
        """Close the upstream connection. A stream that did not come to its end gets its row here: the client left."""
        decision = self._decision
        try:
            await self._source.aclose()
        finally:
            if not decision.recorded:
                estimate_truncated_cost(decision, self._prices)
                decision.mark_disconnected()
                await self._recorder.record(decision)

    async def _broken(self, failure: UpstreamError | ClientError) -> bytes:
        decision = self._decision
        if isinstance(failure, UpstreamError):
            if failure.usage is not None:
                record_usage(decision, self._prices, failure.usage)
            failure = to_client_error(failure, decision.exchange.dialect.name)
        decision.fail(failure.status, failure.code)
        estimate_truncated_cost(decision, self._prices)
        try:
            await self._recorder.record(decision)
        except ClientError as unrecorded:
            failure = unrecorded
        return decision.exchange.writer.failed(failure)
