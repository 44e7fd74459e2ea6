"""Scoring: BFCL's rules, each by an example, and what holds for every answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.cases.answers import MAX_ARGUMENTS_CHARS, Answer, Call, decode_arguments
from evaluation.cases.case import AnyCallGold, CallsGold, Case, Gold, GoldCall, NoCallGold, ToolNamesGold, UnknownGold
from evaluation.cases.scoring import Reason, mismatch, score
from evaluation.cases.value_match import normal_string

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "scale": {"type": "number"},
        "metric": {"type": "boolean"},
        "hours": {"type": "array", "items": {"type": "integer"}},
        "weights": {"type": "array", "items": {"type": "number"}},
        "names": {"type": "array", "items": {"type": "string"}},
        "grid": {"type": "array", "items": {"type": "array"}},
        "mixed": {"type": "array"},
        "where": {"type": "object"},
        "stops": {"type": "array", "items": {"type": "object"}},
        "anything": {},
        "maybe": {"type": ["string", "null"]},
    },
    "required": ["city"],
}


def case(gold: Gold, source: str = "bfcl", required: tuple[str, ...] = ("city",)) -> Case:
    """A case of two tools, `weather_now` with SCHEMA and `tides`."""
    weather = {"name": "weather_now", "parameters": SCHEMA | {"required": list(required)}}
    tides = {"name": "tides", "parameters": {"type": "object", "properties": {"port": {"type": "string"}}}}
    return Case(
        id="a",
        source=source,
        split="test",
        category="simple",
        messages=[{"role": "user", "content": "?"}],
        tools=[{"type": "function", "function": weather}, {"type": "function", "function": tides}],
        gold=gold,
    )


def wanted(**arguments: list[Any]) -> CallsGold:
    """One gold call of weather_now."""
    return CallsGold([GoldCall("weather_now", arguments)])


def weather(**arguments: Any) -> Call:
    """One answered call of weather_now."""
    return Call("weather_now", arguments)


def reason(gold: CallsGold, *calls: Call, source: str = "bfcl", required: tuple[str, ...] = ()) -> Reason:
    """Why these calls pass or fail; only MATCHED passes."""
    result = score(case(gold, source, required), Answer(calls))
    assert result.passed is (result.reason is Reason.MATCHED)
    return result.reason


@pytest.mark.parametrize(
    ("name", "acceptable", "given_value", "expected"),
    [
        ("city", ["Paris"], "Paris", Reason.MATCHED),
        ("city", ["San Francisco, CA"], "san francisco ca", Reason.MATCHED),
        ("city", ["2024-04-01"], "2024/04/01", Reason.MATCHED),
        ("city", ["x**2 * 'y'"], 'X ^ 2"y"', Reason.MATCHED),
        ("city", ["Paris"], "Lyon", Reason.WRONG_VALUE),
        ("city", ["Paris"], "Paris!", Reason.WRONG_VALUE),
        ("city", ["Paris", ""], "", Reason.MATCHED),
        ("city", ["10"], 10, Reason.WRONG_TYPE),
        ("city", [None], None, Reason.MATCHED),
        ("city", ["Paris"], None, Reason.WRONG_TYPE),
        ("maybe", ["Paris", None], None, Reason.MATCHED),
        ("maybe", ["Paris"], None, Reason.WRONG_VALUE),
        ("days", [3, 4], 4, Reason.MATCHED),
        ("days", [3], 5, Reason.WRONG_VALUE),
        ("days", [3], "3", Reason.WRONG_TYPE),
        ("days", [3], 3.0, Reason.WRONG_TYPE),
        ("days", [1], True, Reason.WRONG_TYPE),
        ("days", ["three"], "three", Reason.MATCHED),
        ("days", [10**30], 10**30, Reason.MATCHED),
        ("scale", [2.0], 2, Reason.MATCHED),
        ("scale", [2.5], 2.5, Reason.MATCHED),
        ("scale", [2], 2.0, Reason.MATCHED),
        ("scale", [1.0], True, Reason.WRONG_TYPE),
        ("scale", [0.1], 0.1000001, Reason.WRONG_VALUE),
        ("metric", [True], True, Reason.MATCHED),
        ("metric", [True], False, Reason.WRONG_VALUE),
        ("metric", [True], 1, Reason.WRONG_TYPE),
        ("metric", [True], "true", Reason.WRONG_TYPE),
        ("hours", [[1, 2]], [1, 2], Reason.MATCHED),
        ("hours", [[1, 2]], [2, 1], Reason.WRONG_VALUE),
        ("hours", [[1, 2], [2, 1]], [2, 1], Reason.MATCHED),
        ("hours", [[1, 2]], [1], Reason.WRONG_VALUE),
        ("hours", [[1, 2]], ["1", "2"], Reason.WRONG_TYPE),
        ("hours", [[1]], [True], Reason.WRONG_TYPE),
        ("hours", [[1, 2]], 1, Reason.WRONG_TYPE),
        ("hours", [[]], [], Reason.MATCHED),
        ("weights", [[1.0, 2.0]], [1.0, 2.0], Reason.MATCHED),
        ("weights", [[1.0, 2.0]], [1, 2], Reason.WRONG_TYPE),
        ("weights", [[1, 2]], [1, 2], Reason.MATCHED),
        ("names", [["New York", "Rome"]], ["new-york", "rome"], Reason.MATCHED),
        ("names", [["Rome"]], ["Paris"], Reason.WRONG_VALUE),
        ("grid", [[["New York"], ["Rome"]]], [["new york"], ["rome"]], Reason.MATCHED),
        ("grid", [[[1], [2]]], [[1], [3]], Reason.WRONG_VALUE),
        ("mixed", [[1, "New York"]], [1, "new-york"], Reason.MATCHED),
        ("mixed", [[1, "x"]], "x", Reason.WRONG_TYPE),
        ("anything", ["x"], "X", Reason.MATCHED),
        ("anything", ["x"], 4, Reason.WRONG_VALUE),
    ],
)
def test_values_and_types(name: str, acceptable: list[Any], given_value: Any, expected: Reason) -> None:
    """Strings are normalised; types are strict but for an integer where a number or the gold's type is wanted."""
    assert reason(wanted(**{name: acceptable}), weather(**{name: given_value})) is expected


