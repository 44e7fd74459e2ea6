"""Which rows share a list of tools: every row once, its own tools kept, and no answer changed."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.dataset.examples import Example
from slm.dataset.grouping import groups_of


def tool(name: str) -> dict[str, Any]:
    """A tool without parameters."""
    return {"type": "function", "function": {"name": name, "description": name, "parameters": {"type": "object"}}}


def example(id_: str, called: str | None, offered: str, kind: Any = None, **fields: Any) -> Example:
    """A row of source `s` that offers tools named by single letters."""
    return Example(
        id_, fields.get("source", "s"), "simple", id_,
        tuple(fields.get("messages", [{"role": "user", "content": id_}])), tuple(map(tool, offered)),
        kind or ("calls" if called else "none"), tuple((name, {}) for name in called or ""),
    )  # fmt: skip


@st.composite
def rows(draw: st.DrawFn) -> list[Example]:
    """Rows of two sources with up to six tools each."""
    made = []
    for index in range(draw(st.integers(1, 20))):
        offered = "".join(sorted(draw(st.sets(st.sampled_from("abcdef"), min_size=1))))
        kind = draw(st.sampled_from(["calls", "none", "ask"]))
        called = draw(st.sampled_from(offered)) if kind == "calls" else None
        made.append(example(str(index), called, offered, kind, source=draw(st.sampled_from("st"))))
    return made


def names(one: Example) -> list[str]:
    """The tools that a row offers."""
    return [entry["function"]["name"] for entry in one.tools]


@given(rows(), st.integers(1, 8), st.integers(1, 6), st.floats(0, 1), st.integers(0, 99))
def test_groups_hold_every_row_once_and_change_no_answer(
    examples: list[Example], most_tools: int, most_rows: int, remove_gold: float, seed: int
) -> None:
    """One list of tools a group; calls keep their tools; a row without a call sees only tools of its own."""
    before = {one.id: one for one in examples}
    seen: list[str] = []
    grouped = groups_of(
        examples, random.Random(seed), most_tools=most_tools, most_rows=most_rows, remove_gold=remove_gold
    )
    for group in grouped:
        assert len(group) <= most_rows
        assert len({(one.source, tuple(names(one))) for one in group}) == 1
        for one in group:
            old = before[one.id]
            seen.append(one.id)
            if one.kind == "calls":
                assert one.calls == old.calls
                assert one.gold_names <= set(names(one))
                rivals = set(names(one)) - set(names(old))
                together = [set(names(row)) for row in examples if row.source == one.source and row.kind == "calls"]
                assert all(any({rival, *one.gold_names} <= {*offered} for offered in together) for rival in rivals)
            elif old.kind == "calls":
                assert remove_gold > 0
                assert not old.gold_names & set(names(one))
            else:
                assert set(names(one)) <= set(names(old))
                assert one.kind != "ask" or set(names(one)) == set(names(old))
    assert sorted(seen) == sorted(before)


def test_rows_of_one_set_of_tools_share_it() -> None:
    """Twelve rows that offer the same three tools become groups of one list each, not twelve lists."""
    examples = [example(str(index), "abc"[index % 3], "abc") for index in range(12)]
    groups = list(groups_of(examples, random.Random(0), most_tools=8, most_rows=12, remove_gold=0))
    assert len(groups) <= 4
    assert max(len(group) for group in groups) >= 6


def test_a_rival_is_never_offered() -> None:
    """A tool that no row offers beside the called one may be its rival, so the two rows stay apart."""
    examples = [example("1", "a", "ab"), example("2", "c", "cd")]
    groups = list(groups_of(examples, random.Random(0), most_tools=8, most_rows=2, remove_gold=0))
    assert [len(group) for group in groups] == [1, 1]


@pytest.mark.parametrize("called", ["a", "b"])
def test_a_later_turn_never_loses_a_tool_that_was_called_before(called: str) -> None:
    """Neither the tool that is called now nor the one of the history is taken away."""
    call = {"id": "1", "type": "function", "function": {"name": "c", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"}, {"role": "user", "content": "y"},
    ]  # fmt: skip
    for seed in range(20):
        (group,) = groups_of(
            [example("1", called, "abcdef", messages=history)], random.Random(seed), most_tools=2, most_rows=4,
            remove_gold=1.0,
        )  # fmt: skip
        assert {called, "c"} <= set(names(group[0]))
        assert group[0].kind == "calls"


def test_each_time_that_a_row_comes_it_is_drawn_anew_whether_it_loses_its_tools() -> None:
    """Gone through three times, a tenth of the rows is asked without the called tool, not three tenths."""
    once = [example(str(index), "abc"[index % 3], "abc") for index in range(2000)]
    groups = groups_of(once * 3, random.Random(0), most_tools=3, most_rows=1, remove_gold=0.1)
    kinds = [one.kind for group in groups for one in group]
    assert len(kinds) == 6000
    assert kinds.count("none") / len(kinds) == pytest.approx(0.1, abs=0.015)
