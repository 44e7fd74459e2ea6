"""Variation changes what a row offers and how it is worded, never what is right."""

import json
import random
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.dataset.augment import fewer_tools, masked, more_tools, shuffled, varied_limits, without_gold
from slm.dataset.examples import Example
from slm.format.pattern import parse_draft, render_draft, render_prompt
from tests.slm.conftest import schema, tool

SEEDS = st.integers(0, 2**32).map(random.Random)


def described(name: str, **properties: str) -> dict[str, Any]:
    """A tool whose parameters, and itself, have descriptions."""
    fields = {key: {"type": "string", "description": about} for key, about in properties.items()}
    return tool(name, schema(list(fields), **fields), f"What {name} is for")


TOOLS = tuple(described(f"tool_{letter}", city="the city", day="the day") for letter in "abcdef")


def example(*, kind: Any = "calls", messages: Any = None, tools: Any = TOOLS, source: str = "made") -> Example:
    """A row that calls `tool_a`, changed as asked."""
    said = messages or ({"role": "user", "content": "Weather in Rome today?"},)
    calls = (("tool_a", {"city": "Rome", "day": "today"}),) if kind == "calls" else ()
    return Example("r", source, "simple", "c", tuple(said), tuple(tools), kind, calls)


def names(of: Example) -> list[str]:
    """Names of the offered tools, in order."""
    return [offered["function"]["name"] for offered in of.tools]


@given(SEEDS)
def test_shuffling_keeps_the_tools(rng: random.Random) -> None:
    """Only the order changes, and for all rows of a group alike."""
    first, second = shuffled([example(), example(kind="none")], rng)
    assert sorted(names(first)) == sorted(names(example()))
    assert names(first) == names(second)


@given(SEEDS, st.integers(1, 7), st.sampled_from(["calls", "none"]))
def test_fewer_tools_keep_the_called_ones(rng: random.Random, most: int, kind: Any) -> None:
    """The called tool stays, the number is bounded, at least one tool is offered."""
    kept = names(fewer_tools(example(kind=kind), rng, most))
    assert 1 <= len(kept) <= most
    assert kind == "none" or "tool_a" in kept
    assert kept == [name for name in names(example()) if name in kept]


def test_where_the_draft_asks_back_all_tools_stay() -> None:
    """The tool that lacks a value is not known, so none is taken away."""
    assert names(fewer_tools(example(kind="ask"), random.Random(1), 1)) == names(example())


@given(SEEDS)
def test_a_tool_that_was_called_before_stays(rng: random.Random) -> None:
    """A history never speaks of a tool that is not offered."""
    assert {"tool_a", "tool_f"} <= set(names(fewer_tools(example(messages=HISTORY), rng, 2)))


@given(SEEDS, st.integers(0, 3))
def test_more_tools_come_from_other_sources(rng: random.Random, count: int) -> None:
    """Names stay unique, own tools stay in order, and none is added from rows of the same source."""
    pool = [example(source="made", tools=[described("same")]), example(source="other", tools=[described("other")])]
    made, other = map(names, more_tools([example(), example()], rng, pool, count))
    assert made == other
    assert [name for name in made if name != "other"] == names(example())
    assert made.count("other") == min(count, 1)


@pytest.mark.parametrize("kind", ["none", "ask"])
def test_where_no_call_is_right_no_tool_comes_from_elsewhere(kind: Any) -> None:
    """It might fit the request, so the whole group stays, calls of other rows or not."""
    pool = [example(source="other", tools=[described("other")])]
    for group in ([example(kind=kind)], [example(), example(kind=kind)]):
        assert more_tools(group, random.Random(1), pool, 3) == group


@given(SEEDS)
def test_a_tool_with_a_name_like_the_called_one_does_not_come(rng: random.Random) -> None:
    """It might be a rival; words of the other tools' names, and short ones, do not count."""
    own = [described("getWeather"), described("find_hotels")]
    row = replace(example(tools=own), calls=(("getWeather", {"city": "Rome", "day": "today"}),))
    pool = [example(source="other", tools=[described(name)]) for name in ("weather_report", "get_hotel")]
    (made,) = more_tools([row], rng, pool, 3)
    assert set(names(made)) == {"getWeather", "find_hotels", "get_hotel"}


