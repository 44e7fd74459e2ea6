"""Cases: read from JSON lines with errors that name the place, hashed, and split without leaks."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.cases.case import CallsGold, Case, GoldCall, NoCallGold, UnknownGold, data_hash, load_cases
from evaluation.cases.jsonl import RowError
from evaluation.cases.splits import by_conversation, by_gold_tool, by_offered_tool, components, split


def row(**changes: Any) -> dict[str, Any]:
    """A valid row of one weather tool, with changes."""
    return {
        "id": "a",
        "source": "made",
        "split": "test",
        "category": "simple",
        "messages": [{"role": "user", "content": "Weather in Paris?"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "gold": {"kind": "calls", "calls": [{"name": "weather", "arguments": {"city": ["Paris"]}}], "ordered": False},
        "meta": {},
    } | changes


def write(path: Path, *rows: dict[str, Any] | bytes) -> Path:
    """Rows as gzipped lines; bytes are taken as they are."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    return path


def case_of(case_id: str, conversation: str, tools: tuple[str, ...], gold: tuple[str, ...]) -> Case:
    """A case that offers `tools` and whose gold calls `gold`."""
    return Case(
        id=case_id,
        source="made",
        split="train",
        category="any",
        messages=[{"role": "user", "content": case_id}],
        tools=[{"type": "function", "function": {"name": name}} for name in tools],
        gold=CallsGold([GoldCall(name, {}) for name in gold]) if gold else NoCallGold(),
        meta={"conversation": conversation},
    )


def test_a_gzipped_and_a_plain_file_give_the_same_cases(tmp_path: Path) -> None:
    """Compression is told by the file's name and changes nothing."""
    zipped = write(tmp_path / "a.jsonl.gz", row(), row(id="b"))
    plain = tmp_path / "a.jsonl"
    plain.write_bytes(gzip.decompress(zipped.read_bytes()))
    assert load_cases(zipped) == load_cases(plain)
    assert [case.id for case in load_cases(zipped)] == ["a", "b"]


@pytest.mark.parametrize(
    ("broken", "place"),
    [
        (row(id=7), "$.id"),
        (row(id=""), "id is empty"),
        (row(split="validation"), "$.split"),
        (row(gold={"kind": "guess"}), "$.gold.kind"),
        (row(gold={"kind": "calls", "calls": [{"name": "x", "arguments": {"p": 1}}]}), "$.gold.calls[0].arguments"),
        (row(messages=[]), "messages must end with"),
        (row(messages=[{"role": "assistant", "content": "hi"}]), "messages must end with"),
        (row(tools=[{"type": "function"}]), "tools[0].function.name"),
        (row(tools=row()["tools"] * 2), "same name"),
        ({"id": "a"}, "source"),
        (b"{not json", "malformed"),
        (b"", "truncated"),
        (b'{"id": "\xff"}', "utf-8"),
        (b'{"meta": {"a": ' + b"[" * 100_000, "recursion"),
    ],
)
def test_a_broken_row_is_refused_with_file_line_and_field(
    tmp_path: Path, broken: dict[str, Any] | bytes, place: str
) -> None:
    """The error of a bad second line starts with the file and `:2:` and names what is wrong."""
    path = write(tmp_path / "cases.jsonl.gz", row(), broken, row(id="c"))
    with pytest.raises(RowError) as caught:
        load_cases(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert place.lower() in str(caught.value).lower()
    assert (caught.value.path, caught.value.line) == (path, 2)


def test_an_id_that_comes_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    """Two rows of one id would be joined to the wrong recorded answers."""
    path = write(tmp_path / "cases.jsonl.gz", row(), row(id="b"), row())
    with pytest.raises(RowError, match=r":3: id 'a' stands in line 1 already"):
        load_cases(path)


def test_a_line_over_the_limit_is_refused_without_being_read_whole(tmp_path: Path) -> None:
    """A decompression bomb costs the limit, not its size."""
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 50_000_000))
    with pytest.raises(RowError, match="longer than 1000 bytes"):
        load_cases(path, max_line_bytes=1000)


