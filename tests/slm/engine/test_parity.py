"""Greedy drafts are those of transformers' own `generate`, whatever is switched on to make them faster."""

from pathlib import Path

import pytest

from bench.parity import MODES, SETTINGS, compared, differences, forcing, joined
from slm.engine.model import load
from tests.slm.conftest import TIME, WEATHER, command

QUESTIONS = ["What is the weather in London?", "Time in CET and UTC", "Paris, 12 days", "weather weather weather"]


@pytest.mark.parametrize("architecture", ["llama_folder", "opt_folder"])
def test_drafts_are_those_of_generate(request: pytest.FixtureRequest, architecture: str) -> None:
    """Token for token, free, by grammar and by its masks alone, with every accelerator alone, with all of them, and
    with none."""
    folder: Path = request.getfixturevalue(architecture)
    commands = [
        command(messages=[{"role": "user", "content": text}], tools=[WEATHER, TIME], tool_choice=choice, max_tokens=40)
        for text in QUESTIONS
        for choice in ("auto", "required")
    ]
    made = compared(load(folder), load(folder), commands)
    for mode in ("free", "grammar", "masked"):
        assert made[mode]["tokens"] > len(commands)
        assert {name: row["different"] for name, row in made[mode]["settings"].items()} == {
            name: [] for name in SETTINGS
        }
    assert made["forcing"] == {"of": len(commands), "other_tokens": [], "other_text": []}


def test_a_forced_token_that_the_masks_do_not_know_is_found(llama_folder: Path) -> None:
    """Drafts that differ between forced tokens and masks are told by place; some differ in their text too."""
    tokens = load(llama_folder).tokens
    one, two = tokens.encode("Thought"), [id_ for letter in "Thought" for id_ in tokens.encode(letter)]
    assert one != two
    made = forcing(tokens, {0: one, 2: one, 4: one, 5: two}, {0: one, 2: two, 4: tokens.encode("Thou")})
    assert made == {"of": 3, "other_tokens": [2, 4], "other_text": [4]}


def test_shares_are_joined_by_their_places() -> None:
    """What differs in a process's share is told by its place in the whole list."""
    share = {mode: {"tokens": 5, "settings": {
        name: {"identical": 1, "of": 2, "different": [1]} for name in SETTINGS
    }} for mode in MODES}  # fmt: skip
    share["forcing"] = {"of": 2, "other_tokens": [0, 1], "other_text": [1]}
    made = joined([share, share], [[0, 2], [1, 3]])
    assert made["masked"]["settings"]["all on"] == {"identical": 2, "of": 4, "different": [2, 3]}
    assert made["forcing"] == {"of": 4, "other_tokens": [0, 1, 2, 3], "other_text": [2, 3]}


def test_a_different_draft_is_found() -> None:
    """A wrong token, a shorter draft under a grammar and an empty one are different; a shorter free one is not."""
    expected = [[1, 2, 3], [1, 2, 3], [1, 2, 3], [4]]
    assert differences(expected, [[1, 2, 3], [1, 9, 3], [1, 2], []], free=True) == [1, 3]
    assert differences(expected, [[1, 2, 3], [1, 9, 3], [1, 2], [4]], free=False) == [1, 2]