def test_without_its_tools_a_request_gets_no_call() -> None:
    """The called tool is gone and the draft is none; rows with a history or without other tools stay."""
    varied = without_gold(example())
    assert (varied.kind, varied.calls) == ("none", ())
    assert "tool_a" not in names(varied)
    for kept in (example(messages=HISTORY), example(tools=TOOLS[:1]), example(kind="none")):
        assert without_gold(kept) is kept


@given(SEEDS)
def test_masking_renames_everywhere_alike(rng: random.Random) -> None:
    """Tools, earlier calls and the gold bear the same new names; descriptions and values stay; the gold still fits."""
    before = example(messages=HISTORY)
    after = masked(before, rng)
    renamed = dict(zip(names(before), names(after), strict=True))
    assert len(set(renamed.values())) == len(renamed)
    assert not set(renamed) & set(renamed.values())
    name, arguments = after.calls[0]
    assert name == renamed["tool_a"]
    assert list(arguments.values()) == ["Rome", "today"]
    offered = {t["function"]["name"]: t["function"] for t in after.tools}
    assert jsonschema_rs.validator_for(offered[name]["parameters"]).is_valid(arguments)
    earlier = after.messages[1]["tool_calls"][0]["function"]
    assert earlier["name"] == renamed["tool_f"]
    assert set(json.loads(earlier["arguments"])) == set(offered[earlier["name"]]["parameters"]["properties"])
    assert [t["function"]["description"] for t in after.tools] == [t["function"]["description"] for t in before.tools]
    assert parse_draft(render_draft(after.draft)) == after.draft


def test_what_has_no_description_keeps_its_name() -> None:
    """A name that is the only hint is not taken away."""
    bare = tool("tool_a", schema(["city"], city={"type": "string"}, day={"type": "string", "description": "the day"}))
    after = masked(example(tools=[bare]), random.Random(3))
    assert names(after) == ["tool_a"]
    assert "city" in after.calls[0][1]
    assert "day" not in after.calls[0][1]


@given(st.integers(0, 99))
def test_a_made_up_name_is_none_that_stays(seed: int) -> None:
    """Of a tool or a parameter without a description, even where it is the very name that would have been made up."""
    alone = masked(example(tools=TOOLS[:1], kind="none"), random.Random(seed))
    beside = example(tools=[TOOLS[0], tool(names(alone)[0], schema())], kind="none")
    assert len(set(names(masked(beside, random.Random(seed))))) == 2
    first = next(iter(alone.tools[0]["function"]["parameters"]["properties"]))
    mixed = {"city": {"type": "string", "description": "the city"}, first: {"type": "string"}}
    offered = tool("t", {"type": "object", "properties": mixed}, "about")
    after = masked(example(tools=[offered], kind="none"), random.Random(seed))
    assert len(after.tools[0]["function"]["parameters"]["properties"]) == 2


@given(SEEDS)
def test_other_limits_only_shorten(rng: random.Random) -> None:
    """A prompt under varied limits still renders and is no longer than usual."""
    usual = sum(len(segment.text) for segment in render_prompt(example().messages, TOOLS))
    varied = render_prompt(example().messages, TOOLS, limits=varied_limits(rng))
    assert 0 < sum(len(segment.text) for segment in varied) <= usual


def test_one_seed_gives_one_variation() -> None:
    """The generator that is given decides, nothing else."""
    made = [masked(shuffled([example()], random.Random(5))[0], random.Random(6)) for _ in range(2)]
    assert made[0] == made[1]


HISTORY = (
    {"role": "user", "content": "First the other one."},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "tool_f", "arguments": '{"city": "Oslo", "day": "now"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "cold"},
)
