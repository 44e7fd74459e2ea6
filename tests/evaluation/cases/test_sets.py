"""The sets that scores are told for: what is in them, how they are sampled, and that none meets a training row."""

import pytest

from evaluation.cases.sets import NEW_AGENTS, SETS, case_set, group_of, sample
from slm.training.recipe import load_recipe


@pytest.mark.parametrize(
    ("name", "cases", "groups"),
    [
        ("bfcl", 3491, 11),
        ("in_domain", 2016, 8),
        ("heldout_tools", 1458, 3),
        ("new_agents", 1167, 2),
        ("toolbench", 764, 6),
        ("toolbench_recorded", 582, 6),
    ],
)
def test_a_set_has_the_cases_that_its_source_says(name: str, cases: int, groups: int) -> None:
    """Counts as in the data's README; every case can be scored."""
    found = case_set(name)
    assert len(found) == cases
    assert len({group_of(name, case) for case in found}) == groups
    assert all(case.scorable and case.split == "test" for case in found)


def test_what_a_model_called_first_stands_in_for_a_gold_that_nobody_gave() -> None:
    """The tool is an offered one, and no case whose right tools are known is among them."""
    cases = case_set("toolbench_recorded")
    assert not {case.id for case in cases} & {case.id for case in case_set("toolbench")}
    assert all(len(case.gold_names) == 1 and set(case.gold_names) < {*case.tool_names, ""} for case in cases)


def test_no_set_shares_a_conversation_with_what_is_trained_on() -> None:
    """Validation conversations are those that `slm.dataset.splits` keeps out; test conversations are in no training
    row."""
    kept = {case.conversation for case in case_set("validation")}
    assert len(kept) > 300
    for name in ("in_domain", "heldout_tools", "new_agents"):
        assert not kept & {case.conversation for case in case_set(name)}


def test_the_shipped_recipe_trains_on_no_new_agent() -> None:
    """Their tests count as unseen tools only while this holds."""
    recipe = load_recipe("qwen2.5-coder-0.5b")
    assert recipe.data.sources is not None
    assert not NEW_AGENTS & set(recipe.data.sources)


def test_a_sample_is_bounded_in_every_group_and_always_the_same() -> None:
    """A smaller sample is part of a larger one, so that tables can grow."""
    cases = case_set("heldout_tools")
    few, more = (sample("heldout_tools", cases, count) for count in (5, 9))
    assert len(few) == 5 * len({group_of("heldout_tools", case) for case in cases})
    assert {case.id for case in few} < {case.id for case in more}
    assert few == sample("heldout_tools", cases, 5)
    assert sample("heldout_tools", cases, None) == cases


def test_an_unknown_set_names_those_there_are() -> None:
    """The message lists them."""
    with pytest.raises(LookupError, match=SETS[0]):
        case_set("nothing")
