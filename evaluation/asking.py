"""Cases asked of one or several endpoints that serve the same model: one queue, a number of requests under way at each.

A faster endpoint takes more of the queue. One that cannot be reached several times in a row is left alone and its cases
go to the others; the last one is kept, and then failures are rows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from evaluation.cases import Case
from evaluation.chat_client import ChatClient, Endpoint, Reply

GIVE_UP_AFTER = 3
"""Requests in a row that found no endpoint (each with its own retries), after which it is left alone."""


async def ask_all(
    cases: Sequence[Case],
    clients: Sequence[tuple[Endpoint, ChatClient]],
    concurrency: int,
    keep: Callable[[Case, Reply], None],
) -> None:
    """Ask every case once; `keep` is called with each reply, in no set order. Raises what `keep` or a client raises."""
    waiting = deque(cases)
    unreached = [0] * len(clients)

    def deserted(place: int) -> bool:
        alive = sum(count < GIVE_UP_AFTER for count in unreached)
        return unreached[place] >= GIVE_UP_AFTER and alive > 0

    async def work(place: int) -> None:
        endpoint, client = clients[place]
        while waiting and not deserted(place):
            case = waiting.popleft()
            reply = await client.ask(endpoint.body(case.messages, case.tools))
            unreached[place] = unreached[place] + 1 if reply.error == "connection" else 0
            others = any(count < GIVE_UP_AFTER for other, count in enumerate(unreached) if other != place)
            if reply.error == "connection" and others:
                waiting.append(case)  # another endpoint may be reached
            else:
                keep(case, reply)

    while waiting:  # a case that was put back may find no worker left: ask on with those that can be reached
        try:
            async with asyncio.TaskGroup() as tasks:
                for place in range(len(clients)):
                    if not deserted(place):
                        for _ in range(min(concurrency, len(cases))):
                            tasks.create_task(work(place))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
