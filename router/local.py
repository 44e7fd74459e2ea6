"""The small model as the gateway sees it: a draft asked for over the worker's socket, told in the judge's words.

The one adapter between `slm` and `policies`. Leaving the block of `events` closes the connection, and so cancels
the draft.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from policies.policy import Draft, DraftCall, Outcome, TokenSignals
from slm import pattern, protocol

_OUTCOMES = {"calls": Outcome.CALLS, "none": Outcome.NO_CALL, "ask": Outcome.ASK}
CONNECT_TIMEOUT_S = 2.0


class SmallModelError(Exception):
    """The small side cannot draft; `code` is a stable reason for the ledger."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SmallModel(Protocol):
    """Whatever can draft."""

    @property
    def info(self) -> protocol.Info | None:
        """What is loaded; None while nothing is ready."""

    def events(self, command: protocol.DraftCommand) -> AbstractAsyncContextManager[AsyncIterator[protocol.Event]]:
        """The events of one draft. Raises SmallModelError where it cannot be had."""


class WorkerClient:
    """Speaks `slm.protocol` to the worker behind a Unix socket; one connection a draft."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    @contextlib.asynccontextmanager
    async def events(self, command: protocol.DraftCommand) -> AsyncIterator[AsyncIterator[protocol.Event]]:
        """See `SmallModel.events`."""
        reader, writer = await self._connect()
        try:
            writer.write(protocol.encode(command) + b"\n")
            await writer.drain()
            yield self._read(reader)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise SmallModelError("worker_lost", "the worker went away") from error
        finally:
            writer.close()

    async def ask_info(self) -> protocol.Info:
        """What the worker has loaded. Raises SmallModelError."""
        reader, writer = await self._connect()
        try:
            writer.write(protocol.encode(protocol.InfoCommand()) + b"\n")
            await writer.drain()
            async for event in self._read(reader):
                if isinstance(event, protocol.Info):
                    return event
        except ConnectionError as error:
            raise SmallModelError("worker_lost", "the worker went away") from error
        finally:
            writer.close()
        raise SmallModelError("worker_lost", "the worker did not say what it is")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            opening = asyncio.open_unix_connection(str(self._socket), limit=protocol.MAX_LINE_BYTES)
            return await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise SmallModelError("worker_unavailable", "the worker is not there") from error

    async def _read(self, reader: asyncio.StreamReader) -> AsyncIterator[protocol.Event]:
        while line := await reader.readline():
            try:
                event = protocol.event_decoder.decode(line)
            except msgspec.DecodeError as error:
                raise SmallModelError("worker_lost", "the worker's answer cannot be read") from error
            yield event
            if isinstance(event, protocol.Done | protocol.Failed | protocol.Info):
                return
        raise SmallModelError("worker_lost", "the worker closed the connection in mid-draft")


class DraftBuilder:
    """Collects a draft's events."""

    def __init__(self) -> None:
        self.tokens: list[protocol.Token] = []
        self.started: protocol.Started | None = None
        self.plan: protocol.PlanMade | None = None
        self.done: protocol.Done | None = None

    def add(self, event: protocol.Event) -> None:
        """Take one event. Raises SmallModelError for `Failed`."""
        match event:
            case protocol.Token():
                self.tokens.append(event)
            case protocol.Started():
                self.started = event
            case protocol.PlanMade():
                self.plan = event
            case protocol.Done():
                self.done = event
            case protocol.Failed(code=code, message=message):
                raise SmallModelError(code, message)
            case protocol.Info():
                raise SmallModelError("worker_lost", "an answer to another question")

    @property
    def plan_names(self) -> tuple[str, ...]:
        """The planned tools, in order; empty before the plan stands or where no call is planned."""
        return tuple(self.plan.names) if self.plan else ()

    def signals(self) -> TokenSignals:
        """The signals of all tokens so far."""
        tokens = self.tokens
        return TokenSignals(
            logprob=np.asarray([token.logprob for token in tokens], np.float32),
            margin=np.asarray([token.margin for token in tokens], np.float32),
            entropy=np.asarray([token.entropy for token in tokens], np.float32),
            feasible_mass=np.asarray([token.feasible_mass for token in tokens], np.float32),
            forced=np.asarray([token.forced for token in tokens], np.bool_),
            span=np.asarray([token.span for token in tokens], np.uint8),
        )

    def draft(self) -> Draft:
        """The draft as it stands; not complete unless the model ended it itself."""
        text = self.done.text if self.done else "".join(token.text for token in self.tokens)
        complete = self.done is not None and self.done.finish == "stop"
        try:
            parsed = pattern.parse_draft(text)
        except pattern.PatternError:
            return Draft(Outcome.UNPARSABLE, (), text, complete, self.signals(), self.plan_names)
        calls = tuple(DraftCall(call.name, call.arguments) for call in parsed.calls)
        return Draft(_OUTCOMES[parsed.kind], calls, text, complete, self.signals(), parsed.plan)
