"""The kind of mistake that a failed draft makes: finer than the scorer's word, by rules over request, gold and draft.

A kind names what stands in the draft, not why the model wrote it. Rules are tried in a fixed order and the first that
holds names the failure; of several wrong calls the one that comes nearest to the gold is judged, as the scorer does,
and of it the first argument at fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from evaluation.cases.answers import Answer, Call
from evaluation.cases.case import CallsGold, Case, GoldCall, ToolNamesGold
from evaluation.cases.scoring import Reason, mismatch
from evaluation.cases.value_match import has_type, is_acceptable, may_be_absent
from evaluation.studies.small_model.value_faults import ValueFault, is_said, repeats, same_apart_from_type, value_fault
from evaluation.traces.collect import INVALID_DRAFT
from evaluation.traces.table import TraceRow, answer_of, calls_of, request_of
from policies.features.grounding import Conversation, Text, normalised


class Kind(StrEnum):
    """Kinds of mistake, in words for a table."""

    NOT_DRAFTED = "the request was refused, nothing was drafted"
    REPETITION = "repeats itself"
    CUT = "cut at the limit of tokens"
    INVALID = "off the pattern, or does not fit the schema"

    ASKS = "asks back where a call is right"
    NO_CALL = "makes no call where one is right"
    CALLS_FOR_ASKING = "calls where the gold asks or confirms"
    CALLS_FOR_TALKING = "calls where the gold talks"
    CALLS_FOR_NOTHING = "calls where no tool fits"

    JOINED = "one call for what takes several"
    TOO_FEW_CALLS = "too few calls"
    TOO_MANY_CALLS = "too many calls"

    SIBLING_TOOL = "wrong tool, of the same service"
    OTHER_TOOL = "wrong tool, of another service"

    OTHER_PARAMETER = "right value under another parameter"
    LEFT_OUT = "argument left out"
    EXTRA_SAID = "argument too many, of something said"
    EXTRA_MADE_UP = "argument too many, of nothing said"

    TYPE_ONLY = "right value of the wrong type"
    WRONG_TYPE = "value of the wrong type"
    TOO_LONG = "value copied too long, or items too many"
    TOO_SHORT = "value copied too short, or items too few"
    OTHERWISE = "right value, written otherwise"
    OTHER_CHOICE = "another of the allowed values"
    MADE_UP = "value that nobody said"
    OTHER_SAID = "another value that was said"


_OF_VALUE: Mapping[ValueFault, Kind] = {
    ValueFault.REPEATS: Kind.REPETITION,
    ValueFault.TOO_LONG: Kind.TOO_LONG,
    ValueFault.TOO_SHORT: Kind.TOO_SHORT,
    ValueFault.OTHERWISE: Kind.OTHERWISE,
    ValueFault.OTHER_CHOICE: Kind.OTHER_CHOICE,
    ValueFault.MADE_UP: Kind.MADE_UP,
    ValueFault.OTHER_SAID: Kind.OTHER_SAID,
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_NO_SERVICE = frozenset(
    "a add all and api book buy by calculate cancel change check compute convert create delete detail details "
    "edit fetch find for from generate get in info information list lookup make of on or order play post put query "
    "recommend remove reserve retrieve search send set show start stop the to track update view with 1 2 3 4 5".split()
)
"""Words that tools of any service have in their names."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The kind of a failure, and the argument at fault where that can be said."""

    kind: Kind
    parameter: str | None = None


def failure_of(case: Case, row: TraceRow) -> Failure | None:
    """The kind of a row's failure; None for a row that passed."""
    if row.passed:
        return None
    if row.error == INVALID_DRAFT:
        return Failure(_invalid(row))
    if row.outcome is None:
        return Failure(Kind.NOT_DRAFTED)
    answer = answer_of(row)
    match row.fail_reason:
        case Reason.MISSING_CALL:
            return Failure(Kind.ASKS if row.small_outcome == "ask" else Kind.NO_CALL)
        case Reason.UNEXPECTED_CALL:
            return Failure(_unwanted(case))
        case Reason.WRONG_COUNT if isinstance(case.gold, CallsGold):
            return Failure(_count(case.gold.calls, answer.calls))
        case Reason.UNDECODABLE_CALL:
            return Failure(Kind.INVALID)
    if isinstance(case.gold, ToolNamesGold):
        return Failure(_tool(case, case.gold.names, [call.name for call in answer.calls]))
    if isinstance(case.gold, CallsGold):
        return _of_calls(case, case.gold, answer, row.fail_reason)
    return Failure(Kind.INVALID)


def _invalid(row: TraceRow) -> Kind:
    if repeats(row.small_text or "") or _same_calls(
        [(call.name, call.arguments) for call in calls_of(row.small_calls)]
    ):
        return Kind.REPETITION
    return Kind.CUT if row.small_complete is False else Kind.INVALID


