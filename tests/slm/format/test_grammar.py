"""The grammar: a draft that ends by it can be read back, and no schema can hurt whoever builds it."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.engine.engine import DraftEngine
from slm.engine.tokenizer import Tokens
from slm.format.argument_schema import Detail, drafted_schema
from slm.format.grammar import Constraint, Offer, ToolError
from slm.format.pattern import calls_draft, render_draft
from slm.protocol import ToolChoice
from tests.slm.conftest import TIME, WEATHER, schema, tool


@pytest.fixture(scope="module")
def tokens(llama: DraftEngine) -> Tokens:
    """The tiny Llama's tokenizer."""
    return llama._loaded.tokens


def admits(tokens: Tokens, text: str, tools: list[dict[str, Any]], **offer: Any) -> bool:
    """Whether the grammar lets `text` be written token by token, and end there."""
    choice: ToolChoice = offer.get("choice", "auto")
    made = Offer.of(tools, choice, offer.get("forced"), offer.get("parallel", True))
    constraint = Constraint(made, tokens.grammar_tokenizer)
    for token in tokens.encode(text):
        if not constraint.allowed()[token]:
            return False
        constraint.write(token)
    return constraint.ended


def admits_arguments(tokens: Tokens, parameters: Any, arguments: str) -> bool:
    """The same for the arguments of the one call of one tool."""
    return admits(tokens, f"Thought: f\nAction: f\nAction Input: {arguments}", [tool("f", parameters)])


@pytest.mark.parametrize("kind", ["none", "ask"])
def test_no_call_and_asking_are_for_free_choice_only(tokens: Tokens, kind: str) -> None:
    """`none` and `ask` may be planned under `auto`, never where a call is required or named."""
    text = f"Thought: {kind}\nAction: {kind}"
    assert admits(tokens, text, [WEATHER])
    assert admits(tokens, text, [])
    assert not admits(tokens, text, [WEATHER], choice="required")
    assert not admits(tokens, text, [WEATHER], choice="named", forced="get_weather")


def test_only_offered_tools_can_be_planned(tokens: Tokens) -> None:
    """A tool that is not offered cannot be named; a named choice leaves one tool, once."""
    weather, clock = calls_draft([("get_weather", {"city": "x"})]), calls_draft([("get_time", {"zone": "UTC"})])
    both = calls_draft([("get_weather", {"city": "x"}), ("get_time", {"zone": "CET"})])
    assert admits(tokens, render_draft(both), [WEATHER, TIME])
    assert not admits(tokens, render_draft(both), [WEATHER, TIME], parallel=False)
    assert not admits(tokens, render_draft(both), [WEATHER])
    assert admits(tokens, render_draft(clock), [WEATHER, TIME], choice="named", forced="get_time")
    assert not admits(tokens, render_draft(weather), [WEATHER, TIME], choice="named", forced="get_time")


def test_each_call_follows_its_own_schema_in_the_order_of_the_plan(tokens: Tokens) -> None:
    """The arguments of one tool do not pass under the name of another, and the plan's order binds."""
    swapped = 'Thought: get_weather\nAction: get_weather\nAction Input: {"zone": "UTC"}'
    reordered = render_draft(calls_draft([("get_time", {"zone": "UTC"}), ("get_weather", {"city": "x"})]))
    assert not admits(tokens, swapped, [WEATHER, TIME])
    assert admits(tokens, reordered, [WEATHER, TIME])
    assert not admits(tokens, reordered.replace("get_time, get_weather", "get_weather, get_time"), [WEATHER, TIME])


def test_tools_named_like_reserved_words_stay_tools(tokens: Tokens) -> None:
    """A tool called `none` is written `none.` and can be told from no call."""
    draft = render_draft(calls_draft([("none", {})]))
    assert admits(tokens, draft, [tool("none", schema())])
    assert admits(tokens, "Thought: none\nAction: none", [tool("none", schema())])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "not a name"), ("a b", "not a name"), ("a,b", "not a name"), ("a\nb", "not a name"),
        ("ask.", "not a name"), ("x" * 200, "not a name"), (None, "not a name"), ("get_time", "named twice"),
    ],
)  # fmt: skip
def test_a_name_that_no_draft_can_hold_is_refused_by_its_place(name: Any, reason: str) -> None:
    """Names that would break the pattern, and names given twice, are errors that say which tool."""
    with pytest.raises(ToolError, match=rf"tools\[1\]\.function\.name.*{reason}"):
        Offer.of([TIME, tool(name)], "auto", None, True)


