"""Our scorer held against BFCL's own verdicts on twelve recorded models, row by row.

BFCL published its verdicts in August 2024 and corrected some gold later. So each row is scored twice: with today's
gold, which the study uses, and with the gold of the day, which the published verdicts rest on. A row where today's
verdict differs from the published one gets a cause, and each cause is a condition that is checked, not an opinion.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from evaluation.cases.answers import Answer, Call
from evaluation.cases.case import CallsGold, Case, GoldCall, canonical_json, data_hash
from evaluation.cases.scoring import CaseScore, Reason, score
from evaluation.cases.study_data import RecordedAnswer, StudyData


class Cause(StrEnum):
    """Why our verdict on a row differs from the published one."""

    GOLD_CORRECTED = "gold_corrected"
    """With the gold of the day our verdict is the published one."""
    UNCLOSED_LIST = "unclosed_list"
    """The model wrote Python text without its last bracket: BFCL's decoder adds it, the recording holds no call."""
    POSITIONAL_ARGUMENT = "positional_argument"
    """The model wrote Python text with a positional argument: BFCL's decoder drops it, the recording holds no call."""
    CALL_WITHOUT_ARGUMENTS = "call_without_arguments"
    """Cases where no call was right and the model wrote one without arguments; BFCL's decoder of the day took it for
    none."""
    UNDERSCORE_FOR_DOT = "underscore_for_dot"
    """The model wrote a tool's name with `_` where the source had a dot, which our names never have."""
    EMPTY_LIST = "empty_list"
    """An empty list was given where the gold wants nothing: BFCL lets an empty list of objects equal `""`."""
    UNEXPLAINED = "unexplained"


class CheckedCell(msgspec.Struct, frozen=True, kw_only=True):
    """One model in one category: how many of `cases` recorded answers pass, by whose verdict."""

    model: str
    category: str
    cases: int
    ours: int
    ours_gold_of_publication: int
    published: int
    """Answers that pass by BFCL, of the same cases."""
    simple_check: int
    """Answers that pass by the data set's own simple check with today's gold: names and values, no types
    (`pass_current_gold`)."""
    published_all_passed: int
    published_all_cases: int
    """All cases of the category in BFCL, of which `published_all_passed` pass by BFCL."""


class CaseDifference(msgspec.Struct, frozen=True, kw_only=True):
    """One answer on which our verdict with today's gold is not the published one."""

    model: str
    id: str
    category: str
    passed: bool
    reason: Reason
    published: bool
    cause: Cause


class ScorerCheck(msgspec.Struct, frozen=True, kw_only=True):
    """The whole comparison, and the hashes of what it was made on."""

    cases_sha256: str
    recordings_sha256: str
    answers: int
    agree: int
    agree_gold_of_publication: int
    cells: list[CheckedCell]
    differences: list[CaseDifference]
    simple_check_differences: dict[str, int]
    """`our verdict: our reason` → answers on which the data set's simple check says otherwise."""


def run(data: StudyData) -> ScorerCheck:
    """Score every recorded answer. Raises RowError for broken data, ValueError for an answer without a verdict."""
    cases = {case.id: case for case in data.bfcl()}
    of_day = {
        case_id: msgspec.structs.replace(cases[case_id], gold=CallsGold(calls))
        for case_id, calls in data.gold_of_publication().items()
    }
    published_rates = data.published_rates()
    check = _CheckTally(cases, of_day)
    for model in data.recorded_models():
        for recorded in data.recording(model):
            check.add(recorded)
    cells = [
        CheckedCell(
            model=model,
            category=category,
            cases=counts["cases"],
            ours=counts["ours"],
            ours_gold_of_publication=counts["of_day"],
            published=counts["published"],
            simple_check=counts["simple"],
            published_all_passed=published_rates[model][category].passed,
            published_all_cases=published_rates[model][category].cases,
        )
        for (model, category), counts in check.cells.items()
    ]
    return ScorerCheck(
        cases_sha256=data_hash(cases.values()),
        recordings_sha256=check.recordings.hexdigest(),
        answers=check.agreement["answers"],
        agree=check.agreement["agree"],
        agree_gold_of_publication=check.agreement["agree_of_day"],
        cells=cells,
        differences=check.differences,
        simple_check_differences=dict(sorted(check.simple.items())),
    )


