"""What `smallcall tune` is given, as objects: judges, cases, the large model's trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evaluation.cases.case import Case
    from evaluation.traces.table import Trace
    from policies.bundle.manifest import JudgeSpec
    from policies.rules.judge import Judge


@dataclass(frozen=True)
class Judging:
    """A judge, as it is used and as a bundle names it; `folder` of a classifier."""

    judge: Judge
    spec: JudgeSpec
    folder: Path | None = None


def judging(folder: Path | None, score: str, kept_in: str = "classifier") -> Judging:
    """A classifier's folder as a judge of the stage that its place in a bundle is for, or a named score."""
    from policies.bundle.manifest import ClassifierEntry, ScoreEntry
    from policies.rules.judge import NamedScore
    from policies.types import Stage

    if folder is None:
        return Judging(NamedScore(score), ScoreEntry(score=score))
    from policies.classifier.classifier import load_judge
    from policies.features.vector import FEATURES_VERSION

    stage = {"classifier_request": Stage.BEFORE, "classifier_plan": Stage.DURING}.get(kept_in, Stage.AFTER)
    spec = ClassifierEntry(folder=kept_in, features_version=FEATURES_VERSION)
    return Judging(load_judge(folder, stage), spec, folder)


def judging_request(folder: Path | None) -> Judging:
    from policies.bundle.manifest import ToolsJudge
    from policies.rules.judge import FewTools

    if folder is not None:
        return judging(folder, "", "classifier_request")
    return Judging(FewTools(), ToolsJudge())


def cases_asked(trace: Trace, name: str) -> list[Case]:
    """Cases of a set, or of a file, that stand in the trace. Raises ValueError where none does."""
    from evaluation.cases.sets import cases_of

    asked = {row.case_id for row in trace.rows}
    found = [case for case in cases_of(name) if case.id in asked]
    if not found:
        raise ValueError(f"--cases {name}: none of the trace's cases is among them")
    return found


def large_arm(cases: list[Case], large: str, input_price: float, output_price: float) -> Trace:
    from evaluation.cases.study_data import StudyData
    from evaluation.recorded.index import served_name
    from evaluation.recorded.trace import trace_of_recording
    from evaluation.traces.client import ClientPrices
    from evaluation.traces.table import read_trace

    if large.endswith(".parquet"):
        return read_trace(Path(large))
    prices = ClientPrices(input_usd_per_mtok=input_price, output_usd_per_mtok=output_price)
    answers = StudyData.of_checkout().recording(large)
    return trace_of_recording(cases, answers, arm=served_name(large), prices=prices, command="smallcall tune")
