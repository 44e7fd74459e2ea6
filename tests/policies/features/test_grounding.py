"""Values looked up in a conversation: what counts as said, what does not, and bounds on hostile input."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.features.grounding import (
    MAX_VALUES,
    Conversation,
    Ground,
    Text,
    ground,
    leaves,
    names,
    numbers_used,
    used,
)
from policies.types import Request

SAID = (
    "Book a table for twenty five at Luigi's on March 5th at 5:30 pm, at most 1,000 dollars with a 5% tip. "
    "Call it “Blue Room”, near New York."
)
MESSAGES = [
    {"role": "system", "content": "Today is Friday, 2019-03-01."},
    {"role": "user", "content": "Which venues are open?"},
    {"role": "tool", "content": '{"venues": ["Trattoria Roma"]}'},
    {"role": "user", "content": [{"type": "text", "text": SAID}]},
]


def found(value: Any, schema: dict[str, Any] | None = None) -> Ground:
    return ground(value, schema or {}, Conversation.of(Request(MESSAGES, ()))).kind


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("luigi's", Ground.EXACT),
        ("Trattoria  roma", Ground.EXACT),
        ("Luigi", Ground.EXACT),
        ("Lui", Ground.NONE),
        ("Luigi Pizza", Ground.FUZZY),
        ("Tokyo", Ground.NONE),
        (25, Ground.NUMBER),
        ("25", Ground.NUMBER),
        (1000, Ground.NUMBER),
        (1000.0, Ground.NUMBER),
        (0.05, Ground.NUMBER),
        (26, Ground.NONE),
        (10**400, Ground.NONE),
        ("2024-03-05", Ground.DATE),
        ("03/05/2024", Ground.DATE),
        ("5 March", Ground.DATE),
        ("17:30", Ground.DATE),
        ("2024-03-05T17:30:00", Ground.DATE),
        ("2024-03-06", Ground.NONE),
        ("2024-03-05T18:30:00", Ground.NONE),
        ("2019-03-01", Ground.EXACT),
        ("string", Ground.PLACEHOLDER),
        ("<venue>", Ground.PLACEHOLDER),
        ("your_api_key", Ground.PLACEHOLDER),
        ("N/A", Ground.PLACEHOLDER),
        ("", Ground.EMPTY),
        ("  ", Ground.EMPTY),
        (None, Ground.EMPTY),
        (True, Ground.FREE),
    ],
)
def test_a_value_stands_in_the_conversation_as_it_is_said_there(value: Any, kind: Ground) -> None:
    """Words, numbers, dates and times in another spelling count as said; parts of words and other days do not."""
    assert found(value) is kind


def test_a_listed_value_that_is_not_said_is_a_choice() -> None:
    """An enum's value scores between what is said and what is made up; one that is said is said."""
    assert found("metric", {"enum": ["metric", "us"]}) is Ground.ENUM
    assert found("metric", {"const": "metric"}) is Ground.ENUM
    assert found("dollars", {"enum": ["dollars"]}) is Ground.EXACT
    conversation = Conversation.of(Request(MESSAGES, ()))
    scores = [ground(value, {"enum": ["metric"]}, conversation).score for value in ("Luigi's", "metric", "made-up")]
    assert scores[0] > scores[1] > scores[2]


def test_the_last_message_of_the_user_counts_by_itself() -> None:
    """A tool's result grounds a value, but the user did not say it now."""
    conversation = Conversation.of(Request(MESSAGES, ()))
    assert not ground("Trattoria Roma", {}, conversation).in_last
    assert ground("New York", {}, conversation).in_last
    assert ground("2024-03-05", {}, conversation).in_last


def test_scalars_come_with_their_schemas() -> None:
    """Objects and lists are opened along `properties` and `items`; what the schema does not tell has an empty one."""
    schema = {
        "properties": {"to": {"properties": {"unit": {"enum": ["c"]}}}, "days": {"items": {"type": "integer"}}},
    }
    value = {"to": {"unit": "c", "x": 1}, "days": [1, 2], "other": None}
    assert list(leaves(value, schema)) == [
        ("c", {"enum": ["c"]}), (1, {}), (1, {"type": "integer"}), (2, {"type": "integer"}), (None, {}),
    ]  # fmt: skip
    assert len(list(leaves({"a": list(range(500)), "b": {str(i): i for i in range(500)}}, {}))) == MAX_VALUES
    assert list(leaves([1], {"items": "no schema"})) == [(1, {})]


def test_what_the_user_named_and_the_call_left_out_is_counted() -> None:
    """Quoted texts, names and numbers of the request: the share that the arguments hold."""
    assert names(SAID) == ["Blue Room", "Luigi's", "March", "New York"]
    assert len(names("x, A b, " * 400 + "x, C, x, D")) <= 16
    assert used(["Blue Room", "New York"], ["blue room bar"]) == 0.5
    assert numbers_used(Text("two rooms for 3 nights").numbers, [2, "three"]) == 1.0
    assert numbers_used(Text("two rooms for 3 nights").numbers, [True, "2 rooms"]) == 0.5
    assert used([], ["x"]) != used([], ["x"])
    assert numbers_used(frozenset(), [1]) != numbers_used(frozenset(), [1])


def test_hostile_input_costs_little() -> None:
    """Long runs of one letter, deep nesting and thousands of values take milliseconds, whatever they say."""
    began = time.process_time()
    for text in ("a" * 200_000, "1" * 200_000, "'" * 200_000, "May 1 " * 40_000, "A b, " * 40_000, "one " * 50_000):
        conversation = Conversation.of(Request([{"role": "user", "content": text}], ()))
        for value in ("a", "a" * 400, "1" * 400, "1,1", "<" * 200, " ".join("ab" * 90), "one two three"):
            ground(value, {}, conversation)
        names(conversation.last.raw)
    deep: Any = "x"
    for _ in range(3000):
        deep = [deep]
    assert list(leaves(deep, {})) == [("x", {})]
    assert time.process_time() - began < 3.0


@settings(deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_read(said: str, value: str) -> None:
    """No text of a conversation or value raises, and a score is a share."""
    one = ground(value, {}, Conversation.of(Request([{"role": "user", "content": said}], ())))
    assert 0.0 <= one.score <= 1.0
    names(said)


@settings(max_examples=40, deadline=None)
@given(st.from_regex(r"[a-z]{1,8}( [a-z]{1,8}){0,3}", fullmatch=True), st.text(alphabet="xyz .,", max_size=20))
def test_what_is_said_word_for_word_is_grounded(value: str, around: str) -> None:
    """Whatever stands around it."""
    said = f"{around} {value} {around}"
    assert ground(value, {}, Conversation.of(Request([{"role": "user", "content": said}], ()))).kind is Ground.EXACT
