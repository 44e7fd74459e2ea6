"""A long mix of requests with random cancellations: no slot is lost, no word goes astray, nothing piles up."""

import gc
import os
import random
import statistics
import threading
import time

import pytest

from bench.process import resident_bytes
from slm.draft import Drafting
from slm.engine import Engine
from slm.model import Loaded
from slm.protocol import CompleteCommand, Done, DraftCommand, Event, Failed, Started, Token
from slm.scheduler import Job, Scheduler
from tests.slm.conftest import TIME, WEATHER, command, tool

REQUESTS = 2000
KINDS = 40
CLIENTS = 12
SEED = 17
SAMPLE_EVERY = 100
"""Requests between two looks at the memory."""
GROWTH_BYTES = 4 << 20
"""By so much the memory may grow between the second quarter of the requests and the last."""


def mixed(draw: random.Random) -> DraftCommand | CompleteCommand:
    """A request of one of many kinds: prompts long and short, drafts and completions, free and by grammar, some
    refused."""
    words = " ".join(draw.choices(["London", "12", "weather in", "CET", "Paris tomorrow?"], k=draw.choice([1, 4, 60])))
    if draw.random() < 0.25:
        return CompleteCommand(
            prompt=f"<|im_start|>user\n{words}",
            grammar=draw.choice([None, 'root ::= "a" [b-f]+ "."', 'root ::= "broken']),
            stop=draw.choice([[], ["e"]]),
            alternatives=draw.choice([0, 2]),
            max_tokens=draw.choice([1, 12, 24]),
        )
    return command(
        messages=[{"role": "user", "content": words}],
        tools=draw.choice([[WEATHER], [TIME, WEATHER], [tool(f"t{n}") for n in range(9)]]),
        grammar=draw.random() < 0.7,
        max_tokens=draw.choice([0, 1, 5, 12, 24]),
    )


class Memory:
    """What the process holds, looked at from time to time."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self._requests = 0
        self._lock = threading.Lock()

    def served(self) -> None:
        """One request more is over."""
        with self._lock:
            self._requests += 1
            if self._requests % SAMPLE_EVERY == 0:
                self.samples.append(resident_bytes(os.getpid()))

    @property
    def growth(self) -> float:
        """Bytes between the second quarter's median and the last quarter's."""
        quarter = len(self.samples) // 4
        return statistics.median(self.samples[-quarter:]) - statistics.median(self.samples[quarter : 2 * quarter])


class Listener:
    """What one job was told; may want no more after some events."""

    def __init__(self, patience: int | None) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()
        self._patience = patience

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed) or len(self.events) == self._patience:
            self.over.set()


@pytest.mark.slow
def test_two_thousand_requests_with_random_cancellations(llama: Engine) -> None:
    """Twelve clients, every third request given up at a random event: the others get what they get alone, nothing of
    a draft is kept, and memory is flat."""
    draw = random.Random(SEED)
    before = living_drafts()
    kinds = [mixed(draw) for _ in range(KINDS)]
    expected = [alone(llama._loaded, kind) for kind in kinds]
    engine = Engine(llama._loaded, slots=5, cache_bytes=200_000)
    crashes: list[str] = []
    scheduler = Scheduler(engine, max_queue=CLIENTS, clock=time.monotonic, crashed=crashes.append)
    scheduler.start()
    plan = [(draw.randrange(KINDS), draw.choice([None, None, draw.randrange(0, 9)])) for _ in range(REQUESTS)]
    wrong: list[int] = []
    memory = Memory()
    plans = [plan[n::CLIENTS] for n in range(CLIENTS)]

    def client(mine: list[tuple[int, int | None]]) -> None:
        for kind, patience in mine:
            told = Listener(patience)
            job = Job(kinds[kind], told, time.monotonic())
            if not scheduler.submit(job) or not (patience == 0 or told.over.wait(60)):
                wrong.append(kind)
                continue
            scheduler.cancel(job)
            memory.served()
            end, tokens = heard(told.events)
            if tokens != expected[kind][1][: len(tokens)] or (patience is None and (end, tokens) != expected[kind]):
                wrong.append(kind)

    threads = [threading.Thread(target=client, args=(mine,)) for mine in plans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert crashes == []
    until = time.monotonic() + 10
    while scheduler._active and time.monotonic() < until:
        time.sleep(0.01)
    assert not scheduler._active
    assert not scheduler._waiting
    assert engine._prefixes.bytes_held <= 200_000
    assert scheduler.stop(10)
    assert len(memory.samples) == REQUESTS // SAMPLE_EVERY
    assert memory.growth < GROWTH_BYTES, memory.samples
    assert living_drafts() <= before


def living_drafts() -> int:
    """Drafts that something still holds, with their keys and values."""
    gc.collect()
    return sum(type(one) is Drafting for one in gc.get_objects())


def alone(loaded: Loaded, asked: DraftCommand | CompleteCommand) -> tuple[str | None, list[int]]:
    """What a request gets from an engine of its own."""
    ((_, events),) = Engine(loaded, cache_bytes=0, lookahead=False).draft_many([asked])
    return heard(events)


def heard(events: list[Event]) -> tuple[str | None, list[int]]:
    """The end, by text or code, and the tokens; a start must come before any token."""
    last = events[-1] if events else None
    end = last.text if isinstance(last, Done) else last.code if isinstance(last, Failed) else None
    tokens = [event.id for event in events if isinstance(event, Token)]
    assert not tokens or isinstance(events[0], Started)
    return end, tokens
