"""Failures by kind: hand-made drafts of one request each, and the page that tells them."""

import json
from typing import Any

import pytest

from evaluation.cases.case import CallsGold, Case, GoldCall, NoCallGold, ToolNamesGold
from evaluation.studies.small_model.failure_kinds import Failure, Kind, failure_of
from evaluation.studies.small_model.failures import drawn, render_failures, set_failures
from evaluation.traces.collect import INVALID_DRAFT, scored
from evaluation.traces.table import TraceRow

SAID = (
    "Book a table at the Blue Fox Grill in Rome for 4 people on May 3rd at 19:30, not in Oslo, and remind me at noon."
)


def tool(name: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TEXT, NUMBER, TEXTS = {"type": "string"}, {"type": "number"}, {"type": "array", "items": {"type": "string"}}
TOOLS = [
    tool(
        "restaurants_book", place=TEXT, city=TEXT, people=NUMBER, date=TEXT, near=TEXT, courses=TEXTS,
        seat={"enum": ["in", "out"]}, smoking={"type": "boolean"},
    ),
    tool("restaurants_find", city=TEXT),
    tool("reminder_set", time=TEXT),
]  # fmt: skip


def case(gold: Any = None, category: str = "simple", **arguments: Any) -> Case:
    """A request whose gold books the restaurant with these arguments, unless told otherwise."""
    right = gold or CallsGold([GoldCall("restaurants_book", {name: [value] for name, value in arguments.items()})])
    messages = [{"role": "user", "content": SAID}]
    return Case(id="c", source="s", split="test", category=category, messages=messages, tools=TOOLS, gold=right)


def drafted(*calls: tuple[str, dict[str, Any]], **columns: Any) -> TraceRow:
    """A row that makes these calls."""
    made = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in calls]
    fields: dict[str, Any] = {
        "case_id": "c", "source": "s", "category": "simple", "arm": "a", "calls": json.dumps(made),
        "outcome": "calls" if made else "no_call", **columns,
    }  # fmt: skip
    return TraceRow(**fields)


def kind(asked: Case, row: TraceRow) -> Failure | None:
    return failure_of(asked, scored(asked, row))


@pytest.mark.parametrize(
    ("name", "wanted", "value", "expected"),
    [
        ("place", "Blue Fox Grill", "the Blue Fox Grill in Rome", Kind.TOO_LONG),
        ("place", "Blue Fox Grill", "Blue Fox", Kind.TOO_SHORT),
        ("place", "Blue Fox Grill", "Grill Blue Fox", Kind.OTHERWISE),
        ("place", "Blue Fox Grill", "Bleu Fox Grill", Kind.OTHERWISE),
        ("date", "2024-05-03", "May 3, 2024", Kind.OTHERWISE),
        ("date", "2024-05-03", "2024-05-04", Kind.MADE_UP),
        ("people", 4, 400, Kind.OTHERWISE),
        ("people", 4, 7, Kind.MADE_UP),
        ("people", 4, "4", Kind.TYPE_ONLY),
        ("people", 4, "many", Kind.WRONG_TYPE),
        ("city", "Rome", "Oslo", Kind.OTHER_SAID),
        ("city", "Rome", "Bern", Kind.MADE_UP),
        ("city", "Rome", "Rome Rome Rome Rome Rome Rome Rome", Kind.REPETITION),
        ("seat", "in", "out", Kind.OTHER_CHOICE),
        ("smoking", True, False, Kind.OTHER_CHOICE),
        ("courses", ["fish", "soup"], ["fish"], Kind.TOO_SHORT),
        ("courses", ["fish", "soup"], ["fish", "soup", "cake"], Kind.TOO_LONG),
        ("courses", ["fish", "soup"], ["soup", "fish"], Kind.OTHERWISE),
    ],
)
def test_a_wrong_value_is_told_by_how_it_differs(name: str, wanted: Any, value: Any, expected: Kind) -> None:
    """Longer, shorter, written otherwise, another choice, made up: by comparison with gold and request."""
    asked = case(**{"people": 4, name: wanted})
    row = drafted(("restaurants_book", {"people": 4, name: value}))
    assert kind(asked, row) == Failure(expected, name)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"near": "Rome"}, Failure(Kind.OTHER_PARAMETER, "near")),
        ({"city": "Rome", "near": "Oslo"}, Failure(Kind.EXTRA_SAID, "near")),
        ({"city": "Rome", "near": "the zoo"}, Failure(Kind.EXTRA_MADE_UP, "near")),
        ({}, Failure(Kind.LEFT_OUT, "city")),
        ({"city": "Rome"}, None),
    ],
)
def test_arguments_that_are_not_those_of_the_gold(arguments: dict[str, Any], expected: Failure | None) -> None:
    """A value under another parameter is told before one too many; a right draft has no kind."""
    assert kind(case(city="Rome"), drafted(("restaurants_book", arguments))) == expected


BOOK, TWO = GoldCall("restaurants_book", {"city": ["Rome"]}), GoldCall("restaurants_book", {"city": ["Oslo"]})
BOOKED = ("restaurants_book", {"city": "Rome"})


