"""Rows made of rows: whatever a rule changes in a request, the draft that is trained on is still the right one."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.dataset.constructed import request_text
from slm.dataset.examples import Example
from slm.dataset.missing_values import without_value
from slm.dataset.parallel_calls import Joiner
from slm.dataset.paraphrase import paraphrased, reworded
from slm.dataset.tool_errors import after_error
from slm.engine.engine import DraftEngine
from slm.engine.model import load
from slm.format.pattern import render_prompt
from slm.training.curriculum import training_data
from slm.training.recipe import Recipe
from tests.slm.conftest import schema, tool

SEEDS = st.integers(0, 2**32).map(random.Random)
TEXT = {"type": "string"}
WEATHER = tool("get_weather", schema(["city", "day"], city=TEXT, day=TEXT), "Get the weather of the specified city.")
TRAINS = tool("find_trains", schema(["start", "seats"], start=TEXT, seats={"type": "integer"}), "Find trains.")
MODE = tool("set_mode", schema(["mode"], mode={"type": "string", "enum": ["day", "night"]}), "Set a mode.")
TOOLS = (WEATHER, TRAINS, MODE)


def row(said: str, name: str, tools: Sequence[Any] = TOOLS, *, system: str | None = None, **arguments: Any) -> Example:
    """A row of one message that calls one tool."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": said})
    return Example(said, "made", "simple", said, tuple(messages), tuple(tools), "calls", ((name, arguments),))


ROME = row("What is the weather in Rome on Monday?", "get_weather", city="Rome", day="Monday")
OSLO = row("Tell me the weather in Oslo on Friday.", "get_weather", city="Oslo", day="Friday")
TRAIN = row("Find trains from Bonn with 2 seats.", "find_trains", start="Bonn", seats=2)


def schemas(example: Example) -> dict[str, Any]:
    """Parameters by tool."""
    return {offered["function"]["name"]: offered["function"]["parameters"] for offered in example.tools}


# ── several calls at once ────────────────────────────────────────────────────────────────────────────────────────────


@given(SEEDS)
def test_what_is_asked_at_once_is_called_at_once(rng: random.Random) -> None:
    """Every call's words stand in the request, in the calls' order, and every call fits its schema."""
    made = Joiner([ROME, OSLO, TRAIN]).joined(ROME, rng)
    assert made is not None
    text = (request_text(made) or "").lower()
    assert 2 <= len(made.calls) <= 4
    for name, arguments in made.calls:
        assert jsonschema_rs.validator_for(schemas(made)[name]).is_valid(arguments)
        assert all(str(value).lower() in text for value in arguments.values())
    cities = [text.index(arguments["city"].lower()) for name, arguments in made.calls if name == "get_weather"]
    assert cities == sorted(cities)
    assert len({json.dumps(call) for call in made.calls}) == len(made.calls)
    assert made.tools == ROME.tools


def test_one_request_for_several_values_becomes_a_call_for_each() -> None:
    """Only the listed value differs between the calls; the enumeration stands in its place."""
    joiner = Joiner([ROME, row("Weather in Oslo, today", "get_weather", [WEATHER], city="Oslo", day="today")])
    alone = row("What is the weather in Rome on Monday?", "get_weather", [WEATHER, MODE], city="Rome", day="Monday")
    texts = {request_text(made) for seed in range(40) if (made := joiner.joined(alone, random.Random(seed)))}
    assert "What is the weather in Rome and Oslo on Monday?" in texts
    assert all("on Monday" in (text or "") for text in texts)


def test_a_value_that_follows_from_another_is_not_listed() -> None:
    """A country that nobody said belongs to the city that was: the call cannot be repeated for another city."""
    tools = [tool("look_up", schema(["city"], city=TEXT, country=TEXT))]
    paris = row("Look up the city of Paris", "look_up", tools, city="Paris", country="France")
    quito = row("Look up the city of Quito", "look_up", tools, city="Quito", country="Ecuador")
    for seed in range(30):
        made = Joiner([paris, quito]).joined(paris, random.Random(seed))
        assert made is not None
        assert {arguments["country"] for _, arguments in made.calls} == {"France", "Ecuador"}


