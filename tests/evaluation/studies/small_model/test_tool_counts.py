"""Cases among more tools: the answer stays possible and stays the only one; tables say what was measured."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from evaluation.cases.case import CallsGold, Case, GoldCall
from evaluation.studies.small_model.tool_counts import Rate, Recall, crowded, pool_of, render_tool_counts


def tool(name: str) -> dict[str, Any]:
    """A tool without parameters."""
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}}


def case(id_: str, called: str, *offered: str) -> Case:
    """A case that calls one tool."""
    return Case(
        id=id_, source="s", split="test", category="c", messages=[{"role": "user", "content": "x"}],
        tools=[tool(name) for name in offered], gold=CallsGold([GoldCall(called, {})]),
    )  # fmt: skip


CASE = case("a", "weather_lookup", "weather_lookup", "own_one", "own_two")
POOL = pool_of([CASE, case("b", "tax", *(f"other_thing_{n}" for n in range(30)), "get_weather", "own_one")])


@given(st.integers(1, 40), st.integers(0, 5))
def test_a_case_among_more_tools_keeps_its_answer_and_gets_no_rival(count: int, seed: int) -> None:
    """So many tools, the called one among them, no name twice, nothing that shares a word with the called one."""
    made = crowded(CASE, count, POOL, seed)
    if count > 33:
        assert made is None
        return
    assert made is not None
    assert made == crowded(CASE, count, POOL, seed)
    assert len(made.tools) == len(set(made.tool_names)) == count
    assert "weather_lookup" in made.tool_names
    assert "get_weather" not in made.tool_names
    assert made.gold == CASE.gold
    if count >= 3:
        assert set(CASE.tool_names) <= set(made.tool_names)


def test_what_must_be_offered_bounds_the_count() -> None:
    """Two tools that were needed do not fit into a list of one."""
    call = {"id": "1", "type": "function", "function": {"name": "own_one", "arguments": "{}"}}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "y"}]  # fmt: skip
    told = Case(
        id="t", source="s", split="test", category="c", messages=said, tools=CASE.tools, gold=CASE.gold
    )  # fmt: skip
    assert crowded(told, 1, POOL, 0) is None
    two = crowded(told, 2, POOL, 0)
    assert two is not None
    assert set(two.tool_names) == {"own_one", "weather_lookup"}


def test_the_page_tells_rates_failures_and_recall() -> None:
    """Every figure has its n; a request that was not drafted is told."""
    rates = [Rate(arm="all shown", tools=count, n=20, passed=10, failed=count // 100) for count in (5, 200)]
    page = render_tool_counts(rates, [Recall(ranking="bm25", tools=200, n=20, at={1: 10, 12: 20})], {"command": "c"})
    assert "| 5 | 50 (30–70) of 20 |" in page
    assert "| 200 | 50 (30–70) of 20, 2 not drafted |" in page
    assert "| bm25 | 200 | 20 | 50 (30–70) | 100 (84–100) |" in page
