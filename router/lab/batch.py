"""The gateway's small side over a long list of requests, without a gateway running: the engine drafts in this process.

Every request goes through the code that answers it online, dialect, judge and errors included; only the drafts are made
together, `Engine.draft_many`, in chunks of a fixed size, each from an empty prefix cache. So an answer depends on its
chunk and on nothing else: a run that was cut short goes on to the same answers, and a chunk can be checked by itself.
Seconds are those of a draft among seven others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import orjson

from evaluation.cases.case import Case
from evaluation.traces.client import ClientReply, Endpoint, reply_of
from evaluation.traces.collect import Keep, row_of
from evaluation.traces.table import TraceRow
from evaluation.traces.wire import Completion
from policies.rules.baselines import SmallOnly
from router.cascade.decision import Decision
from router.cascade.drafting import Drafter
from router.cascade.gateway import Gateway
from router.cascade.recorder import Recorder
from router.dialects.chat_completions import ChatCompletions
from router.dialects.errors import ClientError
from router.http.completion_endpoint import answer
from router.selection.serving_policy import PlainPolicy, ServingPolicy
from router.settings import Small
from slm.protocol import DraftCommand, Event, Info

if TYPE_CHECKING:
    from slm.engine.engine import DraftEngine

PINNED = "smallcall/small"
CHUNK = 64
"""Requests that are drafted together; part of what makes a run reproducible."""
NO_DEADLINE_S = 1e9
"""A draft's time must not decide what is scored."""


class Batch:
    """Answers requests with the small model pinned.

    Args:
        engine: of this process.
        small: `max_tokens` is used.
        grammar: whether drafts are made under the grammar of their tools, as a gateway's are.
    """

    def __init__(self, engine: DraftEngine, small: Small, *, grammar: bool = True) -> None:
        self._engine, self._grammar = engine, grammar
        self._small = small.model_copy(update={"deadline_s": NO_DEADLINE_S})
        self.endpoint = Endpoint("http://in.process/v1", PINNED, include_signals=True)
        """As the traces name it."""

    async def ask(self, cases: Sequence[Case], todo: Sequence[Case], keep: Keep, *, chunk: int = CHUNK) -> None:
        """Answer what is in `todo`, in whole chunks of `cases`; rows are kept chunk by chunk."""
        wanted = {case.id for case in todo}
        for start in range(0, len(cases), chunk):
            together = cases[start : start + chunk]
            if any(case.id in wanted for case in together):
                replies = await self.replies([self.endpoint.body(case.messages, case.tools) for case in together])
                for case, reply in zip(together, replies, strict=True):
                    if case.id in wanted:
                        keep(row_of(case, self.endpoint, reply))

    async def replies(self, bodies: Sequence[dict[str, Any]]) -> list[ClientReply]:
        """The answers to one chunk of requests, in order."""
        self._engine.clear_prefix_cache()
        table = _Table(self._engine.info, len(bodies))
        tasks = [asyncio.create_task(self._reply(body, _Seat(table, index))) for index, body in enumerate(bodies)]
        for index, task in enumerate(tasks):
            task.add_done_callback(partial(table.ended, index))
        try:
            await table.full.wait()
            places = sorted(table.commands)
            commands = [table.commands[place] for place in places]
            for index, events in self._engine.draft_many(commands):
                table.drafts[places[index]].set_result(events)
                await asyncio.sleep(0)
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _reply(self, body: dict[str, Any], seat: _Seat) -> ClientReply:
        dialect, started_at = ChatCompletions(), datetime.now(UTC)
        try:
            chat = dialect.read(orjson.dumps(body), {})
            gateway = Gateway(
                _Pinned(PlainPolicy(SmallOnly(), "small_only")),
                Drafter(seat, self._small, grammar=self._grammar),
                None,
                _Unrecorded(),
                draft_if_down=False,
            )
            reply = await answer(gateway, gateway.begin(chat, dialect))
            body_sent, status = dict(reply.body or {}), 200
        except ClientError as error:
            body_sent, status = dict(dialect.error(error)), error.status
        completion = msgspec.json.decode(orjson.dumps(body_sent), type=Completion)
        small = completion.smallcall.small if completion.smallcall else None
        busy_s = (small.prefill_s or 0.0) + (small.decode_s or 0.0) if small else 0.0
        return reply_of(completion, ClientReply(started_at, 1, busy_s, None, status))


@dataclass(frozen=True, slots=True)
class _Pinned:
    """Implements `router.cascade.gateway.Policies`: one fixed policy."""

    own: ServingPolicy


@dataclass(slots=True)
class _Table:
    """Where the requests of a chunk wait for each other."""

    info: Info
    seats: int
    commands: dict[int, DraftCommand] = field(default_factory=dict)
    drafts: dict[int, asyncio.Future[list[Event]]] = field(default_factory=dict)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    _ready: set[int] = field(default_factory=set)

    def sit(self, index: int, command: DraftCommand) -> asyncio.Future[list[Event]]:
        """Put a command on the table."""
        self.commands[index] = command
        self.drafts[index] = asyncio.get_running_loop().create_future()
        self._count(index)
        return self.drafts[index]

    def ended(self, index: int, task: asyncio.Task[ClientReply]) -> None:
        """A request has its answer, with or without a draft."""
        self._count(index)

    def _count(self, index: int) -> None:
        """The last one makes the table full."""
        self._ready.add(index)
        if len(self._ready) == self.seats:
            self.full.set()


class _Seat:
    """The small model as one request of a chunk sees it."""

    def __init__(self, table: _Table, index: int) -> None:
        self._table, self._index = table, index

    @property
    def info(self) -> Info | None:
        """Implements `SmallModel.info`: what is loaded."""
        return self._table.info

    def events(self, command: DraftCommand) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Implements `SmallModel.events`: the events of one draft."""
        return self._events(command)

    @contextlib.asynccontextmanager
    async def _events(self, command: DraftCommand) -> AsyncIterator[AsyncIterator[Event]]:
        drafted = await self._table.sit(self._index, command)

        async def events() -> AsyncIterator[Event]:
            for event in drafted:
                yield event

        yield events()


class _Unrecorded(Recorder):
    """A study leaves no rows in a ledger."""

    def __init__(self) -> None:
        pass

    async def record(self, decision: Decision) -> None:
        """Nothing is written."""


def drafted_rows(
    engine: DraftEngine, small: Small, cases: Sequence[Case], on_progress: Callable[[int, int], None]
) -> list[TraceRow]:
    """Return the small model's answers to the cases, by the gateway's own path."""
    rows: list[TraceRow] = []

    def keep(row: TraceRow) -> None:
        rows.append(row)
        on_progress(len(rows), len(cases))

    asyncio.run(Batch(engine, small).ask(cases, cases, keep))
    return rows
