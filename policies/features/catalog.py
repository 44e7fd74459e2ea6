"""Every signal that a judge may read, by name: unit, direction, when it stands, what it means, when it is missing.

The list is the contract between fitting and serving, so its order and meaning change only together with
`FEATURES_VERSION`: a classifier of another version is refused. `docs/signals.md` is this list for readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policies.types import Stage

FEATURES_VERSION = 1

Family = Literal[
    "tokens", "mass", "layers", "hidden", "validity", "arguments", "grounding", "request", "record", "draft"
]
Direction = Literal[-1, 0, 1]


@dataclass(frozen=True, slots=True)
class Feature:
    """One signal. `direction`: the sign with which P(right) may move as the value rises, 0 where either is possible."""

    name: str
    family: Family
    unit: str
    direction: Direction
    stage: Stage
    """When it stands: before decoding, when the plan stands, on the whole draft. A value that stands early is the same
    later."""
    meaning: str
    missing: str
    """When it is NaN; "never" where it always has a value."""


_NO_SIGNALS = "without token signals"
_NO_CALL = "in a draft without calls"
_NO_STATES = "without hidden states"


def _span(span: str, stage: Stage, what: str, missing: str) -> list[Feature]:
    """The distribution over the tokens of one span, in six numbers."""

    def feature(name: str, unit: str, direction: Direction, meaning: str) -> Feature:
        return Feature(f"{span}_{name}", "tokens", unit, direction, stage, f"{meaning} of {what}", missing)

    return [
        feature("logprob_min", "nats", 1, "least log-probability"),
        feature("logprob_q10", "nats", 1, "10 % quantile of the log-probabilities"),
        feature("logprob_q25", "nats", 1, "25 % quantile of the log-probabilities"),
        feature("logprob_q50", "nats", 1, "median of the log-probabilities"),
        feature("margin", "share", 1, "mean of p(best) − p(second)"),
        feature("entropy", "nats", -1, "greatest entropy"),
    ]


def _b(name: str, family: Family, unit: str, direction: Direction, meaning: str, missing: str = "never") -> Feature:
    return Feature(name, family, unit, direction, Stage.BEFORE, meaning, missing)


def _d(name: str, family: Family, unit: str, direction: Direction, meaning: str, missing: str = "never") -> Feature:
    return Feature(name, family, unit, direction, Stage.DURING, meaning, missing)


def _a(name: str, family: Family, unit: str, direction: Direction, meaning: str, missing: str = "never") -> Feature:
    return Feature(name, family, unit, direction, Stage.AFTER, meaning, missing)


_TOKENS = [
    *_span("plan", Stage.DURING, "the plan's tokens that the grammar left open", _NO_SIGNALS + " or open token"),
    *_span("name", Stage.AFTER, "all tokens of the called names, forced or not", _NO_SIGNALS + " or call"),
    *_span("key", Stage.AFTER, "the open tokens of keys", _NO_SIGNALS + " or open token"),
    *_span("value", Stage.AFTER, "the open tokens of values", _NO_SIGNALS + " or open token"),
    _d("decision_logprob", "tokens", "nats", 1, "log-probability of the plan's first open token", "as `plan_*`"),
    _d("decision_margin", "tokens", "share", 1, "margin of that token", "as `plan_*`"),
    _d("plan_margin_min", "tokens", "share", 1, "least margin in the plan: to the runner-up name", "as `plan_*`"),
    _a("weakest_logprob", "tokens", "nats", 1, "least over open plan, key and value tokens", "where there is none"),
    _a("weakest_margin", "tokens", "share", 1, "least margin over the same tokens", "where there is none"),
    _a("semantic_logprob_mean", "tokens", "nats", 1, "mean over the same tokens", "where there is none"),
    _a("semantic_logprob_sum", "tokens", "nats", 1, "sum over the same tokens", "where there is none"),
    _a("all_logprob_mean", "tokens", "nats", 1, "mean over all tokens", _NO_SIGNALS),
]
_MASS = [
    _d("mass_plan_sum", "mass", "nats", -1, "Σ −log Z over the plan, Z the mass that the grammar allowed", _NO_SIGNALS),
    _d("mass_plan_max", "mass", "nats", -1, "greatest −log Z in the plan", _NO_SIGNALS),
    _a("mass_name_sum", "mass", "nats", -1, "Σ −log Z over the called names", _NO_SIGNALS + " or call"),
    _a("mass_value_max", "mass", "nats", -1, "greatest −log Z in a value", _NO_SIGNALS + " or value"),
    _a("mass_sum", "mass", "nats", -1, "Σ −log Z over the draft", _NO_SIGNALS),
    _a("mass_max", "mass", "nats", -1, "greatest −log Z in the draft", _NO_SIGNALS),
]
_LAYERS = [
    _d(
        "layers_plan", "layers", "share", 1, "mean layer agreement of open plan tokens", "without layer agreement there"
    ),
    _d("layers_plan_min", "layers", "share", 1, "least layer agreement of the same tokens", "as `layers_plan`"),
    _a("layers_key", "layers", "share", 1, "mean layer agreement of open key tokens", "without layer agreement there"),
    _a("layers_value", "layers", "share", 1, "mean layer agreement of open value tokens", "without it there"),
    _a("layers_value_min", "layers", "share", 1, "least layer agreement of the same tokens", "as `layers_value`"),
]
_HIDDEN = [
    _a("probe", "hidden", "log-odds", 1, "linear probe on the hidden states", _NO_STATES + " or a fitted probe"),
    _a("state_distance", "hidden", "standard deviations", -1, "root mean square distance of the hidden states from "
       "those of the training rows", _NO_STATES + " or a fitted probe"),
]  # fmt: skip
_VALIDITY = [
    _a("findings_arity", "validity", "count", -1, "`wrong_arity`, `too_many_calls`"),
    _a("findings_tool", "validity", "count", -1, "`unknown_tool`"),
    _a("findings_json", "validity", "count", -1, "`bad_json`, `duplicate_key`, `not_an_object`"),
    _a("findings_schema", "validity", "count", -1, "`schema`"),
    _a("findings_incomplete", "validity", "count", -1, "`unparsable`, `truncated`"),
    _a("findings_unjudged", "validity", "count", -1, "`schema_unsupported`"),
]
_ARGUMENTS = [
    _a("required_coverage", "arguments", "share", 1, "required parameters that are given, least over calls",
       "where no called tool requires one"),
    _a("optional_given", "arguments", "count", 0, "optional parameters that are given", _NO_CALL),
    _a("optional_share", "arguments", "share", 0, "the same over all optional parameters of the called tools",
       "where there are none"),
    _a("default_share", "arguments", "share", 0, "given values that equal the schema's default",
       "where no given parameter has a default"),
    _a("values", "arguments", "count", 0, "scalar values in the arguments, at most 64", _NO_CALL),
    _a("value_chars", "arguments", "ln(1 + characters)", 0, "length of all arguments", _NO_CALL),
]  # fmt: skip
_GROUNDING = [
    _a("grounded_share", "grounding", "share", 1, "values that stand in the conversation: exactly, or as the same "
       "number, date or time", "where there is no value but booleans and null"),
    _a("grounding_min", "grounding", "score", 1, "the least grounded value's score, 0 to 1", "as `grounded_share`"),
    _a("grounding_mean", "grounding", "score", 1, "mean of the values' scores", "as `grounded_share`"),
    _a("grounded_last_share", "grounding", "share", 0, "values that stand in the last message of the user",
       "as `grounded_share`"),
    _a("enum_share", "grounding", "share", 0, "values of an `enum` or `const` that the conversation does not say",
       "as `grounded_share`"),
    _a("fuzzy_share", "grounding", "share", 0, "values of which only some words stand there", "as `grounded_share`"),
    _a("ungrounded", "grounding", "count", -1, "values of which nothing stands there", _NO_CALL),
    _a("placeholders", "grounding", "count", -1, "values such as `string`, `unknown`, `<city>`", _NO_CALL),
    _a("empty_values", "grounding", "count", 0, "empty texts and null", _NO_CALL),
    _a("numbers_used", "grounding", "share", 0, "numbers of the last message of the user that the arguments hold",
       "where it has none, or there is no call"),
    _a("names_used", "grounding", "share", 0, "quoted texts and capitalised words within its sentences that the "
       "arguments hold", "where it has none, or there is no call"),
]  # fmt: skip
_REQUEST = [
    _b("tools", "request", "count", 0, "offered tools"),
    _b("turn", "request", "count", 0, "messages of the user"),
    _b("messages", "request", "count", 0, "messages"),
    _b("request_chars", "request", "ln(1 + characters)", 0, "length of the last message of the user"),
    _b("last_is_tool", "request", "0 or 1", 0, "the last message is a tool's result"),
    _b("last_is_error", "request", "0 or 1", 0, "that result reads like an error", "where the last is no result"),
    _b("call_required", "request", "0 or 1", 0, "`tool_choice` demands a call"),
    _b("similarity_best", "request", "cosine", 0, "of the last message of the user to the likest tool's name and "
       "description, words weighted by rarity among the tools", "without tools"),
    _b("similarity_lead", "request", "cosine", 0, "of the likest tool over the second likest", "below two tools"),
    _d("name_similarity", "request", "cosine", 1, "the same of the planned tool, least over the plan",
       "where no offered tool is planned"),
    _d("name_lead", "request", "cosine", 1, "the planned tool over the likest other one, least over the plan",
       "as `name_similarity`, or where no other tool is offered"),
]  # fmt: skip
_RECORD = [
    _b("known_share", "record", "share", 0, "offered tools that the training rows offer too", "without known tools"),
    _d("tool_known", "record", "share", 1, "planned tools that they offer too",
       "where no offered tool is planned, or without known tools"),
    _d("tool_rate", "record", "share", 1, "smoothed pass rate of the planned tools' training rows, least over the plan",
       "where none of them has such rows"),
    _d("tool_rows", "record", "ln(1 + rows)", 0, "training rows of the planned tool that has the fewest",
       "as `tool_known`"),
]  # fmt: skip
_DRAFT = [
    _d("is_calls", "draft", "0 or 1", 0, "the draft calls"),
    _d("is_no_call", "draft", "0 or 1", 0, "the draft leaves it to prose"),
    _d("is_ask", "draft", "0 or 1", 0, "the draft asks back"),
    _d("planned_calls", "draft", "count", 0, "planned calls"),
    _d("planned_tools", "draft", "count", 0, "different tools among them"),
    _a("repeated_calls", "draft", "count", 0, "calls that the conversation has made already, word for word", _NO_CALL),
    _a("duplicate_calls", "draft", "count", 0, "calls that stand in the draft before, word for word", _NO_CALL),
    _a("complete", "draft", "0 or 1", 1, "the draft came to its own end"),
    _a("length", "draft", "ln(1 + tokens)", 0, "length of the draft", _NO_SIGNALS),
    _a("forced_share", "draft", "share", 0, "tokens that the grammar forced", _NO_SIGNALS),
]

FEATURE_LIST: tuple[Feature, ...] = (
    *_TOKENS, *_MASS, *_LAYERS, *_HIDDEN, *_VALIDITY, *_ARGUMENTS, *_GROUNDING, *_REQUEST, *_RECORD, *_DRAFT,
)  # fmt: skip
"""All signals, in the order of a vector."""
FEATURES: tuple[str, ...] = tuple(feature.name for feature in FEATURE_LIST)
"""Their names; F = len(FEATURES)."""
COLUMN: dict[str, int] = {name: column for column, name in enumerate(FEATURES)}
LEARNED: tuple[str, ...] = ("probe", "state_distance", "known_share", "tool_known", "tool_rate", "tool_rows")
"""Signals that come of training rows (`policies.features.vector.Context`); NaN without."""
_ORDER = (Stage.BEFORE, Stage.DURING, Stage.AFTER)


def standing_at(stage: Stage) -> tuple[str, ...]:
    """Names of the signals that stand at a stage, earlier ones included."""
    return tuple(f.name for f in FEATURE_LIST if _ORDER.index(f.stage) <= _ORDER.index(stage))
