"""A long mix of requests with random cancellations: no slot is lost, no word goes astray, nothing piles up."""

import asyncio
import gc
import os
import random
import statistics
import threading
import time
from pathlib import Path

import pytest

from bench.process import resident_bytes
from slm.engine.draft import DraftState
from slm.engine.engine import DraftEngine
from slm.engine.model import LoadedModel, load
from slm.protocol import (
    CompleteCommand,
    Done,
    DraftCommand,
    DraftFailed,
    Event,
    Info,
    InfoCommand,
    Started,
    Token,
    encode,
    event_decoder,
)
from slm.worker.scheduler import Job, Scheduler
from tests.slm.conftest import TIME, WEATHER, command, tool
from tests.slm.worker.test_server import Worker

REQUESTS = 2000
KINDS = 40
CLIENTS = 12
OVER_THE_SOCKET = 300
INT8 = 300
LATE_S = 0.05
"""Deadlines up to this come while a draft waits, while its prompt is read, or in mid-draft."""
LITERAL = "abc defgh. " * 50
SEED = 17
SAMPLE_EVERY = 100
"""Requests between two looks at the memory."""
GROWTH_BYTES = 2 << 20
"""By so much the memory may grow from a quarter of the requests to the next."""


def mixed(draw: random.Random) -> DraftCommand | CompleteCommand:
    """A request of one of many kinds: prompts long and short, some beyond one pass, drafts and completions, free and by
    grammar, one of many forced tokens, some with hardly any time, some refused."""
    some = ["London", "12", "weather in", "CET", "Paris tomorrow?"]
    words = " ".join(draw.choices(some, k=draw.choice([1, 4, 60, 150])))
    deadline_s = draw.choice([30.0, 30.0, 30.0, draw.uniform(0.0, LATE_S)])
    if draw.random() < 0.25:
        grammar = draw.choice([None, 'root ::= "a" [b-f]+ "."', 'root ::= "broken', f'root ::= "{LITERAL}"'])
        return CompleteCommand(
            prompt=f"<|im_start|>user\n{words}",
            grammar=grammar,
            stop=draw.choice([[], ["e"]]),
            alternatives=draw.choice([0, 2]),
            max_tokens=400 if grammar and LITERAL in grammar else draw.choice([1, 12, 24]),
            deadline_s=deadline_s,
        )
    return command(
        messages=[{"role": "user", "content": words}],
        tools=draw.choice([[WEATHER], [TIME, WEATHER], [tool(f"t{n}") for n in range(9)]]),
        grammar=draw.random() < 0.7,
        max_tokens=draw.choice([0, 1, 5, 12, 24]),
        deadline_s=deadline_s,
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
        """Bytes from the second quarter's median to the third's, or from the third's to the last's: the lesser. What
        leaks grows in both; what the allocator of a large process takes at once and keeps stands in one."""
        quarter = len(self.samples) // 4
        second, third, last = (statistics.median(self.samples[n * quarter : (n + 1) * quarter]) for n in (1, 2, 3))
        return min(third - second, last - third)


class Listener:
    """What one job was told; may want no more after some events."""

    def __init__(self, patience: int | None) -> None:
        self.events: list[Event] = []
        self.over = threading.Event()
        self._patience = patience

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | DraftFailed) or len(self.events) == self._patience:
            self.over.set()


@pytest.mark.slow
def test_two_thousand_requests_with_random_cancellations(llama: DraftEngine) -> None:
    """Twelve clients, every third request given up at a random event: the others get what they get alone, nothing of
    a draft is kept, and memory is flat."""
    draw = random.Random(SEED)
    before = living_drafts()
    kinds = [mixed(draw) for _ in range(KINDS)]
    expected = [alone(llama._loaded, kind) for kind in kinds]
    engine = DraftEngine(llama._loaded, slots=5, cache_bytes=200_000)
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
            if scheduler.submit(job) or not (patience == 0 or told.over.wait(60)):
                wrong.append(kind)
                continue
            scheduler.cancel(job)
            memory.served()
            end, tokens = heard(told.events)
            if not as_alone(kinds[kind], (end, tokens), expected[kind], whole=patience is None):
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