WHERE = {"town": ["Paris", "Lyon"], "zone": ["north", ""]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"town": "paris", "zone": "North"}, Reason.MATCHED),
        ({"town": "Lyon"}, Reason.MATCHED),
        ({"town": "Rome"}, Reason.WRONG_VALUE),
        ({"zone": "north"}, Reason.WRONG_VALUE),
        ({"town": "Lyon", "street": "x"}, Reason.WRONG_VALUE),
        ("Lyon", Reason.WRONG_TYPE),
    ],
)
def test_an_object_of_bfcl_holds_choices_for_each_of_its_keys(value: Any, expected: Reason) -> None:
    """Each key's value must be among its choices, and a key without `""` must be there."""
    assert reason(wanted(where=[WHERE]), weather(where=value)) is expected
    listed = [value] if isinstance(value, dict) else value
    assert reason(wanted(stops=[[WHERE]]), weather(stops=listed)) is expected


def test_a_list_of_objects_is_compared_in_order_and_length() -> None:
    """Two objects swapped, or one too few, do not match."""
    gold = wanted(stops=[[{"town": ["Paris"]}, {"town": ["Lyon"]}]])
    paris, lyon = {"town": "Paris"}, {"town": "Lyon"}
    assert reason(gold, weather(stops=[paris, lyon])) is Reason.MATCHED
    assert reason(gold, weather(stops=[lyon, paris])) is Reason.WRONG_VALUE
    assert reason(gold, weather(stops=[paris])) is Reason.WRONG_VALUE


def test_an_object_of_another_source_holds_plain_values() -> None:
    """Outside BFCL an acceptable object is the object itself, compared key by key."""
    gold = wanted(where=[{"town": "Paris", "area": [1, 2]}])
    assert reason(gold, weather(where={"town": "paris", "area": [1, 2]}), source="sgd") is Reason.MATCHED
    assert reason(gold, weather(where={"town": "paris"}), source="sgd") is Reason.WRONG_VALUE
    choices = wanted(where=[{"town": ["Paris"]}])
    assert reason(choices, weather(where={"town": "Paris"}), source="sgd") is Reason.WRONG_VALUE


def test_true_inside_a_list_or_object_is_not_one() -> None:
    """Python's True == 1 must not make a wrong value right."""
    assert reason(wanted(where=[{"n": [1]}]), weather(where={"n": True})) is Reason.WRONG_VALUE
    assert reason(wanted(grid=[[[1]]]), weather(grid=[[True]])) is Reason.WRONG_VALUE


