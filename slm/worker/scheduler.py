"""A bounded queue in front of the engine, worked off by one thread.

First come, first served; a job that is cancelled or past its deadline leaves between two forward passes, its slot free
at once. A job that would probably wait too long is refused, so that the large model can answer. An unforeseen error
fails the jobs of its own step as `internal`, and no others. Of each accepted job this is promised: unless it is
cancelled or the scheduler is stopped or ends first, it gets exactly one `Done` or `DraftFailed`, as its last event,
from the scheduler's thread.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from slm.engine.draft import Clock, DraftState
from slm.engine.engine import DraftError
from slm.protocol import CompleteCommand, DraftCommand, DraftFailed, Event

HOLD_WEIGHT = 0.1
"""Weight of the latest draft in the moving average of the seconds for which a draft holds its slot."""


class SteppedEngine(Protocol):
    """The part of `slm.engine.engine.DraftEngine` that the scheduler uses."""

    @property
    def slots(self) -> int: ...

    def begin(self, command: DraftCommand | CompleteCommand, *, queue_s: float) -> DraftState: ...

    def step(self, drafts: Sequence[DraftState]) -> None: ...

    def release(self, draft: DraftState) -> None: ...


class Job:
    """One command on its way through the scheduler.

    Args:
        on_event: called with each event from the scheduler's thread; must not block or raise.
        received: reading of the scheduler's clock when the command came in; the deadline counts from here.
    """

    def __init__(
        self, command: DraftCommand | CompleteCommand, on_event: Callable[[Event], None], received: float
    ) -> None:
        self.command, self.on_event, self.received = command, on_event, received
        self.cancelled = False

    def late(self, now: float) -> bool:
        """True if the deadline has passed at `now`, a reading of the scheduler's clock."""
        return now - self.received >= self.command.deadline_s


