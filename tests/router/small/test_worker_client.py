"""The worker's client against a socket that speaks the protocol, and a draft made of its events."""

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from policies.types import HIDDEN_SIZE, Outcome, Span
from router.small.worker_client import DraftBuilder, SmallModelError, WorkerClient
from slm import protocol
from tests.router.fake_worker import INFO, FakeWorker, Step, draft_events

CALL = 'Thought: get_weather\nAction: get_weather\nAction Input: {"city": "Paris"}'
COMMAND = protocol.DraftCommand(messages=[{"role": "user", "content": "x"}], tools=[])


async def drafted(socket: Path, script: list[Step]) -> DraftBuilder:
    """What a client builds of the script."""
    builder = DraftBuilder()
    async with FakeWorker(socket, script).running(), WorkerClient(socket).events(COMMAND) as events:
        async for event in events:
            builder.add(event)
    return builder


async def test_events_become_a_draft(tmp_path: Path) -> None:
    """Calls, plan, text and one signal a token arrive as the judge knows them."""
    draft = (await drafted(tmp_path / "s", list(draft_events(CALL, -0.5)))).draft()
    assert (draft.outcome, draft.complete, draft.plan, draft.text) == (Outcome.CALLS, True, ("get_weather",), CALL)
    assert [(call.name, call.arguments) for call in draft.calls] == [("get_weather", '{"city": "Paris"}')]
    assert draft.signals is not None
    assert len(draft.signals) == len(CALL)
    assert set(draft.signals.logprob.tolist()) == {-0.5}
    assert draft.signals.span[CALL.index("Paris")] == Span.VALUE


async def test_what_the_engine_sees_inside_arrives_or_is_missing(tmp_path: Path) -> None:
    """Layer agreement and hidden states of a draft; a place that it does not have is NaN, an engine without is None."""
    events = list(draft_events(CALL))
    seen = [
        msgspec.structs.replace(event, layer_agreement=None if event.id else 0.5)
        if isinstance(event, protocol.Token)
        else event
        for event in events
    ]
    assert isinstance(events[-1], protocol.Done)
    places = [[0.5] * HIDDEN_SIZE, [], [0.25] * HIDDEN_SIZE, [], [1.0] * HIDDEN_SIZE]
    seen[-1] = msgspec.structs.replace(events[-1], hidden=places)
    draft = (await drafted(tmp_path / "s", list(seen))).draft()
    assert draft.signals is not None
    assert draft.signals.layer_agreement is not None
    assert draft.signals.layer_agreement[0] == 0.5
    assert np.isnan(draft.signals.layer_agreement[1:]).all()
    assert draft.hidden is not None
    assert np.isfinite(draft.hidden).all(axis=1).tolist() == [True, False, True, False, True]
    blind = (await drafted(tmp_path / "b", list(events))).draft()
    assert blind.signals is not None
    assert (blind.signals.layer_agreement, blind.hidden) == (None, None)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ([], "worker_lost"),
        (list(draft_events(CALL))[:5], "worker_lost"),
        ([b"garbage\n"], "worker_lost"),
        ([b'{"event": "unheard"}\n'], "worker_lost"),
        ([b"x" * (protocol.MAX_LINE_BYTES + 2)], "worker_lost"),
        ([INFO], "worker_lost"),
        ([protocol.DraftFailed(code="queue_full", message="m")], "queue_full"),
        ([protocol.DraftFailed(code="wait_too_long", message="m")], "wait_too_long"),
        ([protocol.DraftFailed(code="deadline", message="m")], "draft_timeout"),
        ([protocol.DraftFailed(code="bad_request", message="m")], "draft_refused"),
        ([protocol.DraftFailed(code="prompt_too_long", message="m")], "prompt_too_long"),
        ([protocol.DraftFailed(code="of tomorrow", message="m")], "worker_failed"),
    ],
)
async def test_every_failure_of_the_worker_has_one_of_our_reasons(
    tmp_path: Path, script: list[Step], code: str
) -> None:
    """Whatever the worker does, the gateway sees a SmallModelError with a stable code."""
    with pytest.raises(SmallModelError) as caught:
        await drafted(tmp_path / "s", script)
    assert caught.value.code == code


async def test_no_worker_is_worker_unavailable(tmp_path: Path) -> None:
    """A socket that is not there fails at once."""
    with pytest.raises(SmallModelError) as caught:
        await WorkerClient(tmp_path / "none").ask_info()
    assert caught.value.code == "worker_unavailable"


async def test_leaving_the_block_hangs_up(tmp_path: Path) -> None:
    """The worker sees the connection close: that is how a draft is cancelled."""
    worker = FakeWorker(tmp_path / "s", [*list(draft_events(CALL))[:3], 60.0])
    async with worker.running():
        async with WorkerClient(tmp_path / "s").events(COMMAND) as events:
            assert isinstance(await anext(events), protocol.Started)
        await asyncio.wait_for(worker.hung_up.wait(), 5)
    assert worker.commands == [COMMAND]


async def test_a_request_over_the_line_limit_is_not_sent(tmp_path: Path) -> None:
    """The large model takes it, and the worker never sees it."""
    huge = protocol.DraftCommand(messages=[{"role": "user", "content": "x" * protocol.MAX_LINE_BYTES}], tools=[])
    async with FakeWorker(tmp_path / "s", []).running() as worker:
        with pytest.raises(SmallModelError) as caught:
            async with WorkerClient(tmp_path / "s").events(huge):
                pass
    assert caught.value.code == "prompt_too_long"
    assert worker.commands == []


@pytest.mark.parametrize(
    ("kind", "outcome"), [("calls", Outcome.CALLS), ("none", Outcome.NO_CALL), ("ask", Outcome.ASK)]
)
def test_a_draft_that_was_given_up_says_what_was_planned(kind: str, outcome: Outcome) -> None:
    """It has no calls and is not complete, so nothing can serve it."""
    builder = DraftBuilder()
    builder.add(protocol.PlanMade(kind=kind, names=["a"] if kind == "calls" else []))  # type: ignore[arg-type]
    draft = builder.planned()
    assert (draft.outcome, draft.calls, draft.complete) == (outcome, (), False)
    with pytest.raises(SmallModelError):
        builder.draft()


def test_a_draft_off_the_pattern_or_cut_is_told_as_such() -> None:
    """Unparsable text is an outcome, and a limit makes a draft incomplete."""
    builder = DraftBuilder()
    builder.add(protocol.Done(text="Hello!", finish="length", decode_s=0, steps=1, tokens=1))
    draft = builder.draft()
    assert (draft.outcome, draft.complete, draft.text) == (Outcome.UNPARSABLE, False, "Hello!")
