"""Score(passed, reason) of an answer to a case: AST match by BFCL's rules.

A call matches if its name is right, every required parameter is there, none is there that the tool or the gold does not
have, and each value has the right type and is acceptable (`evaluation.cases.value_match`). Calls are compared as a set,
unless the gold orders them; their number must be right. Where no call is right, BFCL looks for a call that can be
decoded: a call whose arguments are no JSON object counts as none, and so it does here.

Not guaranteed: that a matching call works, or that a failing one does not (the gold lists what its author thought of).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import StrEnum

from evaluation.cases.answers import Answer, Call
from evaluation.cases.case import (
    AnyCallGold,
    CallsGold,
    Case,
    GoldCall,
    NoCallGold,
    ToldGold,
    ToolNamesGold,
    UnknownGold,
)
from evaluation.cases.value_match import has_type, is_acceptable, may_be_absent


class Reason(StrEnum):
    """Why an answer passed or failed. The words are stable: tables are grouped by them."""

    MATCHED = "matched"
    NO_CALL = "no_call"
    """Passed: no call was right and none was made."""
    UNDECODABLE_AS_NO_CALL = "undecodable_as_no_call"
    """Passed, by BFCL's rule: no call was right and the one made cannot be decoded."""

    MISSING_CALL = "missing_call"
    UNEXPECTED_CALL = "unexpected_call"
    UNDECODABLE_CALL = "undecodable_call"
    WRONG_COUNT = "wrong_count"
    WRONG_NAME = "wrong_name"
    MISSING_PARAMETER = "missing_parameter"
    UNEXPECTED_PARAMETER = "unexpected_parameter"
    WRONG_TYPE = "wrong_type"
    WRONG_VALUE = "wrong_value"


_NEARNESS = (
    Reason.WRONG_NAME,
    Reason.MISSING_PARAMETER,
    Reason.UNEXPECTED_PARAMETER,
    Reason.WRONG_TYPE,
    Reason.WRONG_VALUE,
)
"""Mismatches from the furthest to the nearest: a set of calls is blamed with the nearest miss that is left over."""


@dataclass(frozen=True, slots=True)
class CaseScore:
    """The verdict on an answer: right or wrong, and the one word that says why."""

    passed: bool
    reason: Reason


_MATCHED = CaseScore(True, Reason.MATCHED)


def score(case: Case, answer: Answer) -> CaseScore:
    """Score one answer. Raises ValueError for a case whose gold says nothing of answers (unknown, told)."""
    undecodable = any(call.arguments is None for call in answer.calls)
    match case.gold:
        case UnknownGold() | ToldGold():
            raise ValueError(f"case {case.id!r} has no gold to score against")
        case NoCallGold():
            if not answer.calls:
                return CaseScore(True, Reason.NO_CALL)
            if undecodable:
                return CaseScore(True, Reason.UNDECODABLE_AS_NO_CALL)
            return CaseScore(False, Reason.UNEXPECTED_CALL)
        case _ if not answer.calls:
            return CaseScore(False, Reason.MISSING_CALL)
        case _ if undecodable:
            return CaseScore(False, Reason.UNDECODABLE_CALL)
        case AnyCallGold():
            return _MATCHED
        case ToolNamesGold(names=names):
            relevant = {_plain_name(name) for name in names}
            known = all(_plain_name(call.name) in relevant for call in answer.calls)
            return _MATCHED if known else CaseScore(False, Reason.WRONG_NAME)
        case CallsGold() as gold:
            return _score_calls(case, gold, answer.calls)


def mismatch(case: Case, gold: GoldCall, call: Call) -> Reason | None:
    """Why `call` is not the gold call, or None if it is. `call.arguments` must have been decoded."""
    if _plain_name(call.name) != _plain_name(gold.name):
        return Reason.WRONG_NAME
    if call.arguments is None:
        return Reason.UNDECODABLE_CALL
    schema = case.parameters_of(gold.name)
    properties = schema.get("properties") or {}
    if any(name not in call.arguments for name in schema.get("required") or ()):
        return Reason.MISSING_PARAMETER
    for name, value in call.arguments.items():
        if name not in properties or name not in gold.arguments:
            return Reason.UNEXPECTED_PARAMETER
        acceptable = gold.arguments[name]
        if not has_type(value, properties[name], acceptable):
            return Reason.WRONG_TYPE
        if not is_acceptable(value, acceptable, choices_inside=case.source == "bfcl"):
            return Reason.WRONG_VALUE
    for name, acceptable in gold.arguments.items():
        if name not in call.arguments and not may_be_absent(acceptable):
            return Reason.MISSING_PARAMETER
    return None


def _score_calls(case: Case, gold: CallsGold, calls: Sequence[Call]) -> CaseScore:
    if len(calls) != len(gold.calls):
        return CaseScore(False, Reason.WRONG_COUNT)
    if gold.ordered:
        in_order = [mismatch(case, wanted, call) for wanted, call in zip(gold.calls, calls, strict=True)]
        missed = next((reason for reason in in_order if reason is not None), None)
        return CaseScore(False, missed) if missed else _MATCHED
    misses = [[mismatch(case, wanted, call) for call in calls] for wanted in gold.calls]
    gold_of = _matching([[miss is None for miss in row] for row in misses])
    left = [miss for index, row in enumerate(misses) if index not in gold_of.values() for miss in _others(row, gold_of)]
    return CaseScore(False, max(left, key=_NEARNESS.index)) if left else _MATCHED


def _matching(fits: Sequence[Sequence[bool]]) -> dict[int, int]:
    """Column → row of a maximum matching, by augmenting paths (Kuhn 1955).

    BFCL matches greedily; that differs only where a call fits several gold calls, and then towards failing it.
    """
    row_of: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fitting in enumerate(fits[row]):
            if fitting and column not in tried:
                tried.add(column)
                if column not in row_of or place(row_of[column], tried):
                    row_of[column] = row
                    return True
        return False

    for row in range(len(fits)):
        place(row, set())
    return row_of


def _others(row: Sequence[Reason | None], taken: Container[int]) -> list[Reason]:
    """A gold call's misses by the calls that no gold call has taken."""
    return [miss for column, miss in enumerate(row) if miss is not None and column not in taken]


def _plain_name(name: str) -> str:
    """Providers allow no dot in a tool's name, so the sources' dots became underscores."""
    return name.replace(".", "_")
