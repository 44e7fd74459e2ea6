"""Every signal on hand-made drafts: its value where it is there, NaN where it is not."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.features.probe import Probe
from policies.features.vector import (
    FEATURE_LIST,
    FEATURES,
    LEARNED,
    Context,
    ToolRecord,
    features,
    standing_at,
)
from policies.texts import json_sha256, tool_sha256
from policies.types import (
    HIDDEN_SIZE,
    Draft,
    DraftCall,
    HiddenPlace,
    Outcome,
    Request,
    Span,
    Stage,
    TokenSignals,
    Tool,
)

WEATHER = Tool(
    "get_weather",
    "Current weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "days": {"type": "integer", "default": 1},
        },
        "required": ["city"],
    },
)
ROUTE = Tool("find_route", "The way from one place to another by car.", {"type": "object", "properties": {}})
SAID = {"role": "user", "content": "What is the weather in Paris for 3 days? In celsius."}
REQUEST = Request([SAID], (WEATHER, ROUTE))
NAN = math.nan


def signals(rows: Sequence[tuple[Span, bool, float, float, float, float, float]]) -> TokenSignals:
    """Rows of span, forced, logprob, margin, entropy, feasible mass, layer agreement."""
    spans, forced, *numbers = zip(*rows, strict=True)
    logprob, margin, entropy, mass, agreement = (np.array(column, np.float32) for column in numbers)
    return TokenSignals(
        logprob, margin, entropy, mass, np.array(forced, np.bool_), np.array(spans, np.uint8), agreement
    )


TOKENS = signals(
    [
        (Span.SYNTAX, True, -3.0, 0.9, 0.1, 0.5, 1.0),
        (Span.PLAN, False, -0.2, 0.7, 0.4, 1.0, 0.5),
        (Span.PLAN, False, -0.4, 0.5, 0.8, 0.8, 1.0),
        (Span.NAME, True, -0.1, 0.8, 0.2, 0.9, 1.0),
        (Span.KEY, False, -1.0, 0.3, 1.0, 1.0, 0.0),
        (Span.KEY, True, -9.0, 0.9, 0.0, 0.1, 0.0),
        (Span.VALUE, False, -0.5, 0.6, 0.5, 1.0, 0.25),
        (Span.VALUE, False, -1.5, 0.2, 1.5, 0.7, 0.75),
        (Span.VALUE, False, -0.1, 0.9, 0.1, 1.0, NAN),
    ]
)


def calls(*made: tuple[str, Any], **fields: Any) -> Draft:
    """A draft that calls these tools; arguments that are no text are written as JSON."""
    written = tuple(DraftCall(name, a if isinstance(a, str) else json.dumps(a)) for name, a in made)
    return Draft(Outcome.CALLS, written, plan=tuple(name for name, _ in made), **fields)


PARIS = calls(("get_weather", {"city": "Paris", "days": 3}), signals=TOKENS)


def named(draft: Draft, request: Request = REQUEST, context: Context | None = None) -> Mapping[str, float]:
    """The vector by name."""
    vector = features(request, draft, context) if context else features(request, draft)
    assert vector.shape == (len(FEATURES),)
    assert vector.dtype == np.float32
    return dict(zip(FEATURES, vector.tolist(), strict=True))


def check(found: Mapping[str, float], expected: Mapping[str, float]) -> None:
    """All expected values, NaN for missing."""
    assert {name: found[name] for name in expected} == pytest.approx(dict(expected), nan_ok=True, abs=1e-6)


def test_every_signal_is_declared_once_and_told_in_the_document() -> None:
    """`docs/signals.md` has one line a signal, in order, with unit and direction as declared."""
    assert len(set(FEATURES)) == len(FEATURES) == len(FEATURE_LIST)
    text = (Path(__file__).parents[3] / "docs" / "signals.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|([^|]*)\|([^|]*)\|", text, re.MULTILINE)
    signs = {1: "+", -1: "−", 0: ""}
    assert [(n, unit.strip(), sign.strip(), stage.strip()) for n, unit, sign, stage in rows] == [
        (f.name, f.unit, signs[f.direction], f.stage.value) for f in FEATURE_LIST
    ]


def test_tokens_are_told_by_span() -> None:
    """Quantiles, margin and entropy of open tokens; of a name all tokens, since the plan forces it."""
    found = named(PARIS)
    check(
        found,
        {
            "plan_logprob_min": -0.4, "plan_logprob_q10": -0.38, "plan_logprob_q25": -0.35, "plan_logprob_q50": -0.3,
            "plan_margin": 0.6, "plan_entropy": 0.8,
            "name_logprob_min": -0.1, "name_margin": 0.8, "name_entropy": 0.2,
            "key_logprob_min": -1.0, "key_logprob_q50": -1.0, "key_margin": 0.3, "key_entropy": 1.0,
            "value_logprob_min": -1.5, "value_logprob_q10": -1.3, "value_logprob_q25": -1.0, "value_logprob_q50": -0.5,
            "value_margin": 1.7 / 3, "value_entropy": 1.5,
            "decision_logprob": -0.2, "decision_margin": 0.7, "plan_margin_min": 0.5,
            "weakest_logprob": -1.5, "weakest_margin": 0.2,
            "semantic_logprob_sum": -3.7, "semantic_logprob_mean": -3.7 / 6, "all_logprob_mean": -15.8 / 9,
            "length": math.log(10), "forced_share": 3 / 9,
        },
    )  # fmt: skip
    assert found["value_logprob_q25"] == pytest.approx(float(np.quantile([-0.5, -1.5, -0.1], 0.25)))


def test_forced_validity_shows_in_the_feasible_mass() -> None:
    """−log Z summed and at its worst: over the draft, the plan, the name and the values, forced tokens too."""
    minus = {z: -math.log(z) for z in (0.5, 0.8, 0.9, 0.1, 0.7)}
    check(
        named(PARIS),
        {
            "mass_sum": sum(minus.values()), "mass_max": minus[0.1], "mass_plan_sum": minus[0.8],
            "mass_plan_max": minus[0.8], "mass_name_sum": minus[0.9], "mass_value_max": minus[0.7],
        },
    )  # fmt: skip


def test_layers_that_agree_are_told_by_span() -> None:
    """Means and least of open tokens; a token without is left out, an engine without gives NaN."""
    check(
        named(PARIS),
        {"layers_plan": 0.75, "layers_plan_min": 0.5, "layers_key": 0.0, "layers_value": 0.5, "layers_value_min": 0.25},
    )
    blind = TokenSignals(
        TOKENS.logprob, TOKENS.margin, TOKENS.entropy, TOKENS.feasible_mass, TOKENS.forced, TOKENS.span
    )
    found = named(calls(("get_weather", {"city": "Paris"}), signals=blind))
    check(found, dict.fromkeys([name for name in FEATURES if name.startswith("layers_")], NAN))
    assert found["plan_logprob_min"] == pytest.approx(-0.4)


def test_a_draft_without_signals_says_so() -> None:
    """Tokens, mass, layers, hidden states and records are NaN, no zero that looks like a value; the rest stands."""
    found = named(calls(("get_weather", {"city": "Paris"})))
    missing = {f.name for f in FEATURE_LIST if f.family in ("tokens", "mass", "layers", "hidden", "record")}
    assert {name for name in missing if not math.isnan(found[name])} == set()
    check(found, {"length": NAN, "forced_share": NAN, "findings_schema": 0.0, "is_calls": 1.0, "grounded_share": 1.0})
    empty = named(calls(("get_weather", {"city": "Paris"}), signals=TOKENS.first(0)))
    assert math.isnan(empty["mass_sum"])


def test_impossible_numbers_stay_numbers() -> None:
    """A log-probability of −∞ or NaN and a mass of 0 count as the floor."""
    broken = signals([(Span.VALUE, False, -math.inf, 0.5, 0.1, 0.0, 1.0), (Span.VALUE, False, NAN, 0.5, 0.1, 1.0, 1.0)])
    check(named(calls(("get_weather", {}), signals=broken)), {"value_logprob_min": -100.0, "mass_max": 100.0})


@pytest.mark.parametrize(
    ("draft", "family"),
    [
        (Draft(Outcome.CALLS), "findings_arity"),
        (calls(("get_time", {})), "findings_tool"),
        (calls(("get_weather", "{")), "findings_json"),
        (calls(("get_weather", '{"city": "a", "city": "b"}')), "findings_json"),
        (calls(("get_weather", "[]")), "findings_json"),
        (calls(("get_weather", {"city": 7})), "findings_schema"),
        (calls(("get_weather", {"city": "Paris"}), complete=False), "findings_incomplete"),
        (Draft(Outcome.UNPARSABLE), "findings_incomplete"),
    ],
)
def test_findings_are_counted_by_kind(draft: Draft, family: str) -> None:
    """One finding of its own kind, none of the others."""
    found = named(draft)
    assert {name: found[name] for name in FEATURES if name.startswith("findings_")} == {
        name: float(name == family) for name in FEATURES if name.startswith("findings_")
    }


def test_a_schema_that_cannot_be_judged_is_a_kind_of_its_own() -> None:
    """A reference that leaves the document."""
    tool = Tool("get_weather", "", {"$ref": "http://127.0.0.1/x"})
    assert named(calls(("get_weather", {})), Request([SAID], (tool,)))["findings_unjudged"] == 1.0


def test_arguments_are_held_against_their_schema() -> None:
    """Required ones given, optional ones given, values equal to the default, number and length of values."""
    check(
        named(calls(("get_weather", {"city": "Paris", "unit": "celsius", "days": 3}))),
        {
            "required_coverage": 1.0, "optional_given": 2.0, "optional_share": 1.0, "default_share": 0.5, "values": 3.0,
            "value_chars": math.log1p(len('{"city": "Paris", "unit": "celsius", "days": 3}')),
        },
    )  # fmt: skip
    two = named(calls(("get_weather", {"city": "Paris"}), ("get_weather", {"days": 1})))
    check(two, {"required_coverage": 0.0, "optional_given": 1.0, "optional_share": 0.25, "default_share": 1.0})
    check(
        named(calls(("find_route", {}))),
        {"required_coverage": NAN, "optional_share": NAN, "default_share": NAN, "values": 0.0, "grounding_min": NAN},
    )


def test_values_are_grounded() -> None:
    """Shares, least and mean over values; made-up, placeholder, empty and free ones are counted apart."""
    check(
        named(calls(("get_weather", {"city": "Paris", "days": 3}))),
        {
            "grounded_share": 1.0, "grounding_min": 1.0, "grounding_mean": 1.0, "grounded_last_share": 1.0,
            "enum_share": 0.0, "fuzzy_share": 0.0, "ungrounded": 0.0, "placeholders": 0.0, "empty_values": 0.0,
            "numbers_used": 1.0, "names_used": 1.0,
        },
    )  # fmt: skip
    wrong = {"city": "string", "days": 9, "unit": "fahrenheit", "a": "", "b": True, "c": "in Rome"}
    check(
        named(calls(("get_weather", wrong))),
        {
            "grounded_share": 0.0, "grounding_min": 0.0, "grounding_mean": (0.5 + 0.45) / 4, "grounded_last_share": 0.0,
            "enum_share": 0.25, "fuzzy_share": 0.25, "ungrounded": 1.0, "placeholders": 1.0, "empty_values": 1.0,
            "numbers_used": 0.0, "names_used": 0.0,
        },
    )  # fmt: skip


def test_the_request_is_told() -> None:
    """Counts, turns, and the likeness of tools to what the user last said."""
    found = named(PARIS)
    check(
        found,
        {
            "tools": 2.0, "turn": 1.0, "messages": 1.0, "request_chars": math.log1p(len(SAID["content"])),
            "last_is_tool": 0.0, "last_is_error": NAN, "call_required": 0.0,
            "similarity_best": found["name_similarity"], "similarity_lead": found["name_similarity"],
            "name_lead": found["name_similarity"],
        },
    )  # fmt: skip
    assert found["name_similarity"] > 0.1
    other = named(calls(("find_route", {})))
    check(other, {"name_similarity": 0.0, "name_lead": -found["name_similarity"]})
    check(named(Draft(Outcome.NO_CALL)), {"name_similarity": NAN, "name_lead": NAN})
    lonely = named(PARIS, Request([SAID], (WEATHER,), tool_choice="required"))
    check(lonely, {"similarity_lead": NAN, "name_lead": NAN, "call_required": 1.0, "tools": 1.0})


@pytest.mark.parametrize(
    ("content", "error"), [("Error: city not found", 1.0), ('{"temperature": 21}', 0.0), ("terrors", 0.0)]
)
def test_the_result_of_a_tool_is_seen(content: str, error: float) -> None:
    """The last message is a result, and one that reads like an error is told apart."""
    earlier = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"days": 3, "city":"Paris"}'}}],
    }
    request = Request([SAID, earlier, {"role": "tool", "content": content}], (WEATHER, ROUTE))
    check(
        named(PARIS, request),
        {"last_is_tool": 1.0, "last_is_error": error, "messages": 3.0, "turn": 1.0, "repeated_calls": 1.0},
    )
    check(named(calls(("get_weather", {"city": "Rome"})), request), {"repeated_calls": 0.0})


def test_the_four_outcomes_are_told_apart() -> None:
    """Kind, number and variety of planned calls, and calls that stand twice."""
    both = ("get_weather", {"city": "Paris"})
    expected: list[tuple[Draft, dict[str, float]]] = [
        (PARIS, {"is_calls": 1, "is_no_call": 0, "is_ask": 0, "planned_calls": 1, "planned_tools": 1, "complete": 1}),
        (calls(both, both, ("find_route", {})), {"planned_calls": 3, "planned_tools": 2, "duplicate_calls": 1}),
        (Draft(Outcome.NO_CALL), {"is_calls": 0, "is_no_call": 1, "planned_calls": 0, "duplicate_calls": NAN}),
        (Draft(Outcome.ASK, complete=False), {"is_ask": 1, "complete": 0, "values": NAN, "ungrounded": NAN}),
    ]
    for draft, wanted in expected:
        check(named(draft), wanted)


def known(*tools: Tool) -> frozenset[str]:
    return frozenset(hashed for hashed in map(tool_sha256, tools) if hashed)


def test_the_record_of_a_tool_is_that_of_its_hash() -> None:
    """Rate and rows of the planned tool; a tool of the same name with another schema is unknown."""
    context = Context(known(WEATHER, ROUTE), {next(iter(known(WEATHER))): ToolRecord(0.75, 12)})
    check(
        named(PARIS, context=context),
        {"known_share": 1.0, "tool_known": 1.0, "tool_rate": 0.75, "tool_rows": math.log(13)},
    )
    changed = Tool("get_weather", WEATHER.description, {**WEATHER.parameters, "required": []})
    check(
        named(PARIS, Request([SAID], (changed, ROUTE)), context),
        {"known_share": 0.5, "tool_known": 0.0, "tool_rate": NAN, "tool_rows": 0.0},
    )
    check(named(Draft(Outcome.NO_CALL), context=context), {"known_share": 1.0, "tool_known": NAN, "tool_rows": NAN})
    check(named(PARIS), {"known_share": NAN, "tool_known": NAN, "tool_rate": NAN, "tool_rows": NAN})


def test_a_tool_has_one_hash_however_it_is_written() -> None:
    """Order of keys does not matter, a tool that is no JSON has no hash."""
    turned = Tool(WEATHER.name, WEATHER.description, dict(reversed(WEATHER.parameters.items())))
    assert tool_sha256(turned) == tool_sha256(WEATHER)
    assert tool_sha256(WEATHER) == json_sha256(
        {"name": WEATHER.name, "description": WEATHER.description, "parameters": WEATHER.parameters}
    )
    assert tool_sha256(Tool("a", "", {"x": object()})) is None
    assert tool_sha256(Tool("a", "", {"x": math.nan})) is None


def test_the_probe_reads_the_hidden_states() -> None:
    """Log-odds and distance from the training rows; a place that the draft does not have counts as their mean."""
    size = len(HiddenPlace) * HIDDEN_SIZE
    weights = np.zeros(size)
    weights[0] = 2.0
    context = Context(probe=Probe(np.ones(size), np.full(size, 2.0), weights, 0.5))
    hidden = np.full((len(HiddenPlace), HIDDEN_SIZE), 1.0, np.float32)
    hidden[0] = 5.0
    hidden[3] = np.nan
    found = named(calls(("get_weather", {}), hidden=hidden), context=context)
    check(found, {"probe": 2 * 2.0 + 0.5, "state_distance": math.sqrt(4.0 * 16 / 64)})
    nowhere = np.full_like(hidden, np.nan)
    check(named(calls(("get_weather", {}), hidden=nowhere), context=context), {"probe": NAN, "state_distance": NAN})
    check(named(PARIS, context=context), {"probe": NAN, "state_distance": NAN})
    check(named(calls(("get_weather", {}), hidden=hidden)), {"probe": NAN})


def test_what_stands_early_is_the_same_later() -> None:
    """A draft given up when its plan stood has the whole draft's values of the stages up to then."""
    context = Context(known(WEATHER), {next(iter(known(WEATHER))): ToolRecord(0.5, 3)})
    none, ask = (Draft(outcome, text="a", signals=TOKENS) for outcome in (Outcome.NO_CALL, Outcome.ASK))
    for whole in (PARIS, none, ask):
        early, late = named(whole.at_plan(), context=context), named(whole, context=context)
        for name in standing_at(Stage.DURING):
            assert early[name] == pytest.approx(late[name], nan_ok=True), (whole.outcome, name)
    late = named(PARIS, context=context)
    before = named(Draft(Outcome.UNPARSABLE, complete=False), context=context)
    for name in standing_at(Stage.BEFORE):
        assert before[name] == pytest.approx(late[name], nan_ok=True), name
    assert set(standing_at(Stage.BEFORE)) < set(standing_at(Stage.DURING)) < set(standing_at(Stage.AFTER))
    assert standing_at(Stage.AFTER) == FEATURES
    assert set(LEARNED) <= set(FEATURES)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "name"]), json_values), max_size=3),
    st.dictionaries(st.sampled_from(["properties", "required", "type", "enum", "items", "default"]), json_values),
    st.text(max_size=20) | st.builds(json.dumps, st.dictionaries(st.text(max_size=4), json_values, max_size=3)),
)
def test_no_request_and_no_draft_breaks_it(messages: list[Any], schema: dict[str, Any], arguments: str) -> None:
    """Messages, schemas and arguments of any shape give a vector of finite numbers and NaN."""
    request = Request(messages, (Tool("t", "d", schema),))
    context = Context(frozenset({"x"}))
    vector = features(request, calls(("t", arguments), signals=TOKENS), context)
    assert not np.isinf(vector).any()
