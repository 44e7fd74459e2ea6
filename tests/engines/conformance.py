"""The checks. Each takes an engine as the gateway sees it and raises AssertionError where it does not behave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from policies.types import Draft, Outcome, Span, TokenSignals
from router.small.worker_client import DraftBuilder, SmallModel, SmallModelError
from slm.protocol import Done, DraftCommand, Event, PlanMade, Started, Token

UNLIKELY = -0.3
"""Nats: less than this for something in a plan that the model would not have written by itself."""
CITIES = ["Zürich", "東京", "São Paulo"]


@dataclass(frozen=True, slots=True)
class Abilities:
    """What an engine tells and does beyond what all must."""

    entropy_and_mass: bool
    forced: bool
    layer_agreement: bool
    hidden: bool
    same_in_company: bool
    """Drafts are the same to the token, whoever else is drafted for at the time."""


Check = Callable[[SmallModel, Abilities], Awaitable[None]]


def weather(**properties: Any) -> dict[str, Any]:
    """A tool whose arguments always come to an end, whatever model writes them."""
    properties = properties or {"city": {"enum": CITIES}, "days": {"type": "integer"}, "exact": {"type": "boolean"}}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": "get_weather", "description": "", "parameters": parameters}}


def asked(text: str = "Hello there.", **changes: Any) -> DraftCommand:
    """A question that must be answered by one call."""
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "tools": [weather()],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 96,
        "deadline_s": 120.0,
    }
    return DraftCommand(**{**fields, **changes})


async def events_of(model: SmallModel, command: DraftCommand) -> list[Event]:
    """All events of a draft."""
    async with model.events(command) as events:
        return [event async for event in events]


async def drafted(model: SmallModel, command: DraftCommand) -> tuple[Draft, TokenSignals, Done]:
    """A draft as the gateway reads it. Raises SmallModelError."""
    builder = DraftBuilder()
    for event in await events_of(model, command):
        builder.add(event)
    assert builder.done is not None
    return builder.draft(), builder.signals(), builder.done


async def tells_what_it_is(model: SmallModel, can: Abilities) -> None:
    """It has a name and says which pattern it is asked by."""
    assert model.info is not None
    assert model.info.model
    assert model.info.pattern_version


async def a_call_fits_its_tool(model: SmallModel, can: Abilities) -> None:
    """Under the grammar any model writes a call of the offered tool, with arguments that fit, in any script."""
    draft, _, done = await drafted(model, asked())
    assert draft.outcome is Outcome.CALLS, draft.text
    (call,) = draft.calls
    arguments = json.loads(call.arguments)
    assert call.name == "get_weather"
    assert arguments["city"] in CITIES
    assert isinstance(arguments["days"], int)
    assert isinstance(arguments["exact"], bool)
    assert done.finish == "stop"
    for city in CITIES:
        only = asked(tools=[weather(city={"enum": [city]})])
        draft, _, _ = await drafted(model, only)
        assert json.loads(draft.calls[0].arguments) == {"city": city}


async def events_come_in_order(model: SmallModel, can: Abilities) -> None:
    """Start, tokens, the plan before any value, the end; the tokens' texts are the draft."""
    events = await events_of(model, asked())
    kinds = [type(event) for event in events]
    assert kinds[0] is Started
    assert kinds[-1] is Done
    assert kinds.count(PlanMade) == 1
    assert set(kinds[1:-1]) == {Token, PlanMade}
    value = next(n for n, event in enumerate(events) if isinstance(event, Token) and event.span == int(Span.VALUE))
    assert kinds.index(PlanMade) < value
    text = "".join(event.text for event in events if isinstance(event, Token))
    done = events[-1]
    assert isinstance(done, Done)
    assert text.rstrip("\n") == done.text.rstrip("\n")
    assert done.tokens == kinds.count(Token)


async def decoding_is_greedy(model: SmallModel, can: Abilities) -> None:
    """The same question twice gives the same draft."""
    first, second = await drafted(model, asked()), await drafted(model, asked())
    assert first[0].text == second[0].text
    np.testing.assert_allclose(first[1].logprob, second[1].logprob, atol=1e-3)