def test_a_value_that_describes_another_word_is_not_listed() -> None:
    """ "A comedy film" asks for one film: no list is made of it."""
    tools = [tool("find", schema(["genre"], genre=TEXT))]
    films = [row(f"Find a {genre} film", "find", tools, genre=genre) for genre in ("comedy", "horror")]
    for seed in range(30):
        made = Joiner(films).joined(films[0], random.Random(seed))
        assert made is not None
        assert (request_text(made) or "").lower().count("film") == 2


@pytest.mark.parametrize(
    "partner",
    [
        row("Set night mode.", "set_mode", [MODE], mode="night"),
        row("Weather in Bern on Sunday", "get_weather", system="Today is Monday.", city="Bern", day="Sunday"),
        row("Trains from Ulm, 1 seat", "find_trains", [tool("find_trains", schema(["start"], start=TEXT)), WEATHER],
            start="Ulm"),
    ],
    ids=["a tool that it was never offered", "another system message", "a tool of another schema"],
)  # fmt: skip
def test_rows_that_were_asked_under_other_conditions_are_not_joined(partner: Example) -> None:
    """A partner whose answer could be another one beside these tools is left alone."""
    for seed in range(20):
        made = Joiner([ROME, partner]).joined(ROME, random.Random(seed))
        assert made is None or partner.calls[0] not in made.calls


# ── a required value that is missing ─────────────────────────────────────────────────────────────────────────────────


def test_a_request_without_its_value_asks_back() -> None:
    """The whole phrase goes, the rest stays as it was, and the draft is ask."""
    texts = set()
    for seed in range(20):
        made = without_value(ROME, random.Random(seed))
        assert made is not None
        assert (made.kind, made.calls, made.tools) == ("ask", (), ROME.tools)
        texts.add(request_text(made))
    assert texts == {"What is the weather on Monday?", "What is the weather in Rome?"}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Which is it in Rome?", "a form of to be stands before it"),
        ("I was born in Rome. What about the weather there?", "a participle stands before it"),
        ("Tell me the weather in Rome, the city of seven hills.", "more is said of it"),
        ("Tell me of Rome and the weather in Rome.", "it is said twice"),
        ("The weather in Rome?", "too little is left"),
        ("Please give me the Rome weather of the day.", "it is no phrase"),
        ("Tell me the weather in Greater Romeville now.", "it is part of a word"),
    ],
)
def test_nothing_is_taken_out_where_the_rest_is_no_sentence(said: str, why: str) -> None:
    """Each rule refuses."""
    example = row(said, "get_weather", [tool("get_weather", schema(["city"], city=TEXT)), MODE], city="Rome")
    assert without_value(example, random.Random(0)) is None, why


@pytest.mark.parametrize(
    ("city", "others"),
    [
        ({**TEXT, "default": "Rome"}, []),
        ({**TEXT, "description": "the city, by default here"}, []),
        ({"enum": ["Rome", "Oslo"]}, []),
        (TEXT, [tool("get_local_weather", schema([]))]),
    ],
    ids=["a default", "a default that is described", "choices", "a rival that needs no city"],
)
def test_nothing_is_taken_out_that_could_be_done_without(city: Any, others: list[Any]) -> None:
    """Where the call can be made without the value, asking back would be wrong."""
    tools = [tool("get_weather", schema(["city"], city=city)), *others]
    example = row("Tell me the weather forecast in Rome.", "get_weather", tools, city="Rome")
    assert without_value(example, random.Random(0)) is None


# ── tool errors ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(SEEDS, st.sampled_from([ROME, TRAIN, row("Night mode, please", "set_mode", mode="night")]))
def test_a_call_that_failed_is_put_right(rng: random.Random, example: Example) -> None:
    """The schema refuses the call before, the complaint names what is wrong with it, and the gold stays."""
    made = after_error(example, rng)
    assert made is not None
    assert (made.calls, made.tools) == (example.calls, example.tools)
    *asked, assistant, result = made.messages
    assert tuple(asked) == example.messages
    function = assistant["tool_calls"][0]["function"]
    wrong = json.loads(function["arguments"])
    (error, *_), right = (
        list(jsonschema_rs.validator_for(schemas(example)[function["name"]]).iter_errors(wrong)),
        dict(example.calls[0][1]),
    )
    changed = {key for key in {*wrong, *right} if wrong.get(key) != right.get(key)}
    assert len(changed) == 1
    assert changed.pop() in result["content"]
    assert error.message
    assert result["tool_call_id"] == assistant["tool_calls"][0]["id"]
    assert render_prompt(made.messages, made.tools)