def test_a_choice_that_cannot_be_met_is_refused() -> None:
    """A named tool must be offered; a required call needs a tool."""
    with pytest.raises(ToolError, match="forced_tool"):
        Offer.of([TIME], "named", "get_weather", True)
    with pytest.raises(ToolError, match="tool_choice"):
        Offer.of([], "required", None, True)


def test_arguments_are_canonical_json_in_schema_order(tokens: Tokens) -> None:
    """One space after colon and comma, none elsewhere; keys in schema order; nothing undeclared."""
    both = schema(["a"], a={"type": "string"}, b={"type": "array", "items": {"type": "integer"}})
    assert admits_arguments(tokens, both, '{"a": "x", "b": [1, 2]}')
    for text in ('{"a":"x"}', '{ "a": "x"}', '{"b": [], "a": "x"}', '{"a": "x","b": []}', '{"a": "x", "c": 1}', "{}"):
        assert not admits_arguments(tokens, both, text), text


@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        (None, "{}", '{"a": 1}'),
        (schema(), "{}", '{"a": 1}'),
        ({}, '{"a": [null, {"b": 1.5}]}', "[]"),
        ({"type": "object"}, '{"a": 1}', "3"),
        ({"type": "string"}, '{"a": 1}', '"x"'),
        (schema(a={"type": "dict"}), '{"a": {"x": 1}}', '{"b": 1}'),
        (schema(["b"], a={"type": "integer"}), '{"b": "undeclared"}', '{"a": 1}'),
        (schema(a={"type": "object", "additionalProperties": {"type": "integer"}}),
         '{"a": {"x": 1}}', '{"a": {"x": ""}}'),
        (schema(a={"type": ["integer", "null"]}), '{"a": null}', '{"a": "x"}'),
        (schema(a={"const": "ü\n"}), '{"a": "ü\\n"}', '{"a": "u"}'),
        (schema(a=False, b=True), '{"b": 1}', '{"a": 1}'),
        (schema(a={"type": "array", "items": [{"type": "integer"}], "additionalItems": False}),
         '{"a": [1]}', '{"a": [1, 2]}'),
        ({**schema(a={"type": "integer"}), "anyOf": [{"required": ["a"]}, schema(["k"], k={"const": 1})]},
         '{"a": 2, "k": 1}', "{}"),
        ({"allOf": [schema(["a"], a={"type": "integer"}), schema(["b"], b={"type": "integer"})]},
         '{"a": 1, "b": 2}', '{"a": 1}'),
        (schema(a={"oneOf": [{"type": "integer"}, {"type": "string", "minLength": 1}]}), '{"a": "x"}', '{"a": null}'),
        ({**schema(a={"$ref": "#/$defs/n"}), "$defs": {"n": schema(next={"$ref": "#/$defs/n"})}},
         '{"a": {"next": {"next": {}}}}', '{"a": {"prev": {}}}'),
        (schema(a={"type": "integer"}, b={"$ref": "#/properties/a"}), '{"b": 1}', '{"b": "x"}'),
        ({"$ref": "#/definitions/root", "definitions": {"root": schema(["a"], a={"type": "null"})}},
         '{"a": null}', "{}"),
        (schema(a={"type": "string", "pattern": "^[a-c]+$", "maxLength": 3}), '{"a": "abc"}', '{"a": "abca"}'),
        (schema(a={"type": "number", "minimum": 0, "exclusiveMaximum": 1}), '{"a": 0.5}', '{"a": 1.5}'),
        (schema(a={"type": "string", "format": "date"}), '{"a": "2026-01-31"}', '{"a": "tomorrow"}'),
    ],
)  # fmt: skip
def test_schemas_are_drafted_by_what_they_mean(tokens: Tokens, parameters: Any, good: str, bad: str) -> None:
    """References, alternatives, nullable types, closed objects and bounds hold in the draft."""
    assert admits_arguments(tokens, parameters, good)
    assert not admits_arguments(tokens, parameters, bad)


def _nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        inner = schema(["a"], a=inner)
    return inner