def test_parameters_that_are_missing_or_not_wanted() -> None:
    """Required ones must be given, optional ones may be left out if the gold says so, others must not be given."""
    gold = wanted(city=["Paris"], days=[3, ""])
    assert reason(gold, weather(city="Paris"), required=("city",)) is Reason.MATCHED
    assert reason(gold, weather(days=3), required=("city",)) is Reason.MISSING_PARAMETER
    assert reason(wanted(city=["Paris"], days=[3]), weather(city="Paris")) is Reason.MISSING_PARAMETER
    assert reason(gold, weather(city="Paris", scale=1.0)) is Reason.UNEXPECTED_PARAMETER
    assert reason(gold, weather(city="Paris", colour="red")) is Reason.UNEXPECTED_PARAMETER


def test_a_parameter_of_the_gold_that_the_tool_lacks_must_not_be_given() -> None:
    """BFCL has four such rows: the tool's own schema wins."""
    assert reason(wanted(colour=["red", ""]), weather(colour="red")) is Reason.UNEXPECTED_PARAMETER
    assert reason(wanted(colour=["red", ""]), weather()) is Reason.MATCHED


def test_a_required_parameter_is_required_even_if_the_gold_lets_it_out() -> None:
    """The schema's `required` is checked before the gold's `""`."""
    assert reason(wanted(city=["Paris", ""]), weather(), required=("city",)) is Reason.MISSING_PARAMETER


def test_names_are_compared_with_dots_as_underscores() -> None:
    """`weather.now` is `weather_now`; letters' case counts."""
    gold = wanted(city=["Paris"])
    assert reason(gold, Call("weather.now", {"city": "Paris"})) is Reason.MATCHED
    assert reason(gold, Call("Weather_now", {"city": "Paris"})) is Reason.WRONG_NAME
    assert reason(gold, Call("tides", {"city": "Paris"})) is Reason.WRONG_NAME


PARIS, LYON = GoldCall("weather_now", {"city": ["Paris"]}), GoldCall("weather_now", {"city": ["Lyon"]})


def test_calls_are_compared_as_a_set_and_counted() -> None:
    """Order does not matter, number does, and one call cannot serve twice."""
    gold = CallsGold([PARIS, LYON])
    assert reason(gold, weather(city="Lyon"), weather(city="Paris")) is Reason.MATCHED
    assert reason(gold, weather(city="Lyon")) is Reason.WRONG_COUNT
    assert reason(gold, *[weather(city="Paris")] * 3) is Reason.WRONG_COUNT
    assert reason(gold, weather(city="Paris"), weather(city="Paris")) is Reason.WRONG_VALUE
    assert reason(gold, weather(city="Paris"), Call("tides", {})) is Reason.WRONG_NAME


def test_ordered_calls_must_come_in_their_order() -> None:
    """Only a gold that says so asks for an order."""
    gold = CallsGold([PARIS, LYON], ordered=True)
    assert reason(gold, weather(city="Paris"), weather(city="Lyon")) is Reason.MATCHED
    assert reason(gold, weather(city="Lyon"), weather(city="Paris")) is Reason.WRONG_VALUE


def test_a_set_is_matched_even_where_taking_the_first_fit_would_fail() -> None:
    """The first gold call takes either city, the second only Paris: Paris must be left to the second."""
    either = GoldCall("weather_now", {"city": ["Paris", "Lyon"]})
    assert reason(CallsGold([either, PARIS]), weather(city="Paris"), weather(city="Lyon")) is Reason.MATCHED


def test_a_set_is_blamed_with_its_nearest_miss() -> None:
    """A wrong value beside a wrong name is reported as the value: that call was nearly right."""
    tide = GoldCall("tides", {"port": ["Brest"]})
    answer = (Call("tides", {"port": "Brest"}), weather(city="Rome"))
    assert reason(CallsGold([PARIS, tide]), *answer) is Reason.WRONG_VALUE


CALL = weather(city="Paris")
UNDECODABLE = Call("weather_now", None)


@pytest.mark.parametrize(
    ("gold", "calls", "passed", "expected"),
    [
        (NoCallGold(), (), True, Reason.NO_CALL),
        (NoCallGold(), (CALL,), False, Reason.UNEXPECTED_CALL),
        (NoCallGold(), (UNDECODABLE,), True, Reason.UNDECODABLE_AS_NO_CALL),
        (NoCallGold(), (CALL, UNDECODABLE), True, Reason.UNDECODABLE_AS_NO_CALL),
        (AnyCallGold(), (CALL,), True, Reason.MATCHED),
        (AnyCallGold(), (), False, Reason.MISSING_CALL),
        (AnyCallGold(), (UNDECODABLE,), False, Reason.UNDECODABLE_CALL),
        (ToolNamesGold(["weather.now", "other"]), (CALL, CALL), True, Reason.MATCHED),
        (ToolNamesGold(["other"]), (CALL,), False, Reason.WRONG_NAME),
        (ToolNamesGold(["weather_now"]), (CALL, Call("tides", {})), False, Reason.WRONG_NAME),
        (ToolNamesGold(["other"]), (), False, Reason.MISSING_CALL),
        (wanted(city=["Paris"]), (), False, Reason.MISSING_CALL),
        (wanted(city=["Paris"]), (UNDECODABLE,), False, Reason.UNDECODABLE_CALL),
    ],
)
def test_calls_where_none_any_or_named_ones_are_right(
    gold: Gold, calls: tuple[Call, ...], passed: bool, expected: Reason
) -> None:
    """Each kind of gold has its own rule for calls, no calls and calls that cannot be decoded."""
    result = score(case(gold), Answer(calls))
    assert (result.passed, result.reason) == (passed, expected)


