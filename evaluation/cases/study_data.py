"""Recorded answers of large models to the cases, with their tokens and seconds; and where the study's data lie.

Tokens and seconds are the recording's own. Three of the twelve recorded models ran locally and recorded neither; that
is None here, never 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import msgspec

import evaluation
from evaluation.cases.answers import Answer, Call
from evaluation.cases.case import Case, GoldCall, load_cases
from evaluation.cases.jsonl import RowError, read_rows


class RecordedCall(msgspec.Struct, frozen=True):
    """One recorded call. Where the model wrote no JSON object, `arguments` is None and `arguments_raw` has its text."""

    name: str
    arguments: dict[str, Any] | None = None
    arguments_raw: str | None = None

    def __post_init__(self) -> None:
        if self.arguments is None and self.arguments_raw is None:
            raise ValueError("a call has neither arguments nor arguments_raw")

    @property
    def arguments_text(self) -> str:
        """The arguments as they go over the wire."""
        if self.arguments is None:
            return self.arguments_raw or ""
        return json.dumps(self.arguments, ensure_ascii=False)


class RecordedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One model's recorded answer to the case of the same id: calls, or text where `calls` is None or empty."""

    id: str
    model: str
    calls: list[RecordedCall] | None = None
    text: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_s: float | None = None
    raw: Any = None
    """The model's output as its authors stored it."""
    pass_published: bool | None = None
    """The verdict that the recording's authors published; None where there is none."""
    pass_current_gold: bool | None = None

    @property
    def answer(self) -> Answer:
        """The answer as it is scored."""
        return Answer(tuple(Call(call.name, call.arguments) for call in self.calls or ()), self.text)


class PublishedRate(msgspec.Struct, frozen=True):
    """The number of a category's cases that passed, as published."""

    passed: int
    cases: int


class _DatedGold(msgspec.Struct, frozen=True):
    id: str
    calls: list[GoldCall]


class _FirstCall(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, Any] | None = None


class _ToolBenchRecord(msgspec.Struct, frozen=True):
    model: str
    first_call: _FirstCall | None = None


class _ToolBenchRow(msgspec.Struct, frozen=True):
    id: str
    recorded: _ToolBenchRecord | None = None


def load_recording(path: Path) -> list[RecordedAnswer]:
    """All answers of one model's file. Raises RowError (file, line, field), also where two rows answer one case."""
    answers: list[RecordedAnswer] = []
    seen: set[tuple[str, str]] = set()
    for line, answer in read_rows(path, RecordedAnswer):
        if (answer.model, answer.id) in seen:
            raise RowError(path, line, f"{answer.model} has answered case {answer.id!r} already - at `$.id`")
        seen.add((answer.model, answer.id))
        answers.append(answer)
    return answers


class StudyData:
    """The folder of committed study data (its README names sources and licences). It is not part of the wheel."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "bfcl.jsonl.gz").is_file():
            raise FileNotFoundError(
                f"{folder} holds no bfcl.jsonl.gz: the study's data come with the repository, not with the package"
            )
        self.folder = folder

    @classmethod
    def of_checkout(cls) -> Self:
        """The data in the package's folder. Raises FileNotFoundError where only the package is installed."""
        return cls(Path(evaluation.__path__[0]) / "data")

    def bfcl(self) -> list[Case]:
        """The 3,491 BFCL cases: for tests only, never for training or tuning."""
        return load_cases(self.folder / "bfcl.jsonl.gz")

    def toolbench(self) -> list[Case]:
        """The 1,359 ToolBench and StableToolBench cases; some of them cannot be scored."""
        return load_cases(self.folder / "toolbench_eval.jsonl.gz")

    def toolbench_first_calls(self) -> list[RecordedAnswer]:
        """The first call that ToolBench's recorded model made, where one was recorded.

        The source cuts messages at 100 characters. Which tool was called is whole, and it is all that ToolBench's gold
        speaks of, so arguments that were cut are left out.
        """
        answers = []
        for _, row in read_rows(self.folder / "toolbench_eval.jsonl.gz", _ToolBenchRow):
            if row.recorded is not None:
                first = row.recorded.first_call
                calls = None if first is None else [RecordedCall(first.name, first.arguments or {})]
                answers.append(RecordedAnswer(id=row.id, model=row.recorded.model, calls=calls))
        return answers

    def recorded_models(self) -> list[str]:
        """Names of the recorded models, sorted."""
        return sorted(path.name.removesuffix(".jsonl.gz") for path in self._recordings().glob("*.jsonl.gz"))

    def recording(self, model: str) -> list[RecordedAnswer]:
        """The recorded answers of a model. Raises LookupError, naming the models there are."""
        known = self.recorded_models()
        if model not in known:
            raise LookupError(f"no recording of {model!r}; there are: {', '.join(known)}")
        return load_recording(self._recordings() / f"{model}.jsonl.gz")

    def gold_of_publication(self) -> dict[str, list[GoldCall]]:
        """Case id → the gold that BFCL scored with on 2024-08-11, for the recorded cases whose gold changed since."""
        rows = read_rows(self.folder / "bfcl_gold_2024-08-11.jsonl.gz", _DatedGold)
        return {row.id: row.calls for _, row in rows}

    def published_rates(self) -> dict[str, dict[str, PublishedRate]]:
        """Model → category → what BFCL published on 2024-08-11, over its own 1,240 cases of these categories."""
        content = (self.folder / "bfcl_published_2024-08-11.json").read_bytes()
        return msgspec.json.decode(content, type=dict[str, dict[str, PublishedRate]])

    def _recordings(self) -> Path:
        return self.folder / "bfcl_recorded"
