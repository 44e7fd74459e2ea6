"""The engines that need no download: our worker, and the same worker behind our OpenAI-compatible endpoint."""

import pytest

from router.small.worker_client import SmallModel
from slm.protocol import Token
from tests.engines.conformance import CHECKS, CITIES, Abilities, Check, asked, drafted, events_of, weather
from tests.engines.conftest import Direct


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_an_engine_conforms(engine: tuple[SmallModel, Abilities], check: Check) -> None:
    """Each engine passes each check, with the abilities that are stated for it."""
    await check(*engine)


@pytest.mark.parametrize("city", CITIES)
async def test_both_doors_tell_the_same_of_the_same_draft(worker: Direct, endpoint: SmallModel, city: str) -> None:
    """Text, log-probabilities, margins, entropies, forced tokens and spans of one draft, by the socket and over HTTP.

    The feasible mass is not compared: the two grammars say the same of this draft, but not at the same tokens.
    """
    command = asked(tools=[weather(city={"enum": [city]}, days={"type": "integer"})])
    ours, signals, _ = await drafted(worker, command)
    theirs, told, _ = await drafted(endpoint, command)
    assert ours.text == theirs.text
    assert city in ours.text
    for name in ("logprob", "margin", "entropy"):
        assert getattr(signals, name) == pytest.approx(getattr(told, name), abs=1e-4), name
    assert signals.layer_agreement == pytest.approx(told.layer_agreement, abs=1e-6)
    assert signals.span.tolist() == told.span.tolist()
    assert signals.forced.tolist() == told.forced.tolist()


async def test_a_character_of_several_tokens_is_among_what_is_compared(worker: Direct) -> None:
    """Or the doors would agree on the spans of such tokens for want of any."""
    command = asked(tools=[weather(city={"enum": CITIES[1:2]})])
    tokens = [event for event in await events_of(worker, command) if isinstance(event, Token)]
    assert any(not token.text for token in tokens)