def test_one_call_is_held_against_one_gold_call() -> None:
    """`mismatch` is None for the gold call itself, and blames the name before the arguments."""
    gold = case(CallsGold([PARIS]))
    assert mismatch(gold, PARIS, CALL) is None
    assert mismatch(gold, PARIS, UNDECODABLE) is Reason.UNDECODABLE_CALL
    assert mismatch(gold, PARIS, Call("tides", None)) is Reason.WRONG_NAME


def test_a_case_without_gold_cannot_be_scored() -> None:
    """Half of ToolBench says nothing about the right answer: a score would be invented."""
    with pytest.raises(ValueError, match="no gold"):
        score(case(UnknownGold()), Answer())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', {"a": 1}),
        ("{}", {}),
        ('{"a": 1, "a": 2}', {"a": 2}),
        ("", None),
        ("[1]", None),
        ("null", None),
        ('{"a": NaN}', None),
        ('{"a": -Infinity}', None),
        ("{'a': 1}", None),
        ('{"a": 1} and more', None),
        ('{"a": ' + "[" * 100_000, None),
        ('{"a": ' + "9" * 5000 + "}", None),
        ('{"a": "' + "x" * MAX_ARGUMENTS_CHARS + '"}', None),
    ],
)
def test_arguments_are_an_object_or_undecodable(text: str, expected: dict[str, Any] | None) -> None:
    """Whatever a model wrote ends as an object or as None, never as an exception."""
    assert decode_arguments(text) == expected


def test_an_answer_is_read_from_an_openai_message() -> None:
    """Calls come with decoded arguments; a message without calls is text."""
    message = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
    assert Answer.from_message(message) == Answer((Call("f", {"a": 1}),), None)
    assert Answer.from_message({"content": "hi", "tool_calls": None}) == Answer((), "hi")


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": ["f"]},
        {"tool_calls": [{"function": {"arguments": "{}"}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"content": [{"type": "text"}]},
    ],
)
def test_a_message_of_another_shape_is_refused(message: dict[str, Any]) -> None:
    """An endpoint that is not OpenAI-compatible must not be scored as if it had answered text."""
    with pytest.raises(ValueError, match=r"tool call|content"):
        Answer.from_message(message)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["city", "days", "hours", "where", "anything", "new"]), JSON_VALUES))
def test_any_arguments_get_a_verdict(arguments: dict[str, Any]) -> None:
    """No JSON value makes the scorer raise, and BFCL's object rule holds for its own source only."""
    gold = wanted(city=["Paris", ""], days=[3, ""], hours=[[1, 2], ""], where=[WHERE, ""], anything=[None, ""])
    for source in ("bfcl", "other"):
        assert score(case(gold, source, ()), Answer((Call("weather_now", arguments),))).reason in Reason


@given(JSON_VALUES)
def test_a_value_that_equals_the_gold_matches_outside_bfcl(value: Any) -> None:
    """With no declared type, an acceptable plain value is always acceptable."""
    assert reason(wanted(anything=[value]), weather(anything=value), source="other") is Reason.MATCHED


@given(st.permutations([weather(city=name) for name in ("Paris", "Lyon", "Rome", "Oslo")]))
def test_the_order_of_unordered_calls_never_matters(calls: list[Call]) -> None:
    """All 24 orders of four right calls pass."""
    gold = CallsGold([GoldCall("weather_now", {"city": [name]}) for name in ("Oslo", "Paris", "Rome", "Lyon")])
    assert reason(gold, *calls) is Reason.MATCHED


@given(st.text())
def test_normalising_a_string_twice_changes_nothing(text: str) -> None:
    """The normal form is its own normal form and has none of the characters that do not count."""
    once = normal_string(text)
    assert normal_string(once) == once
    assert not set(once) & set(" ,./-_*^'")