def test_what_cannot_fail_stays() -> None:
    """Free, optional text suits any tool, and several calls or none have no one call to fail."""
    free = row("hello", "say", [tool("say", schema([], text=TEXT))], text="hello")
    several = Example("s", "made", "c", "c", ROME.messages, TOOLS, "calls", (*ROME.calls, *OSLO.calls))
    none = Example("n", "made", "c", "c", ROME.messages, TOOLS, "none")
    assert [after_error(one, random.Random(0)) for one in (free, several, none)] == [None] * 3


# ── other words ──────────────────────────────────────────────────────────────────────────────────────────────────────


@given(SEEDS)
def test_paraphrased_tools_still_fit_the_gold(rng: random.Random) -> None:
    """Names change alike everywhere, values never, and the gold fits the schema."""
    history = after_error(ROME, random.Random(1))
    assert history is not None
    made = paraphrased(history, rng)
    (name, arguments) = made.calls[0]
    assert list(arguments.values()) == ["Rome", "Monday"]
    assert jsonschema_rs.validator_for(schemas(made)[name]).is_valid(arguments)
    assert made.messages[1]["tool_calls"][0]["function"]["name"] == name
    assert name.lower().replace("-", "").replace("_", "") == "getweather"


def test_a_description_is_said_in_other_words() -> None:
    """The leading verb and phrases of the table change, nothing else does."""
    texts = {reworded("Get the weather of the specified city.", random.Random(seed)) for seed in range(60)}
    assert texts == {
        f"{verb} the weather of the {which} city."
        for verb in ("Get", "Retrieve", "Fetch")
        for which in ("specified", "given")
    }


def test_names_that_would_collide_stay() -> None:
    """Two names that are one in another style keep apart."""
    tools = (tool("get_day", schema([])), tool("getDay", schema([])), tool("v1.odd name", schema([])))
    for seed in range(30):
        made = paraphrased(row("x", "get_day", tools), random.Random(seed))
        offered = [entry["function"]["name"] for entry in made.tools]
        assert len(set(offered)) == 3
        assert "v1.odd name" in offered


def test_one_seed_gives_a_group_the_same_words() -> None:
    """Rows of a group still share their tools afterwards."""
    first, second = (paraphrased(one, random.Random(9)) for one in (ROME, TRAIN))
    assert first.tools == second.tools


# ── the training data ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("switch", ["join_calls", "ask_back", "tool_errors", "paraphrase"])
def test_each_is_a_switch_of_the_recipe(llama_folder: Path, switch: str) -> None:
    """Off, the data are as without it; on, they differ, and rows that ask something else are counted."""
    tokens = load(llama_folder).tokens

    def data(**augment: float) -> Any:
        fields = {"name": "x", "base": "x", "augment": augment, "optimiser": {"learning_rate": 1e-3}}
        return training_data([ROME, OSLO, TRAIN], Recipe.model_validate(fields), tokens)

    plain, on = data(), data(**{switch: 1.0})
    assert plain.constructed == {}
    assert plain == data(**{switch: 0.0})
    assert [tree.ids for tree in on.trees] != [tree.ids for tree in plain.trees]
    assert on.rows == plain.rows
    if switch != "paraphrase":
        assert on.constructed[switch] >= 2
    assert on.kinds.get("ask", 0) == (on.constructed["ask_back"] if switch == "ask_back" else 0)


def test_made_rows_are_prompts_that_the_engine_takes(llama: DraftEngine) -> None:
    """Every training row can be asked: an engine begins a draft for each."""
    from tests.slm.conftest import command

    made = [
        Joiner([ROME, OSLO, TRAIN]).joined(ROME, random.Random(0)),
        without_value(ROME, random.Random(0)),
        after_error(ROME, random.Random(0)),
        paraphrased(ROME, random.Random(2)),
    ]
    for example in made:
        assert example is not None
        assert llama.begin(command(messages=list(example.messages), tools=list(example.tools))).prompt_tokens > 10
