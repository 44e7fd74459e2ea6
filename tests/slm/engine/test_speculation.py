"""Guesses: they come from the conversation, save steps, and change nothing that is written."""

import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.engine.engine import DraftEngine
from slm.engine.model import load
from slm.engine.speculation import GRAM, GUESS_TOKENS, PromptLookup, value_under_way
from slm.protocol import Done, Token
from tests.slm.conftest import TIME, WEATHER, command, schema, tool


def letters(text: str) -> list[int]:
    """A tokenizer of characters."""
    return [ord(character) for character in text]


def test_a_value_goes_on_as_the_conversation_does() -> None:
    """The text behind the value's last occurrence at a word's beginning is guessed, not beyond its line."""
    ahead = PromptLookup("In St. Louis or in Saint Louis?\nNow.", letters)
    assert ahead.guess([], "Sa") == letters("int Lo")[:GUESS_TOKENS]
    assert ahead.guess([], "Lou") == letters("is?")
    assert ahead.guess([], "ouis") == []
    assert ahead.guess([], "Paris") == []


def test_a_value_that_is_everywhere_is_not_looked_for_forever() -> None:
    """Where many occurrences begin no word, or the value is long, a guess costs little; CPU time of this thread."""
    ahead = PromptLookup("x" + "a" * 300_000, letters)
    began = time.thread_time()
    for length in (1, 8, 100, 1_000, 100_000):
        assert ahead.guess([], "a" * length) == []
    assert time.thread_time() - began < 0.05
    assert PromptLookup("an ant " + "banana " * 2, letters).guess([], "an") == letters("t banana ")[:GUESS_TOKENS]


def test_what_was_written_once_is_guessed_again() -> None:
    """Tokens that followed the same tokens before, last occurrence first."""
    ahead = PromptLookup("", letters)
    assert ahead.guess([1, 2, 3, 4, 5, 6], "") == []
    assert ahead.guess([1, 2, 3, 4, 5, 6, 1, 2, 3], "") == [4, 5, 6, 1, 2, 3][:GUESS_TOKENS]
    assert ahead.guess([1, 2, 3, 4, 5, 6, 1, 2, 3, 9, 1, 2, 3], "") == [9, 1, 2, 3]
    assert GRAM == 3


@pytest.mark.parametrize(
    ("text", "value"),
    [('{"city": "Par', "Par"), ('{"n": 12', "12"), ('{"n": [1, 2', "1, 2"), ('{"a": "x", "b": "y z', "y z")],
)
def test_the_value_under_way_is_found(text: str, value: str) -> None:
    """A value begins behind its quote, or behind its key's colon."""
    assert value_under_way(text) == value


WORDS = ["London", "12", "Saint Louis", "weather in", "CET", '"city": "', "unit", "\n"]
PLACE = tool(
    "find", schema(["city", "note"], city={"type": "string"}, note={"type": "string"}, days={"type": "integer"})
)


@given(
    text=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join),
    grammar=st.booleans(),
    max_tokens=st.integers(1, 90),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_guessing_changes_no_token_and_no_signal(
    engine: DraftEngine, text: str, grammar: bool, max_tokens: int
) -> None:
    """With and without guesses a draft has the same tokens, the same ones forced, the same signals, the same end."""
    asked = command(
        messages=[{"role": "user", "content": text}], tools=[PLACE, WEATHER, TIME], tool_choice="required",
        grammar=grammar, max_tokens=max_tokens,
    )  # fmt: skip
    plain = DraftEngine(engine._loaded, prompt_lookup=False)
    expected, got = list(plain.draft(asked)), list(engine.draft(asked))
    ends = [events[-1] for events in (expected, got)]
    assert [(end.text, end.finish, end.tokens) for end in ends if isinstance(end, Done)] == [
        (ends[0].text, ends[0].finish, ends[0].tokens)  # type: ignore[union-attr]
    ] * 2
    a, b = ([event for event in events if isinstance(event, Token)] for events in (expected, got))
    assert [(t.id, t.forced, t.span) for t in a] == [(t.id, t.forced, t.span) for t in b]
    for name in ("logprob", "margin", "entropy", "feasible_mass"):
        assert [getattr(t, name) for t in b] == pytest.approx([getattr(t, name) for t in a], abs=1e-4)


class Oracle(PromptLookup):
    """Guesses what it was told, some of it wrong: the engine's worst and best case."""

    def __init__(self, written: list[int], wrong_every: int) -> None:
        super().__init__("", letters)
        self._written, self._wrong_every = written, wrong_every

    def guess(self, ids, value):  # type: ignore[no-untyped-def]
        ahead = self._written[len(ids) : len(ids) + GUESS_TOKENS]
        return [token + 1 if (len(ids) + i) % self._wrong_every == 0 else token for i, token in enumerate(ahead)]


@pytest.mark.parametrize("wrong_every", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize("grammar", [True, False])
def test_right_guesses_save_steps_and_wrong_ones_cost_nothing_else(
    engine: DraftEngine, wrong_every: int, grammar: bool
) -> None:
    """Guesses of which every nth is wrong save the other steps; the draft and its keys and values stay the same."""
    asked = command(tools=[PLACE], tool_choice="required", grammar=grammar, max_tokens=60)
    plain = DraftEngine(engine._loaded, prompt_lookup=False).begin(asked)
    reference = DraftEngine(engine._loaded, prompt_lookup=False, cache_bytes=0)
    while not plain.finished:
        reference.step([plain])
    guessing = DraftEngine(engine._loaded, cache_bytes=0)
    draft = guessing.begin(asked)
    draft._prompt_lookup = Oracle(plain.ids, wrong_every)
    while not draft.finished:
        guessing.step([draft])
    assert draft.ids == plain.ids
    ends = [d.events[-1] for d in (plain, draft)]
    steps = [end.steps for end in ends if isinstance(end, Done)]
    assert ends[0].text == ends[1].text  # type: ignore[union-attr]
    if wrong_every == 1:
        assert steps[1] == steps[0]
    if wrong_every == 1000:
        assert steps[1] <= steps[0] / (1.5 if grammar else 3)
    held = min(draft.kv.length, plain.kv.length)
    torch.testing.assert_close(draft.kv.read(0, held), plain.kv.read(0, held), atol=1e-4, rtol=1e-4)


def test_guesses_never_outgrow_the_memory(llama_folder: object) -> None:
    """A draft that is guessed up to its last token stays within its buffer."""
    loaded = load(llama_folder)  # type: ignore[arg-type]
    written = DraftEngine(loaded, prompt_lookup=False)
    asked = command(grammar=False, max_tokens=7)
    plain = written.begin(asked)
    while not plain.finished:
        written.step([plain])
    draft = DraftEngine(loaded).begin(asked)
    draft._prompt_lookup = Oracle(plain.ids + plain.ids, 1000)
    engine = DraftEngine(loaded)
    while not draft.finished:
        engine.step([draft])
        assert draft.kv.length <= draft.kv.layers[0].get_max_length()
    assert draft.ids == plain.ids
