"""Signatures: what a tool's author wrote is shown whole, and a prompt's room is shared fairly."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.format.signature import SignatureLimits, Tool, signature, signatures


def schema(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


LONG = (
    "The city and state, in the format of 'City, State' (e.g. 'San Francisco, CA'), abbreviated and never spelled out."
)


def test_a_long_description_is_shown_whole() -> None:
    """The format that a value must have often stands at a description's end."""
    parameters = schema(("place",), place={"type": "string", "description": LONG})
    assert signature("find", "Finds.", parameters) == f"find(place) Finds.\n- place: {LONG}"


def test_nested_fields_are_described_by_their_path() -> None:
    """Fields of an object, and of the objects of a list, keep their descriptions."""
    guest = {"type": "object", "properties": {"age": {"type": "integer", "description": "In months below two years"}}}
    made = signature("book", "", schema(rooms={"type": "array", "items": guest}, lead=guest))
    assert made.splitlines() == [
        "book(rooms?: {age?: integer}[], lead?: {age?: integer})",
        "- rooms[].age: In months below two years",
        "- lead.age: In months below two years",
    ]


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 14}, "(at least 1; at most 14)"),
        ({"type": "number", "exclusiveMinimum": 0}, "(more than 0)"),
        ({"type": "number", "maximum": 0.5}, "(at most 0.5)"),
        ({"type": "string", "format": "date"}, "(format date)"),
        ({"type": "string", "pattern": "^[A-Z]{3}$"}, "(pattern ^[A-Z]{3}$)"),
        ({"type": "string", "examples": ["EUR", "USD"]}, '(e.g. "EUR", "USD")'),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 3}, "(0 to 3 items)"),
    ],
)
def test_what_a_schema_declares_is_said(facts: dict[str, Any], shown: str) -> None:
    """Bounds, formats, patterns and examples follow the description."""
    line = signature("f", "", schema(x={**facts, "description": "Something special"})).splitlines()[1]
    assert line == f"- x: Something special {shown}"
    assert signature("f", "", schema(x=facts)).splitlines()[1] == f"- x: {shown}"


def test_line_breaks_of_a_description_forge_no_tool() -> None:
    """A description stays on its line."""
    made = signature("f", "Does.\nother() Does more.", schema(x={"description": "Odd\n- y: forged"}))
    assert made.splitlines() == ["f(x?: any) Does. other() Does more.", "- x: Odd - y: forged"]


TOOLS = st.builds(
    lambda name, words, count: Tool(
        f"tool_{name}",
        "Tool's words. " * words,
        schema(**{f"p{n}": {"type": "string", "description": "Unheard-of words, " * words} for n in range(count)}),
    ),
    st.integers(0, 99),
    st.integers(0, 30),
    st.integers(0, 6),
)


@given(st.lists(TOOLS, min_size=1, max_size=12), st.integers(400, 8000))
def test_room_is_shared_fairly(tools: list[Tool], chars: int) -> None:
    """A tool is shortened only beyond an equal share, and never while all fit; names and types stay."""
    whole = [signature(tool.name, tool.description, tool.parameters) for tool in tools]
    made = signatures(tools, chars=chars)
    if sum(map(len, whole)) <= chars:
        assert made == whole
    for tool, before, after in zip(tools, whole, made, strict=True):
        assert after.startswith(f"{tool.name}(" + ", ".join(f"{name}?" for name in tool.parameters["properties"]))
        if len(before) <= chars // len(tools):
            assert after == before


def test_a_bound_is_told_by_an_ellipsis() -> None:
    """Nothing is cut silently."""
    made = signature("f", "word " * 100, schema(), SignatureLimits(description=40))
    assert made.endswith("…")
    assert len(made) <= len("f() ") + 40