class _CheckTally:
    """Counts while the answers go by."""

    def __init__(self, cases: Mapping[str, Case], of_day: Mapping[str, Case]) -> None:
        self._cases, self._of_day = cases, of_day
        self.cells: dict[tuple[str, str], Counter[str]] = {}
        self.agreement: Counter[str] = Counter()
        self.simple: Counter[str] = Counter()
        self.differences: list[CaseDifference] = []
        self.recordings = hashlib.sha256()

    def add(self, recorded: RecordedAnswer) -> None:
        if recorded.pass_published is None or recorded.pass_current_gold is None:
            raise ValueError(f"{recorded.model} on {recorded.id} has no published verdict")
        self.recordings.update(canonical_json(msgspec.to_builtins(recorded)))
        case = self._cases[recorded.id]
        ours = score(case, recorded.answer)
        of_day = score(self._of_day.get(case.id, case), recorded.answer)
        published = recorded.pass_published
        self.cells.setdefault((recorded.model, case.category), Counter()).update(
            cases=1, ours=ours.passed, of_day=of_day.passed, published=published, simple=recorded.pass_current_gold
        )
        self.agreement.update(answers=1, agree=ours.passed == published, agree_of_day=of_day.passed == published)
        if ours.passed != recorded.pass_current_gold:
            self.simple[f"{'passed' if ours.passed else 'failed'}: {ours.reason}"] += 1
        if ours.passed != published:
            self.differences.append(
                CaseDifference(
                    model=recorded.model,
                    id=case.id,
                    category=case.category,
                    passed=ours.passed,
                    reason=ours.reason,
                    published=published,
                    cause=_cause(case, recorded, ours, of_day, published),
                )
            )


def _cause(case: Case, recorded: RecordedAnswer, ours: CaseScore, of_day: CaseScore, published: bool) -> Cause:
    if of_day.passed == published:
        return Cause.GOLD_CORRECTED
    if published and ours.reason is Reason.WRONG_VALUE and score(case, _without_empty_lists(case, recorded)).passed:
        return Cause.EMPTY_LIST
    if isinstance(recorded.raw, str):
        return _decoding_cause(case, recorded, recorded.raw.strip(), ours, published)
    return Cause.UNEXPLAINED


def _decoding_cause(case: Case, recorded: RecordedAnswer, text: str, ours: CaseScore, published: bool) -> Cause:
    """For an answer that was written as Python text."""
    if published and ours.reason is Reason.MISSING_CALL and text.startswith("[") and not text.endswith("]"):
        return Cause.UNCLOSED_LIST
    if not published and ours.reason is Reason.NO_CALL and "(" in text and "=" in text:
        return Cause.POSITIONAL_ARGUMENT
    bare = all(call.arguments == {} for call in recorded.calls or ())
    if published and ours.reason is Reason.UNEXPECTED_CALL and bare:
        return Cause.CALL_WITHOUT_ARGUMENTS
    originals = case.meta.get("original_names", {})
    if ours.passed and any(name in text and originals[name] not in text for name in originals):
        return Cause.UNDERSCORE_FOR_DOT
    return Cause.UNEXPLAINED


def _without_empty_lists(case: Case, recorded: RecordedAnswer) -> Answer:
    """The answer without the empty lists that stand where the gold's only acceptable value is to give none."""
    absent: set[tuple[str, str]] = set()
    if isinstance(case.gold, CallsGold):
        absent = {(gold.name, name) for gold in case.gold.calls for name in _only_absent(gold)}
    calls = (
        Call(
            call.name,
            {key: value for key, value in (call.arguments or {}).items() if value or (call.name, key) not in absent},
        )
        for call in recorded.calls or ()
    )
    return Answer(tuple(calls))


def _only_absent(gold: GoldCall) -> Iterable[str]:
    return (name for name, acceptable in gold.arguments.items() if acceptable == [""])
