"""The small model as the gateway sees it: a draft asked for over the worker's socket, told in the judge's words.

The one adapter between `slm` and `policies`. Leaving the block of `events` closes the connection, and so cancels
the draft. No time limit of its own on a draft: the caller has one, and the worker keeps the command's deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from policies.types import HIDDEN_SIZE, Draft, DraftCall, FloatArray, HiddenPlace, Outcome, TokenSignals
from slm import protocol
from slm.format import pattern

CONNECT_TIMEOUT_S = 2.0

_OUTCOMES: Mapping[str, Outcome] = {"calls": Outcome.CALLS, "none": Outcome.NO_CALL, "ask": Outcome.ASK}
_FAILURES: Mapping[str, str] = {
    "prompt_too_long": "prompt_too_long",
    "schema_unsupported": "schema_unsupported",
    "queue_full": "queue_full",
    "wait_too_long": "wait_too_long",
    "deadline": "draft_timeout",
    "bad_request": "draft_refused",
}
"""The worker's failure codes as our reasons; any other is `worker_failed`."""


class SmallModelError(Exception):
    """The small side cannot draft. `code` is a stable reason for the ledger:

    `small_disabled`, `worker_unavailable`, `worker_lost`, `worker_failed`, `queue_full`, `wait_too_long`,
    `draft_timeout`;
    and for requests that it cannot take: `draft_refused`, `prompt_too_long`, `schema_unsupported`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class SmallModel(Protocol):
    """Whatever can draft."""

    @property
    def info(self) -> protocol.Info | None:
        """The loaded model; None while nothing is ready."""

    def events(self, command: protocol.DraftCommand) -> AbstractAsyncContextManager[AsyncIterator[protocol.Event]]:
        """The events of one draft. Raises SmallModelError where it cannot be had."""


class WorkerClient:
    """Speaks `slm.protocol` to the worker behind a Unix socket; one connection a command."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    @contextlib.asynccontextmanager
    async def events(self, command: protocol.Command) -> AsyncIterator[AsyncIterator[protocol.Event]]:
        """The events of one command. Raises SmallModelError, also in the block."""
        line = protocol.encode(command) + b"\n"
        if len(line) > protocol.MAX_LINE_BYTES:
            raise SmallModelError("prompt_too_long", "the request is larger than the worker takes")
        reader, writer = await self._connect()
        try:
            writer.write(line)
            await writer.drain()
            yield _read(reader)
        except ConnectionError as error:
            raise SmallModelError("worker_lost", "the worker went away") from error
        finally:
            writer.close()

    async def ask_info(self) -> protocol.Info:
        """Return what the worker has loaded. Raises SmallModelError."""
        async with self.events(protocol.InfoCommand()) as events:
            async for event in events:
                if isinstance(event, protocol.Info):
                    return event
        raise SmallModelError("worker_lost", "the worker did not say what it is")

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            opening = asyncio.open_unix_connection(str(self._socket), limit=protocol.MAX_LINE_BYTES)
            return await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise SmallModelError("worker_unavailable", "the worker is not there") from error


async def _read(reader: asyncio.StreamReader) -> AsyncIterator[protocol.Event]:
    """Events up to the last one of a command. Raises SmallModelError."""
    while True:
        try:
            line = await reader.readline()
            event = protocol.event_decoder.decode(line) if line else None
        except ValueError as error:  # a line over the limit, or no event of the protocol
            raise SmallModelError("worker_lost", "the worker's answer cannot be read") from error
        if event is None:
            raise SmallModelError("worker_lost", "the worker closed the connection in mid-draft")
        yield event
        if isinstance(event, protocol.Done | protocol.DraftFailed | protocol.Info):
            return


class DraftBuilder:
    """Collects a draft's events; belongs to one draft."""

    def __init__(self) -> None:
        self.tokens: list[protocol.Token] = []
        self.started: protocol.Started | None = None
        self.plan: protocol.PlanMade | None = None
        self.done: protocol.Done | None = None

    def add(self, event: protocol.Event) -> None:
        """Take one event. Raises SmallModelError for `DraftFailed`."""
        match event:
            case protocol.Token():
                self.tokens.append(event)
            case protocol.Started():
                self.started = event
            case protocol.PlanMade():
                self.plan = event
            case protocol.Done():
                self.done = event
            case protocol.DraftFailed(code=code, message=message):
                raise SmallModelError(_FAILURES.get(code, "worker_failed"), message)
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
            layer_agreement=_agreement(tokens),
        )

    def hidden(self) -> FloatArray | None:
        """The draft's hidden states as the judge takes them; None where there are none, or of another shape."""
        if self.done is None or len(self.done.hidden) != len(HiddenPlace):
            return None
        rows = np.full((len(HiddenPlace), HIDDEN_SIZE), np.nan, np.float32)
        for place, row in enumerate(self.done.hidden):
            if len(row) == HIDDEN_SIZE:
                rows[place] = row
        return rows

    def planned(self) -> Draft:
        """The draft when its plan stands: the plan's outcome, no calls, not complete."""
        outcome = _OUTCOMES[self.plan.kind] if self.plan else Outcome.UNPARSABLE
        text = "".join(token.text for token in self.tokens)
        return Draft(outcome, (), text, complete=False, signals=self.signals(), plan=self.plan_names)

    def draft(self) -> Draft:
        """The draft that `Done` ended; not complete where a limit did.

        Raises:
            SmallModelError: there was no `Done`.
        """
        if self.done is None:
            raise SmallModelError("worker_lost", "the draft has no end")
        text, complete = self.done.text, self.done.finish == "stop"
        try:
            parsed = pattern.parse_draft(text)
        except pattern.PatternError:
            return Draft(Outcome.UNPARSABLE, (), text, complete, self.signals(), self.plan_names, self.hidden())
        calls = tuple(DraftCall(call.name, call.arguments) for call in parsed.calls)
        return Draft(_OUTCOMES[parsed.kind], calls, text, complete, self.signals(), parsed.plan, self.hidden())


def _agreement(tokens: Sequence[protocol.Token]) -> FloatArray | None:
    """Return each token's layer agreement, NaN where it has none; None where no token has one."""
    shares = [np.nan if token.layer_agreement is None else token.layer_agreement for token in tokens]
    return None if np.isnan(shares).all() else np.asarray(shares, np.float32)