@pytest.mark.parametrize(
    ("gold", "category", "row", "expected"),
    [
        (CallsGold([BOOK]), "simple", drafted(("restaurants_find", {"city": "Rome"})), Kind.SIBLING_TOOL),
        (CallsGold([BOOK]), "simple", drafted(("reminder_set", {"time": "noon"})), Kind.OTHER_TOOL),
        (ToolNamesGold(["reminder_set"]), "G1", drafted(BOOKED), Kind.OTHER_TOOL),
        (CallsGold([BOOK]), "simple", drafted(small_outcome="ask"), Kind.ASKS),
        (CallsGold([BOOK]), "simple", drafted(small_outcome="no_call"), Kind.NO_CALL),
        (NoCallGold(), "ask_or_confirm_no_call", drafted(BOOKED), Kind.CALLS_FOR_ASKING),
        (NoCallGold(), "talk_no_call", drafted(BOOKED), Kind.CALLS_FOR_TALKING),
        (NoCallGold(), "irrelevance", drafted(BOOKED), Kind.CALLS_FOR_NOTHING),
        (CallsGold([BOOK, TWO]), "parallel", drafted(BOOKED), Kind.TOO_FEW_CALLS),
        (
            CallsGold([BOOK, TWO]), "parallel", drafted(("restaurants_book", {"city": "Rome and Oslo"})), Kind.JOINED,
        ),
        (CallsGold([BOOK]), "parallel", drafted(BOOKED, ("restaurants_book", {"city": "Oslo"})), Kind.TOO_MANY_CALLS),
        (CallsGold([BOOK]), "parallel", drafted(BOOKED, BOOKED), Kind.REPETITION),
    ],
)  # fmt: skip
def test_wrong_calls_are_told_by_what_was_wanted(gold: Any, category: str, row: TraceRow, expected: Kind) -> None:
    """Another tool, no call, a call too many or too few, a call where the gold asks or talks."""
    failure = kind(case(gold, category), row)
    assert failure is not None
    assert failure.kind is expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"small_text": "Thought: book\nAction", "small_complete": False}, Kind.CUT),
        ({"small_text": 'Action Input: {"city": "' + "a, b, c, " * 20, "small_complete": False}, Kind.REPETITION),
        ({"small_text": "Thought: book\nAction: dance", "small_complete": True}, Kind.INVALID),
    ],
)
def test_an_invalid_draft_is_cut_or_repeats_or_breaks_the_pattern(columns: dict[str, Any], expected: Kind) -> None:
    """A draft that runs into its limit because it repeats itself is a repetition."""
    row = TraceRow(case_id="c", source="s", category="x", arm="a", status=422, error=INVALID_DRAFT, **columns)
    assert kind(case(city="Rome"), row) == Failure(expected)


def test_a_request_that_was_refused_is_no_draft() -> None:
    """It counts as a failure of its own kind."""
    row = TraceRow(case_id="c", source="s", category="x", arm="a", status=400, error="no_tools")
    assert kind(case(city="Rome"), row) == Failure(Kind.NOT_DRAFTED)


def test_of_several_calls_the_one_that_matches_nothing_is_told() -> None:
    """The right one is taken out first, whatever the order."""
    asked = case(CallsGold([BOOK, TWO]))
    row = drafted(("restaurants_book", {"city": "Oslo in Norway"}), BOOKED)
    assert kind(asked, row) == Failure(Kind.TOO_LONG, "city")


def test_the_page_counts_all_failures_and_tells_a_sample_of_every_group() -> None:
    """The sample takes a group in turn; what a request holds is text, backticks and all."""
    cases, rows = [], []
    for index in range(30):
        source = "rare" if index >= 28 else "common"
        messages = [{"role": "user", "content": f"``<b>Go to {index}``"}]
        one = Case(
            id=f"c{index}", source=source, split="test", category="x", messages=messages, tools=TOOLS,
            gold=CallsGold([BOOK]),
        )  # fmt: skip
        row = drafted(BOOKED if index == 0 else ("reminder_set", {"time": "noon"}), case_id=one.id)
        cases.append(one)
        rows.append(scored(one, row))
    found = set_failures("in_domain", cases, [*rows, drafted(case_id="of another set")])
    assert (found.answered, len(found.failed)) == (30, 29)
    sample = drawn(found.failed, 6)
    assert len(sample) == 6
    assert sum(one.group == "rare" for one in sample) == 2
    page = render_failures([found], 6, {"command": "c"})
    assert page == render_failures([found], 6, {"command": "c"})
    assert f"| {Kind.OTHER_TOOL} | 29 |" in page
    assert "| **failed** | 29 of 30 |" in page
    assert "## in_domain: 6 of 29 failures" in page
    assert page.count("- asked: ``` ``<b>Go to ") == 6
    assert '- gold: `restaurants_book(city="Rome")`' in page
    assert '- draft: `reminder_set(time="noon")`' in page