def _unwanted(case: Case) -> Kind:
    """By the category's words: sources distinguish requests without a call there."""
    words = set(case.category.split("_"))
    if "ask" in words:
        return Kind.CALLS_FOR_ASKING
    return Kind.CALLS_FOR_TALKING if words & {"talk", "chat", "result"} else Kind.CALLS_FOR_NOTHING


def _count(gold: Sequence[GoldCall], calls: Sequence[Call]) -> Kind:
    if _same_calls([(call.name, str(call.arguments)) for call in calls]):
        return Kind.REPETITION
    if len(calls) > len(gold):
        return Kind.TOO_MANY_CALLS
    return Kind.JOINED if any(_holds_several(call, gold) for call in calls) else Kind.TOO_FEW_CALLS


def _same_calls(calls: Sequence[tuple[str, str]]) -> bool:
    return len(set(calls)) < len(calls)


def _holds_several(call: Call, gold: Sequence[GoldCall]) -> bool:
    """Return True if one argument holds what two calls of the gold have there, each something else."""
    own = [one for one in gold if one.name == call.name]
    for name, value in (call.arguments or {}).items():
        text = Text(str(value))
        held = set()
        for one in own:
            said = (normalised(str(option)) for option in one.arguments.get(name, ()) if option != "")
            held.add(next((option for option in said if option and text.says(option)), None))
        if len(held - {None}) > 1:
            return True
    return False


def _tool(case: Case, wanted: Sequence[str], called: Sequence[str]) -> Kind:
    known = {name for name in wanted if name in case.tool_names}
    wrong = [name for name in called if name not in known]
    sibling = any(_service(one) & _service(other) for one in wrong for other in wanted)
    return Kind.SIBLING_TOOL if sibling else Kind.OTHER_TOOL


def _service(name: str) -> frozenset[str]:
    """The words of a tool's name that do not stand in those of any service."""
    return frozenset(word.lower().rstrip("s") for word in _WORD.findall(name) if word.lower() not in _NO_SERVICE)


def _of_calls(case: Case, gold: CallsGold, answer: Answer, reason: str | None) -> Failure:
    left = list(_left_over(case, gold, answer))
    pair = next(((wanted, call) for wanted, call, miss in left if miss == reason), None)
    if pair is None:
        return Failure(Kind.INVALID)
    wanted, call = pair
    if reason == Reason.WRONG_NAME:
        return Failure(_tool(case, [one.name for one, _, _ in left], [one.name for _, one, _ in left]))
    return _of_arguments(case, wanted, call)


def _left_over(case: Case, gold: CallsGold, answer: Answer) -> Iterator[tuple[GoldCall, Call, Reason]]:
    """Pairs that do not match, of calls that match nothing."""
    calls = list(answer.calls)
    wanting = []
    for wanted in gold.calls:
        found = next((call for call in calls if mismatch(case, wanted, call) is None), None)
        if found is None:
            wanting.append(wanted)
        else:
            calls.remove(found)
    for wanted in wanting:
        for call in calls:
            miss = mismatch(case, wanted, call)
            if miss is not None:
                yield wanted, call, miss


def _of_arguments(case: Case, gold: GoldCall, call: Call) -> Failure:
    schema = case.parameters_of(gold.name)
    properties = schema.get("properties") or {}
    arguments = call.arguments or {}
    conversation = Conversation.of(request_of(case))
    inside = case.source == "bfcl"
    wanting = [name for name, options in gold.arguments.items() if name not in arguments and not may_be_absent(options)]
    for name, value in arguments.items():
        options = gold.arguments.get(name)
        about = properties.get(name) or {}
        fits = options is not None and is_acceptable(value, options, choices_inside=inside)
        if fits and has_type(value, about, options or ()):
            continue
        others = {other: wanted for other, wanted in gold.arguments.items() if other != name}
        if any(
            is_acceptable(value, wanted, choices_inside=inside)
            and not is_acceptable(arguments.get(other), wanted, choices_inside=inside)
            for other, wanted in others.items()
        ):
            return Failure(Kind.OTHER_PARAMETER, name)
        if options is None:
            return Failure(Kind.EXTRA_SAID if is_said(value, about, conversation) else Kind.EXTRA_MADE_UP, name)
        if not has_type(value, about, options):
            return Failure(Kind.TYPE_ONLY if same_apart_from_type(value, options) else Kind.WRONG_TYPE, name)
        return Failure(_OF_VALUE[value_fault(value, options, about, conversation)], name)
    required = [name for name in schema.get("required") or () if name not in arguments]
    return Failure(Kind.LEFT_OUT, next(iter([*wanting, *required]), None))
