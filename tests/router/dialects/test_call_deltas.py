"""The parts of a streamed answer, in the order in which they began."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.dialects.errors import ClientError
from router.dialects.provider import call_deltas
from router.dialects.provider.call_deltas import AnswerParts, StreamedCalls


def piece(arguments: str, index: int = 0, call_id: str | None = None, name: str | None = None) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": call_id, "function": {"name": name, "arguments": arguments}}]}


def told(*deltas: dict[str, Any]) -> list[tuple[str, str]]:
    """What each part adds up to, in order; asserts that no part goes on behind another."""
    parts = AnswerParts()
    steps = [step for delta in deltas for step in parts.take(delta)] + list(parts.end())
    runs: list[tuple[Any, str]] = []
    for part, said in steps:
        if runs and runs[-1][0] is part:
            runs[-1] = (part, runs[-1][1] + said)
        else:
            assert all(part is not before for before, _ in runs)
            runs.append((part, said))
    return [(part.call.name if part.call else part.kind, said) for part, said in runs]


def test_a_whole_call_does_not_hold_up_the_next() -> None:
    """Its pieces pass at once; those behind a call that is not whole wait."""
    parts = AnswerParts()
    passed = list(parts.take(piece('{"a":1}', 0, "x", "f")))
    assert [said for _, said in passed] == ['{"a":1}']
    assert [said for _, said in parts.take(piece('{"b":', 1, "y", "g"))] == ['{"b":']
    assert not list(parts.take(piece('{"c":3}', 2, "z", "h")))
    assert [said for _, said in parts.take(piece("2}", 1))] == ["2}", '{"c":3}']


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_pieces_in_any_order_add_up_to_the_same_calls(order: list[int]) -> None:
    """Every call's pieces in order, those of all calls mixed in any way."""
    left = {index: ['{"n":', '"', *"abc", '"', "}"] for index in range(4)}
    begun: list[int] = []
    deltas = []
    for index in order + sorted(range(4)) * 10:
        if index not in begun:
            begun.append(index)
            deltas.append(piece("", index, f"id{index}", f"f{index}"))
        elif left[index]:
            deltas.append(piece(left[index].pop(0), index))
    assert told(*deltas) == [(f"f{index}", '{"n":"abc"}') for index in begun]


def test_what_a_provider_begins_all_calls_with_is_no_end() -> None:
    """`{}` may be followed by what the arguments really are, and no client is told a call as over before."""
    parts = AnswerParts()
    steps = [*parts.take(piece("{}", 0, "x", "f")), *parts.take(piece("{}", 1, "y", "g")), *parts.end()]
    assert [(part.call.name, said) for part, said in steps if part.call] == [("f", "{}"), ("g", "{}")]


def test_an_id_of_two_calls_is_the_firsts_only() -> None:
    """Clients answer calls by their ids."""
    calls = StreamedCalls()
    first, _ = calls.take({"index": 0, "id": "x", "function": {"name": "f", "arguments": "{}"}})
    second, _ = calls.take({"index": 1, "id": "x", "function": {"name": "f", "arguments": "{}"}})
    assert first is not second
    assert (first.call_id, second.call_id) == ("x", "")


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that never ends its first call cannot fill the memory with its second."""
    monkeypatch.setattr(call_deltas, "MAX_WAITING_CHARS", 100)
    parts = AnswerParts()
    list(parts.take(piece('{"a":', 0, "x", "f")))
    list(parts.take(piece("x" * 60, 1, "y", "g")))
    with pytest.raises(ClientError) as caught:
        list(parts.take(piece("x" * 60, 1)))
    assert (caught.value.status, caught.value.code) == (502, "upstream_unavailable")


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner))


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "content": ANYTHING,
                "refusal": ANYTHING,
                "tool_calls": st.lists(
                    st.fixed_dictionaries({}, optional={"index": ANYTHING, "id": ANYTHING, "function": ANYTHING})
                    | ANYTHING
                ),
            },
        ),
        max_size=5,
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_provider_sends_is_read_or_an_error(deltas: list[dict[str, Any]]) -> None:
    """Nothing of it makes the gateway fail."""
    parts = AnswerParts()
    with contextlib.suppress(ClientError):
        steps = [step for delta in deltas for step in parts.take(delta)] + list(parts.end())
        assert all(isinstance(said, str) for _, said in steps)
