"""OpenAI conversations as training rows: every answer one row, and nothing taught that was not right."""

import json
from pathlib import Path
from typing import Any

import pytest

from slm.dataset.rows import TrainingRows, read_rows
from tests.slm.conftest import TIME, WEATHER, schema, tool


def user(text: str) -> dict[str, Any]:
    """A message of the user."""
    return {"role": "user", "content": text}


def calling(*calls: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    """A message of the assistant that makes these calls."""
    made = [
        {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for index, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": made, **fields}


def saying(text: str) -> dict[str, Any]:
    """A message of the assistant in words."""
    return {"role": "assistant", "content": text}


RESULT = {"role": "tool", "tool_call_id": "c0", "content": "rain"}


def read(tmp_path: Path, *rows: Any) -> TrainingRows:
    """What is read from a file of these rows."""
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return read_rows(path)


def test_every_answer_of_the_assistant_is_a_row(tmp_path: Path) -> None:
    """Each has what stands before it as its request; all rows of one line are one conversation."""
    messages = [
        {"role": "system", "content": "Be brief."}, user("Weather?"), saying("Which city?"), user("London"),
        calling(("get_weather", {"unit": "c", "city": "London"})), RESULT, saying("It rains."),
    ]  # fmt: skip
    rows = read(tmp_path, {"messages": messages, "tools": [WEATHER, TIME]})
    assert [example.kind for example in rows.examples] == ["ask", "calls", "none"]
    assert [len(example.messages) for example in rows.examples] == [2, 4, 6]
    assert rows.examples[1].calls == (("get_weather", {"city": "London", "unit": "c"}),)
    assert list(rows.examples[1].calls[0][1]) == ["city", "unit"]
    assert len({example.conversation for example in rows.examples}) == 1
    assert {example.source for example in rows.examples} == {"mine.jsonl"}
    assert rows.refused == {}


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ("c" * 200, {"conversation/" + "c" * 200}),
        ("c" * 201, {"mine.jsonl/1", "mine.jsonl/2"}),
        ("", {"mine.jsonl/1", "mine.jsonl/2"}),
        (["c"], {"mine.jsonl/1", "mine.jsonl/2"}),
    ],
)
def test_lines_may_say_to_which_conversation_they_belong(told: Any, names: set[str], tmp_path: Path) -> None:
    """By a bounded text; where it is none, each line is a conversation of its own."""
    turns = [user("a"), saying("b"), user("c"), saying("d")]
    lines = [{"id": str(end // 2), "conversation": told, "messages": turns[:end]} for end in (2, 4)]
    assert {example.conversation for example in read(tmp_path, *lines).examples} == names


def test_parallel_calls_keep_their_order_and_context_is_not_taught(tmp_path: Path) -> None:
    """`weight: 0` leaves a message out of the rows and in the histories."""
    calls = (("get_time", {"zone": "CET"}), ("get_weather", {"city": "Rome"}))
    messages = [user("a"), calling(("get_time", {"zone": "UTC"}), weight=0), RESULT, user("b"), calling(*calls)]
    rows = read(tmp_path, {"messages": messages, "tools": [WEATHER, TIME]})
    assert [(example.calls, len(example.messages)) for example in rows.examples] == [(calls, 4)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (calling(("get_news", {})), "gold calls a tool that is not offered"),
        (calling(("get_weather", {"city": 5})), "a call that does not fit its schema"),
        (calling(("get_weather", {})), "a call that does not fit its schema"),
        (calling(("get_weather", [])), "a call that does not fit its schema"),
        (calling(("remote", {"a": 1})), "a schema that is not valid"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "get_time"}}]}, "malformed"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "get_time", "arguments": "{"}}]}, "malformed"),
    ],
)
def test_a_wrong_answer_is_counted_and_the_others_are_taught(
    answer: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """One bad call costs its own row, not its conversation; a reference is never followed to another document."""
    remote = tool("remote", schema(a={"$ref": "https://example.com/schema.json"}))
    messages = [user("a"), answer, RESULT, user("b"), calling(("get_time", {"zone": "CET"}))]
    rows = read(tmp_path, {"messages": messages, "tools": [WEATHER, TIME, remote]})
    assert rows.refused == {reason: 1}
    assert [example.gold_names for example in rows.examples] == [{"get_time"}]


@pytest.mark.parametrize(
    "broken",
    [
        {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "get_time", "input": "CET"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "get_time", "arguments": {"zone": "CET"}}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": 5, "arguments": "{}"}}]},
        {"role": "assistant", "tool_calls": 5},
    ],
)
def test_behind_a_message_that_cannot_be_read_nothing_is_taught(broken: dict[str, Any], tmp_path: Path) -> None:
    """What was answered before it stays; its own answer and each later one are counted."""
    messages = [user("a"), saying("b"), user("c"), broken, RESULT, saying("d")]
    rows = read(tmp_path, {"messages": messages, "tools": [WEATHER, TIME]})
    assert [example.kind for example in rows.examples] == ["none"]
    assert rows.refused == {"malformed": 2}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [user("a"), saying("b")], "tools": [TIME, TIME]}, "two tools of one name"),
        ({"messages": [user("a"), saying("b")], "tools": [tool("t", [1])]}, "malformed"),
        ({"messages": [user("a"), saying("b")], "tools": [tool("t", {"properties": []})]}, "malformed"),
        ({"messages": [user("a"), saying("b")], "tools": [tool("t", {"required": True})]}, "malformed"),
        ({"messages": [user("a")], "tools": []}, "no answer of an assistant to teach"),
        ({"messages": [{"role": "pirate"}, saying("b")], "tools": []}, "malformed"),
        ({"messages": ["a"], "tools": []}, "malformed"),
        ({"messages": [user("a"), saying("b")], "tools": [{"type": "function"}]}, "malformed"),
    ],
)
def test_a_row_that_is_no_conversation_is_counted(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Nothing of it is taught."""
    rows = read(tmp_path, row)
    assert (rows.examples, rows.refused) == ((), {reason: 1})
