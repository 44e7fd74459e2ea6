"""The engines that need no download: our worker, and the same worker behind our OpenAI-compatible endpoint."""

import pytest

from router.local import SmallModel
from slm.protocol import Token
from tests.engines.conformance import CHECKS, Abilities, Check, asked, drafted, events_of
from tests.engines.conftest import Direct


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_an_engine_conforms(engine: tuple[SmallModel, Abilities], check: Check) -> None:
    """Each engine passes each check, with the abilities that are stated for it."""
    await check(*engine)


async def test_both_doors_tell_the_same_of_the_same_draft(worker: Direct, endpoint: SmallModel) -> None:
    """Text, log-probabilities, margins, entropies and forced tokens of one draft, by the socket and over HTTP.

    The feasible mass is not compared: the two grammars say the same of this draft, but not at the same tokens.
    """
    ours, signals, _ = await drafted(worker, asked())
    theirs, told, _ = await drafted(endpoint, asked())
    assert ours.text == theirs.text
    for name in ("logprob", "margin", "entropy"):
        assert getattr(signals, name) == pytest.approx(getattr(told, name), abs=1e-4), name
    assert signals.layer_agreement == pytest.approx(told.layer_agreement, abs=1e-6)
    whole = [bool(event.text) for event in await events_of(worker, asked()) if isinstance(event, Token)]
    assert (signals.span == told.span)[whole].all()  # over HTTP a token inside a character belongs to no span