async def probabilities_are_the_models_own(model: SmallModel, can: Abilities) -> None:
    """A call that only the grammar made the model write shows by its probability; margins are those of two tokens."""
    _, signals, _ = await drafted(model, asked())
    plan = signals.logprob[np.isin(signals.span, [int(Span.PLAN), int(Span.SYNTAX)])]
    assert np.isfinite(signals.logprob).all()
    assert (signals.logprob <= 0).all()
    assert plan.min() < UNLIKELY
    assert ((signals.margin >= 0) & (signals.margin <= 1)).all()


async def what_it_cannot_tell_is_nan(model: SmallModel, can: Abilities) -> None:
    """Entropy, feasible mass, forced tokens, inner layers: told, or plainly not."""
    _, signals, done = await drafted(model, asked())
    assert np.isfinite(signals.entropy).all() == can.entropy_and_mass
    assert np.isfinite(signals.feasible_mass).all() == can.entropy_and_mass
    assert np.isnan(signals.entropy).any() != can.entropy_and_mass
    assert signals.forced.any() == can.forced
    assert (signals.layer_agreement is not None) == can.layer_agreement
    assert bool(done.hidden) == can.hidden


async def a_draft_is_bounded(model: SmallModel, can: Abilities) -> None:
    """No more tokens than were asked for, and the end says so."""
    draft, _, done = await drafted(model, asked(max_tokens=3))
    assert done.finish == "length"
    assert done.tokens <= 3
    assert not draft.complete


async def refusals_have_reasons(model: SmallModel, can: Abilities) -> None:
    """A prompt beyond the context; a deadline that is over, which leaves at most the beginning of a draft."""
    with pytest.raises(SmallModelError) as caught:
        await drafted(model, asked("one two three four five six seven eight nine ten " * 2000))
    assert caught.value.code == "prompt_too_long"
    assert await _end_of(model, asked(deadline_s=0.001)) in ("draft_timeout", "deadline")


async def _end_of(model: SmallModel, command: DraftCommand) -> str:
    """How a draft ended, or why there is none."""
    try:
        _, _, done = await drafted(model, command)
    except SmallModelError as error:
        return error.code
    return done.finish


async def without_a_grammar_it_is_free(model: SmallModel, can: Abilities) -> None:
    """Whatever is written ends, and all of it was feasible."""
    _, signals, done = await drafted(model, asked(grammar=False, max_tokens=24))
    assert done.tokens <= 24
    assert len(signals.logprob) == done.tokens
    if can.entropy_and_mass:
        assert (signals.feasible_mass == 1).all()


async def a_draft_that_is_left_is_over(model: SmallModel, can: Abilities) -> None:
    """Thirty drafts given up at their first token do not keep another from being made at once."""
    long = asked(grammar=False, max_tokens=900, tools=[weather(note={"type": "string"})])

    async def leave() -> None:
        async with model.events(long) as events:
            async for event in events:
                if isinstance(event, Token):
                    return

    began = time.monotonic()
    await asyncio.gather(*(leave() for _ in range(30)))
    left_s = time.monotonic() - began
    began = time.monotonic()
    await drafted(model, asked(max_tokens=8))
    assert time.monotonic() - began < max(5.0, left_s)


async def drafts_do_not_mix(model: SmallModel, can: Abilities) -> None:
    """Six at once get what each gets alone."""
    commands = [asked(f"Weather in {place} for {n} days?") for n, place in enumerate(["Oslo", "Rome", "Kyiv"] * 2)]
    alone = [(await drafted(model, command))[0] for command in commands]
    together = [draft for draft, _, _ in await asyncio.gather(*(drafted(model, command) for command in commands))]
    for one, other in zip(alone, together, strict=True):
        assert one.outcome is other.outcome is Outcome.CALLS
        assert not can.same_in_company or one.text == other.text


CHECKS: Sequence[Check] = (
    tells_what_it_is,
    a_call_fits_its_tool,
    events_come_in_order,
    decoding_is_greedy,
    probabilities_are_the_models_own,
    what_it_cannot_tell_is_nan,
    a_draft_is_bounded,
    refusals_have_reasons,
    without_a_grammar_it_is_free,
    a_draft_that_is_left_is_over,
    drafts_do_not_mix,
)

WORKER = Abilities(entropy_and_mass=True, forced=True, layer_agreement=True, hidden=True, same_in_company=True)
ENDPOINT = Abilities(entropy_and_mass=True, forced=True, layer_agreement=True, hidden=False, same_in_company=True)
LLAMACPP = Abilities(entropy_and_mass=False, forced=False, layer_agreement=False, hidden=False, same_in_company=False)
