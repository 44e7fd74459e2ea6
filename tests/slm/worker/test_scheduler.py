"""The scheduler: in turn, bounded, and no draft's misfortune is another's."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from slm.engine.draft import DraftState
from slm.engine.engine import DraftEngine, DraftError
from slm.protocol import Done, DraftCommand, DraftFailed, Event, Started, Token
from slm.worker.scheduler import Job, Scheduler
from tests.slm.conftest import command


class Tripping:
    """A real engine that can be held at a step, or told to fail: the seam at which faults are put in."""

    slots = 1

    def __init__(self, engine: DraftEngine) -> None:
        self._engine = engine
        self.gate = threading.Event()
        self.gate.set()
        self.stepped = threading.Event()
        self.fault: Callable[[str], None] = lambda where: None

    def begin(self, command: DraftCommand, *, queue_s: float) -> DraftState:
        self.fault("begin")
        return self._engine.begin(command, queue_s=queue_s)

    def step(self, drafts: Sequence[DraftState]) -> None:
        self.stepped.set()
        assert self.gate.wait(10)
        self.fault("step")
        self._engine.step(drafts)

    def release(self, draft: DraftState) -> None:
        self.fault("release")
        self._engine.release(draft)


class Told:
    """What a job was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Done | DraftFailed):
            self.ended.set()

    def end(self) -> Event:
        assert self.ended.wait(10)
        return self.events[-1]


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A scheduler on the tiny model, with its faults, its clock and its log."""

    def __init__(self, engine: DraftEngine) -> None:
        self.engine, self.clock = Tripping(engine), Clock()
        self.crashes: list[str] = []
        self.dead = threading.Event()
        self.scheduler = Scheduler(
            self.engine,
            max_queue=2,
            max_wait_s=10.0,
            clock=self.clock,
            crashed=self.crashes.append,
            ended=self.dead.set,
        )
        self.scheduler.start()

    def submit(self, **changes: object) -> tuple[Job, Told, DraftFailed | None]:
        told = Told()
        job = Job(command(**{"max_tokens": 8, "tool_choice": "required", **changes}), told, self.clock())
        return job, told, self.scheduler.submit(job)

    def hold(self) -> tuple[Job, Told]:
        """A job that is being drafted and stays so until the gate is opened."""
        self.engine.gate.clear()
        self.engine.stepped.clear()
        job, told, refused = self.submit()
        assert refused is None
        assert self.engine.stepped.wait(10)
        return job, told


@pytest.fixture
def rig(llama: DraftEngine) -> Iterator[Rig]:
    """A running scheduler, stopped after the test."""
    made = Rig(llama)
    yield made
    made.engine.gate.set()
    assert made.scheduler.stop(10)


def test_jobs_are_told_their_whole_draft_in_turn(rig: Rig) -> None:
    """Each job hears Started, its tokens and one end; the second waits for the first."""
    _, first = rig.hold()
    _, second, _ = rig.submit()
    rig.clock.now = 3.0
    rig.engine.gate.set()
    for told in (first, second):
        assert isinstance(told.end(), Done)
        assert isinstance(told.events[0], Started)
        assert sum(isinstance(event, Token) for event in told.events) == 8
    assert second.events[0].queue_s == 3.0  # type: ignore[union-attr]


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(rig: Rig) -> None:
    """One draft runs, two wait, the next is refused; a cancelled one makes room at once."""
    rig.hold()
    jobs = [rig.submit() for _ in range(2)]
    assert [refused for _, _, refused in jobs] == [None, None]
    assert rig.submit()[2] == DraftFailed(code="queue_full", message="too many drafts are waiting")
    rig.scheduler.cancel(jobs[0][0])
    assert rig.submit()[2] is None


def test_a_job_that_would_wait_for_as_long_as_drafts_take_is_refused(rig: Rig) -> None:
    """A draft held the slot for eight seconds: the next in turn is expected to wait so long, the one behind it twice
    that, which is too long; with the slot free nobody is refused."""
    _, first = rig.hold()
    rig.clock.now = 8.0
    rig.engine.gate.set()
    first.end()
    rig.hold()
    assert rig.submit()[2] is None
    assert rig.submit()[2] == DraftFailed(code="wait_too_long", message="a draft would wait for about 16.0 s")


def test_a_job_behind_one_that_waits_too_long_is_refused(rig: Rig) -> None:
    """Before any draft has ended: nobody gets in line behind a job that has waited for longer than the bound."""
    running, _ = rig.hold()
    waiting, _, _ = rig.submit()
    rig.clock.now = 10.5
    refused = rig.submit()[2]
    assert refused is not None
    assert refused.code == "wait_too_long"
    rig.scheduler.cancel(waiting)
    assert rig.submit()[2] is None
    rig.scheduler.cancel(running)


def test_a_thread_at_one_step_for_long_can_be_told(rig: Rig) -> None:
    """The time since it took up its step; none where it waits for work."""
    assert rig.scheduler.silent_s == 0.0
    _, told = rig.hold()
    rig.clock.now = 40.0
    assert rig.scheduler.silent_s == 40.0
    rig.engine.gate.set()
    told.end()
    until = time.monotonic() + 5
    while rig.scheduler.silent_s:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_thread_that_ends_by_itself_is_told(rig: Rig) -> None:
    """An error outside all drafts ends the thread, which says so, in the log without the error's words too."""

    def broken(event: Event) -> None:
        raise ZeroDivisionError("the user's secret words")

    assert rig.scheduler.submit(Job(command(max_tokens=0), broken, 0.0)) is None
    assert rig.dead.wait(10)
    assert len(rig.crashes) == 2
    assert "secret" not in "".join(rig.crashes)