HOSTILE: dict[str, Any] = {
    "remote reference": schema(a={"$ref": "https://example.com/schema.json"}),
    "circle of references": {**schema(a={"$ref": "#/$defs/a"}), "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "endless required recursion": {
        **schema(["a"], a={"$ref": "#/$defs/a"}), "$defs": {"a": schema(["a"], a={"$ref": "#/$defs/a"})},
    },
    "depth 10,000": _nested(10_000),
    "a 2 MB schema": schema(**{f"p{i}": {"type": "string", "description": "x" * 100} for i in range(15_000)}),
    "wide references": {
        **schema(a={"anyOf": [{"$ref": "#/$defs/w"}] * 32, "required": []}),
        "$defs": {"w": schema(**{f"p{i}": {"anyOf": [{"$ref": "#/$defs/w"}] * 32} for i in range(2000)})},
    },
    "look-ahead": schema(["a"], a={"type": "string", "pattern": "^(?=a)b"}),
    "broken pattern": schema(["a"], a={"type": "string", "pattern": "(["}),
    "catastrophic pattern": schema(["a"], a={"type": "string", "pattern": "^(.{1,200}x){1,200}$"}),
    "numbers out of this world": schema(a={"type": "number", "minimum": float("nan"), "maximum": 10**400}),
    "nonsense types": {"type": 7, "properties": [], "required": "a", "enum": 3, "allOf": {}, "anyOf": "x"},
    "long enum": schema(a={"type": "string", "enum": [f"value {i}" for i in range(50_000)]}),
    "enums of lists": schema(a={"anyOf": [{"enum": [[k, n] for n in range(512)]} for k in range(16)]}),
    "enum of nested lists": schema(a={"enum": [json.loads("[" * 100 + str(n) + "]" * 100) for n in range(128)]}),
    "huge bounds": schema(a={"type": "array", "minItems": 10**9}, b={"type": "string", "minLength": 10**9}),
    "unsatisfiable": schema(["a"], a={"type": "integer", "minimum": 2, "maximum": 1}),
    "layout of its own": {**schema(["a"], a={}), "x-guidance": {"item_separator": "(("}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_little_and_still_gives_a_draft(tokens: Tokens, name: str) -> None:
    """Whatever a client sends as a schema, some object can be drafted, in bounded time, without an error."""
    began = time.perf_counter()
    constraint = Constraint(Offer.of([tool("f", HOSTILE[name])], "required", None, False), tokens.grammar_tokenizer)
    for token in tokens.encode("Thought: f\nAction: f\nAction Input:"):
        assert constraint.allowed()[token]
        constraint.write(token)
    for _ in range(40):
        if constraint.ended:
            break
        constraint.write(int(constraint.allowed().argmax()))
    assert time.perf_counter() - began < 5.0


def test_a_schema_that_cannot_be_compiled_falls_back_in_steps_and_says_so(tokens: Tokens) -> None:
    """A refused pattern costs the pattern, not the keys, and leaves a warning that names the tool."""
    parameters = HOSTILE["look-ahead"]
    assert admits_arguments(tokens, parameters, '{"a": "anything"}')
    assert not admits_arguments(tokens, parameters, '{"b": 1}')
    constraint = Constraint(Offer.of([tool("f", parameters)], "named", "f", False), tokens.grammar_tokenizer)
    for token in tokens.encode("Thought: f\n"):
        constraint.write(token)
    assert constraint.warnings == ["f: schema too hard for the grammar, drafted by structure"]


def test_a_grammar_that_fails_at_a_token_is_loosened_and_goes_on(tokens: Tokens) -> None:
    """Where a pattern exhausts the lexer in mid-value, the value goes on without it."""
    parameters = HOSTILE["catastrophic pattern"]
    constraint = Constraint(Offer.of([tool("f", parameters)], "named", "f", False), tokens.grammar_tokenizer)
    for token in tokens.encode('Thought: f\nAction: f\nAction Input: {"a": "' + "axbx" * 60 + '"}'):
        assert constraint.allowed()[token]
        constraint.write(token)
    assert constraint.ended
    assert any("structure" in warning for warning in constraint.warnings)


def test_what_a_grammar_leaves_out_is_noted() -> None:
    """A keyword that drafts cannot be held to is named in the notes, without values."""
    parameters = {
        **schema(a={"$ref": "http://x/y"}, b={"type": "array", "uniqueItems": True}),
        "not": {"const": "s3cret"},
    }
    _, notes = drafted_schema(parameters)
    assert len(notes) == 1
    assert "not" in notes[0]
    assert "uniqueItems" in notes[0]
    assert "$ref" in notes[0]
    assert "s3cret" not in notes[0]


def test_a_thousand_tools_cost_their_names_only(tokens: Tokens) -> None:
    """Schemas of tools that are not planned are never compiled: a thousand hostile ones do no harm."""
    tools = [tool(f"tool_number_{i}", HOSTILE["depth 10,000"]) for i in range(1000)]
    began = time.perf_counter()
    assert admits(tokens, "Thought: none\nAction: none", tools)
    assert time.perf_counter() - began < 1.0


@pytest.mark.parametrize("detail", list(Detail))
def test_every_level_of_detail_gives_an_object(detail: Detail) -> None:
    """Whatever the detail, the drafted schema is one of an object and can be written as JSON."""
    for name, parameters in HOSTILE.items():
        made, _ = drafted_schema(parameters, detail)
        assert made.get("type") == "object" or "anyOf" in made, name
        json.dumps(made, allow_nan=False)


@pytest.mark.parametrize("one", [{"enum": [f"{n:0>1000}" for n in range(512)]}, schema(**{"k" * 100_000: {}})])
def test_a_drafted_schema_stays_small_where_references_multiply(one: dict[str, Any]) -> None:
    """Long enums and names are not copied as often as references with something beside them lead there."""
    keys = {f"p{n}": {"$ref": "#/$defs/d", "minLength": 1} for n in range(100)}
    made, _ = drafted_schema({**schema(**keys), "$defs": {"d": one}})
    assert len(json.dumps(made)) < 3_000_000
    alone, _ = drafted_schema({**schema(a={"$ref": "#/$defs/d"}), "$defs": {"d": one}})
    assert len(json.dumps(alone)) > 100_000


def test_enums_of_lists_and_objects_are_followed_up_to_a_bound() -> None:
    """A short one stays, a long one costs itself only, and what stands beside it in its object is drafted on."""
    short: list[Any] = [[1, 2], {"k": 1}, None, "x"]
    made, notes = drafted_schema(schema(a={"enum": short}, b={"type": "array", "enum": [[n] for n in range(512)]}))
    assert made["properties"] == {"a": {"enum": short}, "b": {"type": ["array"]}}
    assert notes == ["not followed while drafting: a long enum"]


def test_alternatives_of_alternatives_are_bounded_in_all() -> None:
    """The parser gets at most 512 of them, wherever they stand; those beyond are any value."""
    many = {"anyOf": [{"anyOf": [{"$ref": "#/$defs/e"}] * 32}] * 32}
    made, notes = drafted_schema({**schema(a=many), "$defs": {"e": {"enum": ["x"]}}})
    assert 400 < json.dumps(made).count("$ref") <= 512
    assert made["properties"]["a"]["anyOf"][-1] == {}
    assert notes == ["not followed while drafting: alternatives beyond a limit"]


def test_forced_tokens_are_the_tokenizers_own(tokens: Tokens) -> None:
    """A draft without any choice, across the line between the two grammars, is divided as the tokenizer divides it."""
    only = tool("get_weather", schema(["city", "unit"], city={"const": "Paris"}, unit={"enum": ["c"]}))
    constraint = Constraint(Offer.of([only], "named", "get_weather", False), tokens.grammar_tokenizer)
    written: list[int] = []
    while forced := constraint.forced():
        for token in forced:
            constraint.write(token)
        written += forced
    assert constraint.ended
    assert written == tokens.encode(render_draft(calls_draft([("get_weather", {"city": "Paris", "unit": "c"})])))


values = st.recursive(
    st.sampled_from(
        [
            {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}, {},
            {"enum": ["a", 1, None, {"k": [1, "é"]}]}, {"type": "string", "maxLength": 2},
            {"type": ["integer", "null"]},
        ]
    ),
    lambda inner: st.builds(lambda items: {"type": "array", "items": items}, inner)
    | st.dictionaries(st.text(min_size=1, max_size=4), inner, max_size=3).map(lambda keys: schema(**keys)),
    max_leaves=5,
)  # fmt: skip


@given(st.dictionaries(st.text(min_size=1, max_size=6), values, min_size=1, max_size=4), st.randoms())
@settings(max_examples=60, deadline=None)
def test_any_walk_through_a_grammar_writes_only_declared_keys(
    tokens: Tokens, properties: dict[str, Any], random: Any
) -> None:
    """A random walk that ends is JSON on one line, with declared keys only, in the schema's order."""
    required = [key for key in properties if random.random() < 0.5]
    constraint = Constraint(
        Offer.of([tool("f", schema(required, **properties))], "named", "f", False), tokens.grammar_tokenizer
    )
    written: list[int] = []
    while not constraint.ended and len(written) < 150:
        choices = constraint.allowed().nonzero()[0]
        closing = [id_ for id_ in choices if tokens.piece(int(id_)) in (b'"', b"}", b"]", b'"}', b"1")]
        token = int(random.choice(closing or list(choices)))
        constraint.write(token)
        written.append(token)
    if constraint.ended:
        head, _, text = b"".join(map(tokens.piece, written)).decode().partition("Action Input: ")
        assert head == "Thought: f\nAction: f\n"
        keys = list(json.loads(text))
        assert keys == [key for key in properties if key in keys]
        assert set(required) <= set(keys)
        assert "\n" not in text
