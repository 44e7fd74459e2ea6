"""Validity, scores and policies, through their public doors."""

import http.server
import json
import threading
import time
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.rules.baselines import KINDS, LargeOnly, RandomMix, SchemaValidOnly, SmallOnly, make_policy
from policies.rules.scores import SCORES
from policies.rules.single import ValidAndSure
from policies.types import Action, Draft, DraftCall, Outcome, Request, Span, TokenSignals, Tool
from policies.validation import check, unsupported_tools

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def request(*schemas: Any, **changes: Any) -> Request:
    tools = tuple(Tool(f"t{index}", "", schema) for index, schema in enumerate(schemas or (CITY,)))
    return Request(messages=({"role": "user", "content": "hi"},), tools=tools, **changes)


def draft(*calls: tuple[str, str], **changes: Any) -> Draft:
    return Draft(Outcome.CALLS, tuple(DraftCall(*call) for call in calls), **changes)


def codes(request_: Request, draft_: Draft) -> list[str]:
    return [finding.code for finding in check(request_, draft_)]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ('{"city": "Paris"}', None),
        ("{", "bad_json"),
        ('{"city": NaN}', "bad_json"),
        ('{"city": 1e999999999999}', "schema"),
        ('{"city": "a", "city": "b"}', "duplicate_key"),
        ('{"city": {"x": 1, "x": 2}}', "duplicate_key"),
        ('["Paris"]', "not_an_object"),
        ('{"city": 3}', "schema"),
        ("{}", "schema"),
        ('{"city": ' + "[" * 10_000 + "]" * 10_000 + "}", "bad_json"),
        ('{"city": "' + "x" * 300_000 + '"}', "bad_json"),
        ('{"city": ' + "9" * 5_000 + "}", "bad_json"),
    ],
)
def test_arguments_are_judged_strictly(arguments: str, code: str | None) -> None:
    """Strict JSON, then the schema; each defect has its code."""
    assert codes(request(), draft(("t0", arguments))) == ([code] if code else [])