def test_a_cancelled_draft_gives_its_slot_to_the_next(rig: Rig) -> None:
    """Nothing more is told of a cancelled draft, under way or waiting, and the next one is drafted."""
    running, told = rig.hold()
    waiting, unheard, _ = rig.submit()
    _, next_told, _ = rig.submit()
    rig.scheduler.cancel(running)
    rig.scheduler.cancel(waiting)
    rig.scheduler.cancel(waiting)
    rig.engine.gate.set()
    assert isinstance(next_told.end(), Done)
    assert told.events == []
    assert unheard.events == []


def test_a_deadline_counts_the_time_in_the_queue(rig: Rig) -> None:
    """A job whose time runs out while it waits fails as `deadline` and is never begun."""
    _, running = rig.hold()
    _, late, _ = rig.submit(deadline_s=5.0)
    rig.clock.now = 6.0
    rig.engine.gate.set()
    assert isinstance(running.end(), Done)
    assert late.end() == DraftFailed(code="deadline", message="the deadline passed in the queue")


def test_a_draft_under_way_ends_at_its_deadline_with_what_it_has(rig: Rig) -> None:
    """After the first step the deadline ends a draft as `Done`, marked so."""

    def pass_time(where: str) -> None:
        rig.clock.now += 4.0 if where == "step" else 0.0

    rig.engine.fault = pass_time
    _, told, _ = rig.submit(deadline_s=7.0)
    end = told.end()
    assert isinstance(end, Done)
    assert end.finish == "deadline"
    assert 0 < end.tokens == sum(isinstance(event, Token) for event in told.events) < 8


class PanicError(BaseException):
    """What a panic in Rust is in Python: no Exception."""


@pytest.mark.parametrize("error", [ZeroDivisionError, PanicError])
@pytest.mark.parametrize("place", ["begin", "step", "release"])
def test_a_crash_costs_one_draft_and_quotes_nothing(rig: Rig, place: str, error: type[BaseException]) -> None:
    """An unforeseen error fails its own job, is logged by place without its words, and the next job is served."""

    def crash(where: str) -> None:
        if where == place:
            rig.engine.fault = lambda _: None
            raise error("the user's secret words")

    rig.engine.fault = crash
    _, first, _ = rig.submit()
    end = first.end()
    assert isinstance(end, Done) if place == "release" else end == DraftFailed(
        code="internal", message=f"the draft crashed: {error.__name__}"
    )  # fmt: skip
    _, second, _ = rig.submit()
    assert isinstance(second.end(), Done)
    assert len(rig.crashes) == 1
    assert f"{error.__name__} at" in rig.crashes[0]
    assert "secret" not in rig.crashes[0]


def test_what_the_engine_refuses_is_told_by_its_code(rig: Rig) -> None:
    """A refusal of the engine reaches the job as it is and is no crash."""

    def refuse(where: str) -> None:
        raise DraftError("prompt_too_long", "too long")

    rig.engine.fault = refuse
    _, told, _ = rig.submit()
    assert told.end() == DraftFailed(code="prompt_too_long", message="too long")
    assert rig.crashes == []