@pytest.mark.slow
async def test_some_hundred_requests_over_the_socket(llama: DraftEngine, llama_folder: Path, tmp_path: Path) -> None:
    """The same mix through a real worker, whose clients leave by closing the connection: the others get what they get
    alone, and the worker is as good as new behind it."""
    draw = random.Random(SEED + 1)
    kinds = [mixed(draw) for _ in range(KINDS)]
    expected = [alone(llama._loaded, kind) for kind in kinds]
    worker = Worker(tmp_path, model=llama_folder, arguments=("--max-queue", str(CLIENTS), "--cache-mb", "1"))
    wrong: list[int] = []

    async def client() -> None:
        for _ in range(OVER_THE_SOCKET // CLIENTS):
            kind, patience = draw.randrange(KINDS), draw.choice([None, None, draw.randrange(0, 9)])
            events: list[Event] = []
            async with worker.connected() as (reader, writer):
                writer.write(encode(kinds[kind]) + b"\n")
                while len(events) != patience and (line := await asyncio.wait_for(reader.readline(), 60)):
                    events.append(event_decoder.decode(line))
            if not as_alone(kinds[kind], heard(events), expected[kind], whole=patience is None):
                wrong.append(kind)

    try:
        await asyncio.to_thread(worker.wait, 180)
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        assert wrong == []
        assert isinstance((await worker.ask(InfoCommand()))[0], Info)
        assert isinstance((await worker.ask(command(max_tokens=4)))[-1], Done)
    finally:
        worker.stop()
    assert [line for line in worker.log.read_text().splitlines() if "crashed" in line] == []


@pytest.mark.slow
def test_some_hundred_requests_in_int8(llama_folder: Path) -> None:
    """In int8, where who shares a pass may change a token: every request has its one end, whatever it is, and nobody
    crashes."""
    draw = random.Random(SEED + 2)
    engine = DraftEngine(load(llama_folder, dtype="int8"), slots=5, cache_bytes=200_000)
    crashes: list[str] = []
    scheduler = Scheduler(engine, max_queue=INT8, clock=time.monotonic, crashed=crashes.append)
    scheduler.start()
    told = [Listener(None) for _ in range(INT8)]
    for one in told:
        assert scheduler.submit(Job(mixed(draw), one, time.monotonic())) is None
    assert all(one.over.wait(120) for one in told)
    assert scheduler.stop(10)
    assert crashes == []
    assert all(sum(isinstance(event, Done | DraftFailed) for event in one.events) == 1 for one in told)
    assert {type(one.events[-1]) for one in told} == {Done, DraftFailed}
    assert engine._prefixes.bytes_held <= 200_000


def living_drafts() -> int:
    """Drafts that something still holds, with their keys and values."""
    gc.collect()
    return sum(type(one) is DraftState for one in gc.get_objects())


def as_alone(
    asked: DraftCommand | CompleteCommand,
    got: tuple[str | None, list[int]],
    expected: tuple[str | None, list[int]],
    *,
    whole: bool,
) -> bool:
    """Whether a request got what it gets alone: all of it where its client waited for its end and it had the time."""
    (end, tokens), begun = got, expected[1][: len(got[1])]
    if not whole or asked.deadline_s <= LATE_S:
        return tokens == begun and (end is not None or not whole)
    return got == expected


def alone(loaded: LoadedModel, asked: DraftCommand | CompleteCommand) -> tuple[str | None, list[int]]:
    """What a request gets from an engine of its own."""
    ((_, events),) = DraftEngine(loaded, cache_bytes=0, prompt_lookup=False).draft_many([asked])
    return heard(events)


def heard(events: list[Event]) -> tuple[str | None, list[int]]:
    """The end, by text or code, and the tokens; a start must come before any token."""
    last = events[-1] if events else None
    end = last.text if isinstance(last, Done) else last.code if isinstance(last, DraftFailed) else None
    tokens = [event.id for event in events if isinstance(event, Token)]
    assert not tokens or isinstance(events[0], Started)
    return end, tokens