@pytest.mark.parametrize("content", [b"no archive at all", gzip.compress(b'{"id": "a"}' * 1000)[:-20]])
def test_a_broken_archive_is_a_row_error(tmp_path: Path, content: bytes) -> None:
    """Neither a false name nor a file that was cut off shows a foreign exception."""
    path = tmp_path / "cases.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(RowError, match="broken gzip archive"):
        load_cases(path)


def test_what_a_case_says_of_itself() -> None:
    """Conversation, tool names, gold names, schema and whether it can be scored are read off the row."""
    case = msgspec.convert(row(meta={"conversation": "talk"}), Case)
    assert case.conversation == "made/talk"
    assert msgspec.convert(row(), Case).conversation == "made/a"
    assert (case.tool_names, case.gold_names) == (("weather",), ("weather",))
    assert case.parameters_of("weather") == {"type": "object"}
    assert case.parameters_of("other") == {}
    assert case.scorable
    assert not msgspec.structs.replace(case, gold=UnknownGold()).scorable


def test_the_data_hash_ignores_order_and_sees_every_change() -> None:
    """A figure's hash stays when the rows are shuffled and changes with any word."""
    cases = [msgspec.convert(row(id=name), Case) for name in "abcd"]
    shuffled = random.Random(1).sample(cases, 4)
    assert data_hash(cases) == data_hash(shuffled)
    changed = [*cases[:3], msgspec.structs.replace(cases[3], meta={"x": 1})]
    assert len({data_hash(cases), data_hash(changed), data_hash(cases[:3]), data_hash([*cases, cases[0]])}) == 4


def test_components_follow_conversations_and_called_tools() -> None:
    """a–b share a talk, b–c a called tool; d only offers it, so it stays apart unless offers count too."""
    cases = [
        case_of("a", "talk", ("x",), ("x",)),
        case_of("b", "talk", ("y",), ("y",)),
        case_of("c", "other", ("y",), ("y",)),
        case_of("d", "third", ("y",), ()),
    ]
    assert components(cases) == {"a": "a", "b": "a", "c": "a", "d": "d"}
    assert components(cases, (by_conversation,)) == {"a": "a", "b": "a", "c": "c", "d": "d"}
    assert set(components(cases, (by_conversation, by_offered_tool)).values()) == {"a"}


@st.composite
def case_lists(draw: st.DrawFn) -> list[Case]:
    """Up to 30 cases over a few conversations and tools."""
    names = st.sampled_from([f"tool{i}" for i in range(8)])
    talks = st.sampled_from([f"talk{i}" for i in range(12)])
    drawn = draw(st.lists(st.tuples(talks, st.sets(names, max_size=2)), max_size=30))
    return [case_of(f"c{i}", talk, tuple(gold), tuple(gold)) for i, (talk, gold) in enumerate(drawn)]


@given(case_lists(), st.text(max_size=5))
def test_no_conversation_and_no_tool_is_in_two_parts(cases: list[Case], salt: str) -> None:
    """The split loses and doubles nothing, leaks neither kind of key, and does not depend on the rows' order."""
    shares = {"train": 0.5, "calibrate": 0.3, "test": 0.2}
    parts = split(cases, shares, salt=salt)
    assert sorted(case.id for part in parts.values() for case in part) == sorted(case.id for case in cases)
    for keys in (by_conversation, by_gold_tool):
        held = [{key for case in part for key in keys(case)} for part in parts.values()]
        assert sum(map(len, held)) == len(set().union(*held))
    backwards = split(cases[::-1], shares, salt=salt)
    assert {part: {case.id for case in held} for part, held in parts.items()} == {
        part: {case.id for case in held} for part, held in backwards.items()
    }


def test_shares_are_met_on_average_and_the_salt_matters() -> None:
    """Of 2,000 untied cases a share of 0.2 gets 0.2 within four standard errors; another salt moves cases."""
    cases = [case_of(f"c{i}", f"talk{i}", (), ()) for i in range(2000)]
    parts = split(cases, {"test": 0.2, "train": 0.8}, salt="one")
    assert abs(len(parts["test"]) - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5
    assert parts["test"] != split(cases, {"test": 0.2, "train": 0.8}, salt="two")["test"]


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}])
def test_shares_that_do_not_divide_a_whole_are_refused(shares: dict[str, float]) -> None:
    """Shares must be positive and sum to 1."""
    with pytest.raises(ValueError, match="sum to 1"):
        split([], shares, salt="")