class Scheduler:
    """Owns the engine's thread from `start` to `stop`.

    Args:
        max_queue: jobs that may wait; those being drafted are not counted.
        max_wait_s: for how long a job may be expected to wait; None: as long as it has to.
        crashed: called with the place of an unforeseen error, never with its message, which may quote a prompt.
        ended: called from the engine's thread where it ends without having been stopped: nothing is drafted any more.
    """

    def __init__(
        self,
        engine: SteppedEngine,
        *,
        max_queue: int,
        max_wait_s: float | None = None,
        clock: Clock,
        crashed: Callable[[str], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._max_queue, self._max_wait_s = engine, max_queue, max_wait_s
        self._clock, self._crashed, self._ended = clock, crashed, ended
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._active: dict[Job, DraftState] = {}
        """Changed by the engine's thread only, under the lock."""
        self._admitted: dict[Job, float] = {}
        """Clock reading at which each active job got its slot."""
        self._hold_s: float | None = None
        """For how long a draft holds its slot, the last ones counting most; None before the first has ended."""
        self._came_by: float | None = None
        """Clock reading at which the engine's thread last took up a piece of work; None while it is idle."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start to draft."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Take no more steps. Returns whether the thread ended in time; its forward pass cannot be broken off."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def submit(self, job: Job) -> DraftFailed | None:
        """Queue a job. Returns None, or the refusal if the queue is full or too slow; a refused job gets no events."""
        with self._changed:
            if len(self._waiting) >= self._max_queue + self._free():
                return DraftFailed(code="queue_full", message="too many drafts are waiting")
            wait_s = self._expected_wait_s()
            if self._max_wait_s is not None and wait_s > self._max_wait_s:
                return DraftFailed(code="wait_too_long", message=f"a draft would wait for about {wait_s:.1f} s")
            self._waiting.append(job)
            self._changed.notify()
            return None

    @property
    def silent_s(self) -> float:
        """For how long the engine's thread has been at one piece of work, a forward pass as a rule; 0 where it has
        nothing to do."""
        came_by = self._came_by
        return 0.0 if came_by is None else self._clock() - came_by

    def _expected_wait_s(self) -> float:
        """For how long a new job would wait: at least as long as the one that is next in turn does already, and until
        those before it have had the slots for as long as drafts held them of late."""
        before = len(self._waiting) - self._free()
        if before < 0:
            return 0.0
        waits_s = self._clock() - self._waiting[0].received if before else 0.0
        return max(waits_s, (before + 1) * (self._hold_s or 0.0) / self._engine.slots)

    def cancel(self, job: Job) -> None:
        """Cancel a job. Idempotent; an event that is being delivered meanwhile may still arrive."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)

    def _free(self) -> int:
        return max(0, self._engine.slots - len(self._active))

    # ── the engine's thread ──────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._end_unwanted()
                self._admit()
                if self._active:
                    self._step(dict(self._active))
        except BaseException as exc:  # noqa: BLE001  Whatever it is, no thread must end in silence.
            self._crashed(_whereabouts(exc))
        if not self._stopping:
            self._ended()

    def _step(self, active: Mapping[Job, DraftState]) -> None:
        if self._guarded(active, lambda: self._engine.step(list(active.values()))):
            for job, draft in active.items():
                self._pass_on(job, draft)

    def _wait_for_work(self) -> bool:
        """False when stopping."""
        with self._changed:
            while not (self._stopping or self._waiting or self._active):
                self._came_by = None
                self._changed.wait()
            self._came_by = self._clock()
            return not self._stopping

    def _end_unwanted(self) -> None:
        now = self._clock()
        for job, draft in list(self._active.items()):
            if job.cancelled:
                self._leave(job, draft)
            elif job.late(now):
                draft.expire()
                self._pass_on(job, draft)
        with self._changed:
            late = [job for job in self._waiting if job.late(now)]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            job.on_event(DraftFailed(code="deadline", message="the deadline passed in the queue"))

    def _admit(self) -> None:
        while self._free():
            with self._changed:
                if not self._waiting:
                    return
                job = self._waiting.popleft()
            self._guarded([job], partial(self._begin, job))

    def _begin(self, job: Job) -> None:
        try:
            draft = self._engine.begin(job.command, queue_s=self._clock() - job.received)
        except DraftError as exc:
            self._emit(job, DraftFailed(code=exc.code, message=str(exc)))
            return
        with self._changed:
            self._active[job], self._admitted[job] = draft, self._clock()

    def _pass_on(self, job: Job, draft: DraftState) -> None:
        """Deliver the events of a draft; if it is finished, its slot is freed before the last event is delivered."""
        events = list(draft.events)
        draft.events.clear()
        if draft.finished:
            self._leave(job, draft)
        for event in events:
            self._emit(job, event)

    def _leave(self, job: Job, draft: DraftState) -> None:
        self._free_slot(job)
        self._guarded([], lambda: self._engine.release(draft))

    def _free_slot(self, job: Job) -> None:
        with self._changed:
            self._active.pop(job, None)
            since = self._admitted.pop(job, None)
            if since is not None:
                held_s = self._clock() - since
                mean_s = held_s if self._hold_s is None else self._hold_s
                self._hold_s = mean_s + HOLD_WEIGHT * (held_s - mean_s)

    def _emit(self, job: Job, event: Event) -> None:
        if not job.cancelled:
            job.on_event(event)

    def _guarded(self, jobs: Iterable[Job], work: Callable[[], None]) -> bool:
        """Do `work`; whatever it raises fails these jobs and leaves the thread alive."""
        self._came_by = self._clock()
        try:
            work()
        # The one boundary that keeps an error in one draft from the others. A panic of the grammar's library, which is
        # written in Rust, is no Exception.
        except BaseException as exc:  # noqa: BLE001
            self._crashed(_whereabouts(exc))
            for job in jobs:
                self._free_slot(job)
                self._emit(job, DraftFailed(code="internal", message=f"the draft crashed: {type(exc).__name__}"))
            return False
        return True


def _whereabouts(exc: BaseException) -> str:
    """Type and places of an error, innermost last; not its message."""
    frames = traceback.extract_tb(exc.__traceback__)[-6:]
    return f"{type(exc).__name__} at " + " > ".join(f"{frame.name}:{frame.lineno}" for frame in frames)
