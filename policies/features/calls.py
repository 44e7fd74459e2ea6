"""Signals of what a draft says: validity, arguments, grounding, its shape."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policies.features import grounding
from policies.features.grounding import Conversation, Ground, Grounding
from policies.types import Draft, DraftCall, Outcome, Request, Tool
from policies.validation import MAX_CALLS, check, decode

_FAMILY_OF_FINDING: Mapping[str, str] = {
    "wrong_arity": "findings_arity",
    "too_many_calls": "findings_arity",
    "unknown_tool": "findings_tool",
    "bad_json": "findings_json",
    "duplicate_key": "findings_json",
    "not_an_object": "findings_json",
    "schema": "findings_schema",
    "unparsable": "findings_incomplete",
    "truncated": "findings_incomplete",
    "schema_unsupported": "findings_unjudged",
}
MAX_EARLIER_CALLS = 256


@dataclass(frozen=True, slots=True)
class _Read:
    """A call whose arguments are read; None where they are no JSON object."""

    tool: Tool | None
    arguments: Mapping[str, Any] | None

    @property
    def schema(self) -> Mapping[str, Any]:
        return self.tool.parameters if self.tool is not None else {}

    @property
    def properties(self) -> Mapping[str, Any]:
        properties = self.schema.get("properties")
        return properties if isinstance(properties, Mapping) else {}

    @property
    def required(self) -> frozenset[str]:
        required = self.schema.get("required")
        return (
            frozenset(name for name in required if isinstance(name, str)) if isinstance(required, list) else frozenset()
        )


def call_features(request: Request, draft: Draft) -> dict[str, float]:
    """Signals of families `validity`, `arguments`, `grounding` and `draft`, as far as they are there."""
    made = _validity(request, draft) | _shape(draft)
    if draft.outcome is not Outcome.CALLS or not draft.calls:
        return made
    tools = {tool.name: tool for tool in request.tools}
    read = [_Read(tools.get(call.name), _arguments(call)) for call in draft.calls[:MAX_CALLS]]
    conversation = Conversation.of(request)
    return made | _repeats(request, draft) | _arguments_given(draft, read) | _grounding(read, conversation)


def planned_names(draft: Draft) -> tuple[str, ...]:
    """The tools that a draft plans, or calls where the engine gives no plan."""
    return draft.plan or tuple(call.name for call in draft.calls)


def _validity(request: Request, draft: Draft) -> dict[str, float]:
    made = dict.fromkeys(_FAMILY_OF_FINDING.values(), 0.0)
    for finding in check(request, draft):
        made[_FAMILY_OF_FINDING[finding.code]] += 1.0
    return made


def _shape(draft: Draft) -> dict[str, float]:
    planned = planned_names(draft)
    return {
        "is_calls": float(draft.outcome is Outcome.CALLS),
        "is_no_call": float(draft.outcome is Outcome.NO_CALL),
        "is_ask": float(draft.outcome is Outcome.ASK),
        "planned_calls": float(len(planned)),
        "planned_tools": float(len(set(planned))),
        "complete": float(draft.complete),
    }


def _arguments(call: DraftCall) -> Mapping[str, Any] | None:
    try:
        arguments = decode(call.arguments)
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _repeats(request: Request, draft: Draft) -> dict[str, float]:
    made_before = set(_earlier_calls(request.messages))
    own = [_call_key(call.name, call.arguments) for call in draft.calls[:MAX_CALLS]]
    return {
        "repeated_calls": float(sum(key in made_before for key in own)),
        "duplicate_calls": float(len(own) - len(set(own))),
    }


def _earlier_calls(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    seen = 0
    for message in reversed(messages):
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping) and seen < MAX_EARLIER_CALLS:
                seen += 1
                yield _call_key(str(function.get("name", "")), str(function.get("arguments", "")))


def _call_key(name: str, arguments: str) -> tuple[str, str]:
    """Equal for calls that say the same, whatever their white space and order of keys."""
    try:
        return name, json.dumps(decode(arguments), sort_keys=True)
    except ValueError:
        return name, arguments


def _arguments_given(draft: Draft, read: Sequence[_Read]) -> dict[str, float]:
    coverage, given_optional, all_optional, defaults, with_default = [], 0, 0, 0, 0
    for call in read:
        given = call.arguments or {}
        if call.required:
            coverage.append(len(call.required & given.keys()) / len(call.required))
        optional = call.properties.keys() - call.required
        given_optional += len(optional & given.keys())
        all_optional += len(optional)
        for name, value in given.items():
            about = call.properties.get(name)
            if isinstance(about, Mapping) and "default" in about:
                with_default += 1
                defaults += about["default"] == value
    made = {"optional_given": float(given_optional)}
    made["value_chars"] = math.log1p(sum(len(call.arguments) for call in draft.calls))
    if coverage:
        made["required_coverage"] = min(coverage)
    if all_optional:
        made["optional_share"] = given_optional / all_optional
    if with_default:
        made["default_share"] = defaults / with_default
    return made


def _grounding(read: Sequence[_Read], conversation: Conversation) -> dict[str, float]:
    found: list[Grounding] = []
    values: list[Any] = []
    for call in read:
        for value, schema in grounding.leaves(call.arguments or {}, call.schema):
            if len(values) == grounding.MAX_VALUES:
                break
            values.append(value)
            found.append(grounding.ground(value, schema, conversation))
    kinds = [one.kind for one in found]
    made = {
        "values": float(len(values)),
        "ungrounded": float(kinds.count(Ground.NONE)),
        "placeholders": float(kinds.count(Ground.PLACEHOLDER)),
        "empty_values": float(kinds.count(Ground.EMPTY)),
        "numbers_used": grounding.numbers_used(conversation.last.numbers, values),
        "names_used": grounding.used(grounding.names(conversation.last.raw), values),
    }
    judged = [one for one in found if one.judged]
    if judged:
        n = len(judged)
        made["grounded_share"] = sum(one.kind in (Ground.EXACT, Ground.NUMBER, Ground.DATE) for one in judged) / n
        made["grounding_min"] = min(one.score for one in judged)
        made["grounding_mean"] = sum(one.score for one in judged) / n
        made["grounded_last_share"] = sum(one.in_last for one in judged) / n
        made["enum_share"] = kinds.count(Ground.ENUM) / n
        made["fuzzy_share"] = kinds.count(Ground.FUZZY) / n
    return made
