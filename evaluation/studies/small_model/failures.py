"""Failures of the small model to read: how many of each kind in each set, and a sample with request, gold and draft.

Equal traces give equal bytes. The kinds are those of `evaluation.studies.small_model.failure_kinds`: rules that a
reader may disagree with, which is why the sample stands beside the counts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import msgspec

from evaluation.cases.case import AnyCallGold, CallsGold, Case, GoldCall, ToolNamesGold
from evaluation.cases.sets import group_of
from evaluation.studies.small_model.failure_kinds import Failure, Kind, failure_of
from evaluation.traces.table import TraceRow, calls_of
from policies.features.grounding import message_text

_REQUEST_CHARS, _ANSWER_CHARS = 400, 500


@dataclass(frozen=True, slots=True)
class FailedCase:
    """One failed case."""

    case: Case
    row: TraceRow
    group: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class SetFailures:
    """All failures of one set."""

    name: str
    answered: int
    """Cases that have a row, failed or not."""
    failed: Sequence[FailedCase]


def set_failures(name: str, cases: Sequence[Case], rows: Sequence[TraceRow]) -> SetFailures:
    """Sort a set's rows by kind. Rows of other cases are left out."""
    by_id = {case.id: case for case in cases}
    known = [(by_id[row.case_id], row) for row in rows if row.case_id in by_id]
    failed = []
    for case, row in known:
        failure = failure_of(case, row)
        if failure is not None:
            failed.append(FailedCase(case, row, group_of(name, case), failure))
    return SetFailures(name, len(known), failed)


def drawn(failed: Sequence[FailedCase], count: int) -> list[FailedCase]:
    """At most so many, drawn by a hash of the case's id, one of each group in turn until there are enough."""
    groups: dict[str, list[FailedCase]] = defaultdict(list)
    for one in sorted(failed, key=lambda each: hashlib.sha256(f"failure\0{each.case.id}".encode()).digest()):
        groups[one.group].append(one)
    in_turn = zip_longest(*(groups[name] for name in sorted(groups)))
    chosen = [one for turn in in_turn for one in turn if one is not None][:count]
    return sorted(chosen, key=lambda one: (one.group, one.case.id))


def render_failures(sets: Sequence[SetFailures], count: int, facts: Mapping[str, str]) -> str:
    """The page: kinds by set, then `count` failures of each set; 0 shows the kinds only."""
    parts = [
        "# Failures of the small model, by kind",
        "\n".join(f"{name}: `{value}`  " for name, value in facts.items()),
    ]
    parts.append(
        "A kind says what stands in the draft, by rules (`evaluation/studies/small_model/failure_kinds.py`), not "
        "why the model wrote it. "
        "Counts are of all failures in the tables of answers; the samples are drawn by hash, spread over groups."
    )
    parts.append(_kinds(sets))
    for each in sets if count else ():
        sample = drawn(each.failed, count)
        parts.append(f"## {each.name}: {len(sample)} of {len(each.failed)} failures")
        parts += [_told(number, one) for number, one in enumerate(sample, 1)]
    return "\n\n".join(parts) + "\n"


def _kinds(sets: Sequence[SetFailures]) -> str:
    counts = {each.name: Counter(one.failure.kind for one in each.failed) for each in sets}
    total = sum(counts.values(), Counter[Kind]())
    lines = ["| kind | " + " | ".join(counts) + " |", "| --- |" + " --- |" * len(counts)]
    for kind in sorted(total, key=lambda one: (-total[one], one.value)):
        lines.append(f"| {kind} | " + " | ".join(str(counts[each.name][kind] or "–") for each in sets) + " |")
    whole = " | ".join(f"{len(each.failed)} of {each.answered}" for each in sets)
    return "\n".join([*lines, f"| **failed** | {whole} |"])


def _told(number: int, one: FailedCase) -> str:
    row, failure, last = one.row, one.failure, one.case.messages[-1]
    where = f" (`{failure.parameter}`)" if failure.parameter else ""
    word = row.error or row.fail_reason or "failed"
    return "\n".join(
        [
            f"**{number}.** `{one.case.id}`, {one.group}: **{failure.kind}**{where}, by the scorer `{word}`",
            "",
            f"- {'asked' if last['role'] == 'user' else 'tool said'}: {_code(message_text(last), _REQUEST_CHARS)}",
            f"- gold: {_code(_gold(one.case), _ANSWER_CHARS)}",
            f"- draft: {_code(_draft(row), _ANSWER_CHARS)}",
        ]
    )


def _gold(case: Case) -> str:
    match case.gold:
        case CallsGold(calls=calls):
            return "; ".join(map(_gold_call, calls))
        case ToolNamesGold(names=names):
            return "one of " + ", ".join(names)
        case AnyCallGold():
            return "some call"
        case _:
            reply = case.meta.get("reply")
            return f"no call: {reply}" if isinstance(reply, str) else "no call"


def _gold_call(call: GoldCall) -> str:
    return f"{call.name}({', '.join(_choices(call.arguments))})"


def _choices(arguments: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    for name, options in arguments.items():
        said = " or ".join(json.dumps(option, ensure_ascii=False) for option in options if option != "")
        yield f"{name}={said or 'nothing'}" + (" or left out" if said and "" in options else "")


def _draft(row: TraceRow) -> str:
    if row.error is not None and row.small_text is None:
        return f"none: {row.error_detail or row.error}"
    calls = calls_of(row.calls or row.small_calls)
    if row.error is None and calls:
        return "; ".join(f"{call.name}({_arguments(call.arguments)})" for call in calls)
    return row.small_text or row.text or "no call"


def _arguments(text: str) -> str:
    try:
        arguments = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.MsgspecError:
        return text
    return ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())


def _code(text: str, limit: int) -> str:
    """Text as inline code on one line, cut in its middle: nothing in it is read as Markdown."""
    plain = " ".join(text.split()) or " "
    if len(plain) > limit:
        plain = f"{plain[: limit // 2]} … {plain[-limit // 2 :]}"
    fence = "`" * (1 + max((len(run) for run in _runs(plain)), default=0))
    space = " " if "`" in plain else ""
    return f"{fence}{space}{plain}{space}{fence}"


def _runs(text: str) -> list[str]:
    return [run for run in "".join(char if char == "`" else " " for char in text).split() if run]