def test_findings_say_where() -> None:
    """A finding's path leads to the value inside the call."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"enum": ["x"]}}}}
    (finding,) = check(request(schema), draft(("t0", '{"a": ["x", "secret"]}')))
    assert finding.path == "/calls/0/arguments/a/1"
    assert "secret" not in str(finding)
    assert "enum" in finding.message.lower()


@pytest.mark.parametrize(
    ("changes", "made", "code"),
    [
        ({}, draft(("other", "{}")), "unknown_tool"),
        ({"parallel_tool_calls": False}, draft(("t0", '{"city":"a"}'), ("t0", '{"city":"b"}')), "wrong_arity"),
        ({"tool_choice": "required"}, Draft(Outcome.NO_CALL), "wrong_arity"),
        ({"tool_choice": "named", "forced_tool": "t1"}, draft(("t0", '{"city":"a"}')), "wrong_arity"),
        ({}, draft(("t0", '{"city":"a"}'), complete=False), "truncated"),
        ({}, Draft(Outcome.UNPARSABLE), "unparsable"),
        ({}, draft(), "wrong_arity"),
    ],
)
def test_calls_must_fit_the_request(changes: dict[str, Any], made: Draft, code: str) -> None:
    """Names, number of calls and completeness are judged against the request."""
    assert codes(request(CITY, CITY, **changes), made) == [code]


def test_references_inside_the_document_work() -> None:
    """`$ref` to `$defs` is followed."""
    schema = {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    assert codes(request(schema), draft(("t0", '{"a": 1}'))) == []
    assert codes(request(schema), draft(("t0", '{"a": "1"}'))) == ["schema"]


def test_a_remote_reference_is_never_fetched() -> None:
    """A schema that points at a live server is unsupported, and the server sees no request."""
    hits: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        for schema in (
            {"properties": {"a": {"$ref": base + "/s.json"}}},
            {"$id": base + "/", "properties": {"a": {"$ref": "s.json"}}},
            {"$schema": base + "/meta.json", "type": "object"},
        ):
            assert codes(request(schema), draft(("t0", '{"a": 1}'))) == ["schema_unsupported"]
        server.shutdown()
        thread.join()
    assert hits == []


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {f"p{i}": {"type": "string", "description": "x" * 90} for i in range(20_000)}},
        deep(10_000),
        {"properties": {"a": {"pattern": "a" * 5_000}}},
        {"properties": {"a": {"enum": list(range(100_000))}}},
    ],
    ids=["2MB", "deep", "long-pattern", "large-enum"],
)
def test_oversized_schemas_are_refused_quickly(schema: dict[str, Any]) -> None:
    """A bound is met in well under a second, before and after the draft."""
    began = time.monotonic()
    assert [finding.code for finding in unsupported_tools(request(schema).tools)] == ["schema_unsupported"]
    assert codes(request(schema), draft(("t0", "{}"))) == ["schema_unsupported"]
    assert time.monotonic() - began < 2.0


def test_a_catastrophic_pattern_takes_linear_time() -> None:
    """`(a+)+$` on a long near-match ends at once."""
    schema = {"properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    began = time.monotonic()
    assert codes(request(schema), draft(("t0", json.dumps({"a": "a" * 50_000 + "!"})))) == ["schema"]
    assert time.monotonic() - began < 2.0


def test_a_thousand_tools_are_judged() -> None:
    """Many tools cost bounded time and are no finding."""
    began = time.monotonic()
    many = request(*[CITY] * 1000)
    assert unsupported_tools(many.tools) == ()
    assert codes(many, draft(("t999", '{"city": "a"}'))) == []
    assert time.monotonic() - began < 2.0


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(-5, 5).map(lambda x: round(x, 1))
    | st.text("ab", max_size=3)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
leaves = st.one_of(
    st.fixed_dictionaries(
        {}, optional={"type": st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object"])}
    ),
    st.fixed_dictionaries({"enum": st.lists(scalars, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"const": scalars}),
    st.fixed_dictionaries({"minimum": st.integers(-3, 3), "maximum": st.integers(-3, 3)}),
    st.fixed_dictionaries({"minLength": st.integers(0, 3), "maxLength": st.integers(0, 3)}),
    st.fixed_dictionaries({"pattern": st.sampled_from(["^a", "b$", "a|b"])}),
    st.just({"$ref": "#/$defs/d"}),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner},
            optional={"minItems": st.integers(0, 2), "uniqueItems": st.booleans()},
        ),
        st.fixed_dictionaries(
            {"properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3)},
            optional={
                "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
                "additionalProperties": st.booleans() | inner,
            },
        ),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"oneOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"not": inner}),
    ),
    max_leaves=5,
)


@settings(max_examples=400)
@given(schemas, leaves.filter(lambda s: "$ref" not in s), st.dictionaries(st.sampled_from("abc"), values, max_size=3))
def test_validity_agrees_with_the_reference_validator(
    schema: dict[str, Any], defined: dict[str, Any], arguments: dict[str, Any]
) -> None:
    """A random instance is valid here exactly if the reference implementation of JSON Schema says so."""
    whole = {**schema, "$defs": {"d": defined}}
    expected = jsonschema.Draft202012Validator(whole).is_valid(arguments)
    assert (codes(request(whole), draft(("t0", json.dumps(arguments)))) == []) is expected


def signals(logprobs: list[float], spans: list[Span], forced: list[bool] | None = None) -> TokenSignals:
    size = len(logprobs)
    return TokenSignals(
        logprob=np.asarray(logprobs, np.float32),
        margin=np.asarray([0.5] * size, np.float32),
        entropy=np.zeros(size, np.float32),
        feasible_mass=np.ones(size, np.float32),
        forced=np.asarray(forced or [False] * size, np.bool_),
        span=np.asarray(spans, np.uint8),
    )


def test_only_tokens_that_decide_something_are_scored() -> None:
    """Syntax and forced tokens do not lower the weakest token; the mean over all does count them."""
    made = signals(
        [-9.0, np.log(0.5), np.log(0.25), -5.0],
        [Span.SYNTAX, Span.PLAN, Span.VALUE, Span.VALUE],
        [False, False, False, True],
    )
    assert SCORES["weakest_token"](made) == pytest.approx(0.25)
    assert SCORES["mean_semantic"](made) == pytest.approx(np.sqrt(0.125))
    assert SCORES["mean_logprob"](made) == pytest.approx(np.exp(np.mean([-9, np.log(0.5), np.log(0.25), -5])))
    assert SCORES["least_margin"](made) == pytest.approx(0.5)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_a_draft_without_a_counting_token_is_sure(score: str) -> None:
    """No tokens at all score 1."""
    assert SCORES[score](signals([], [])) == 1.0


GOOD = draft(("t0", '{"city": "Paris"}'), signals=signals([np.log(0.6)], [Span.VALUE]))


def test_the_threshold_decides_about_valid_drafts_only() -> None:
    """Sure and valid is answered; unsure, invalid, without signals, no call and ask escalate with their reasons."""
    policy = ValidAndSure(0.5)
    assert policy.after(request(), GOOD).action is Action.ANSWER
    reasons = {
        "low_confidence": ValidAndSure(0.7).after(request(), GOOD),
        "invalid_call": policy.after(request(), draft(("t0", "{}"), signals=GOOD.signals)),
        "no_signals": policy.after(request(), draft(("t0", '{"city": "a"}'))),
        "no_call": policy.after(request(), Draft(Outcome.NO_CALL, signals=GOOD.signals)),
        "ask": policy.after(request(), Draft(Outcome.ASK, signals=GOOD.signals)),
    }
    assert {reason: verdict.reason for reason, verdict in reasons.items()} == {reason: reason for reason in reasons}
    assert all(verdict.action is Action.ESCALATE for verdict in reasons.values())
    answering = ValidAndSure(0.5, on_no_call="answer")
    assert answering.after(request(), Draft(Outcome.NO_CALL, signals=GOOD.signals)).action is Action.ANSWER


def test_an_unsure_plan_is_given_up_before_its_arguments() -> None:
    """What is below the threshold when the plan stands can only stay below."""
    plan = Draft(Outcome.CALLS, complete=False, signals=signals([np.log(0.3)], [Span.PLAN]), plan=("t0",))
    verdict = ValidAndSure(0.5).during(request(), plan)
    assert (verdict.action, verdict.reason) == (Action.ESCALATE, "low_confidence")
    assert ValidAndSure(0.2).during(request(), plan).action is Action.CONTINUE


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(sorted(SCORES)),
)
def test_a_higher_threshold_never_escalates_less(scores: list[float], one: float, other: float, score: str) -> None:
    """Whatever is answered under the higher threshold is answered under the lower."""
    low, high = sorted((one, other))
    made = [draft(("t0", '{"city": "a"}'), signals=signals([np.log(max(s, 1e-9))], [Span.VALUE])) for s in scores]
    answered = [
        {i for i, d in enumerate(made) if ValidAndSure(t, score).after(request(), d).action is Action.ANSWER}
        for t in (low, high)
    ]
    assert answered[1] <= answered[0]


def test_requests_that_cannot_be_drafted_go_large_before_decoding() -> None:
    """No tools, tool_choice none, and schemas that cannot be judged never reach the small model."""
    for policy in (ValidAndSure(0.5), SmallOnly(), SchemaValidOnly(), RandomMix(0.0)):
        assert policy.before(Request(messages=(), tools=())).reason == "no_tools"
        assert policy.before(request(tool_choice="none")).reason == "tool_choice_none"
        assert policy.before(request({"$ref": "http://127.0.0.1/x"})).reason == "schema_unsupported"
        assert policy.before(request()).action is Action.CONTINUE


def test_baselines_do_what_their_names_say() -> None:
    """Large never answers small; small serves what can be served; schema-valid serves valid calls only."""
    no_call = Draft(Outcome.NO_CALL)
    assert LargeOnly().before(request()).action is Action.ESCALATE
    assert SmallOnly().after(request(), no_call).action is Action.ANSWER
    assert SmallOnly().after(request(), draft(("t0", "{}"))).action is Action.ESCALATE
    assert SchemaValidOnly().after(request(), draft(("t0", '{"city": "a"}'))).action is Action.ANSWER
    assert SchemaValidOnly().after(request(), no_call).action is Action.ESCALATE


def test_a_random_mix_escalates_its_share() -> None:
    """About the share of many requests escalates, and the same request always gets the same answer."""
    policy = RandomMix(0.3)
    asked = [Request(({"role": "user", "content": str(i)},), request().tools) for i in range(2000)]
    first = [policy.before(r).action for r in asked]
    assert first == [policy.before(r).action for r in asked]
    assert 0.25 < first.count(Action.ESCALATE) / 2000 < 0.35


def test_policies_are_made_by_name_and_errors_name_the_field() -> None:
    """Every kind can be configured; unknown kinds, keys and values say where they stand."""
    for kind in KINDS:
        extra = {"threshold": {"threshold": 0.5}, "random_mix": {"share": 0.5}}.get(kind, {})
        assert make_policy({"kind": kind, **extra}).name
    for config, message in [
        ({"kind": "magic"}, "policy.kind"),
        ({"kind": "threshold", "thresold": 1}, "policy.thresold"),
        ({"kind": "threshold", "threshold": 2}, "policy.threshold"),
        ({"kind": "threshold", "threshold": 0.5, "score": "x"}, "policy.score"),
        ({"kind": "random_mix"}, "share"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_policy(config)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_a_signal_that_is_missing_is_no_confidence(score: str) -> None:
    """Where an engine tells no log-probabilities or margins (NaN), a valid draft escalates, at a threshold of 0 too."""
    missing = np.full(3, np.nan, np.float32)
    signals = TokenSignals(
        logprob=missing,
        margin=missing,
        entropy=missing,
        feasible_mass=missing,
        forced=np.zeros(3, np.bool_),
        span=np.full(3, Span.VALUE, np.uint8),
    )
    policy = make_policy({"kind": "threshold", "score": score, "threshold": 0.0})
    verdict = policy.after(request(), draft(("t0", '{"city": "Paris"}'), signals=signals))
    assert verdict.action is Action.ESCALATE
    assert verdict.reason == "low_confidence"
