"""Score the small model alone: each arm drafts every set in this process, by the code that answers a pinned request.

Traces are kept in a folder for each arm and its conditions, so a run that was cut short goes on, and a later run asks
only for what is new. Another adapter is another arm, never mixed with the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from evaluation.cases.case import Case
from evaluation.cases.sets import TOOLBENCH, case_set, sample
from evaluation.cases.study_data import StudyData
from evaluation.studies.small_model.scores import SetScores, first_calls, set_scores
from evaluation.traces.client import Endpoint
from evaluation.traces.collect import Keep, Progress, collect_by
from evaluation.traces.small_side import Serving
from evaluation.traces.table import Trace, read_trace
from router.settings import Shortlist, Small
from slm.format.pattern import PATTERN_VERSION
from slm.weights.folders import ModelFolder, read_adapter

if TYPE_CHECKING:
    from slm.engine.engine import DraftEngine


@dataclass(frozen=True, slots=True)
class Variant:
    """The settings that an arm changes."""

    small: Mapping[str, str] = field(default_factory=dict)
    """Overrides of the settings' `small` section."""
    grammar: bool = True


ARMS: Mapping[str, Variant] = {
    "tuned": Variant(),
    "tuned, no grammar": Variant(grammar=False),
    "tuned, int8": Variant({"dtype": "int8"}),
    "zero-shot": Variant({"adapter": "none"}),
    "zero-shot, no grammar": Variant({"adapter": "none"}, grammar=False),
}
COMMAND = "smallcall study slm"
CHUNK = 64
"""Cases that are drafted together."""

OnProgress = Callable[[str, int, int | None], None]
Sets = Mapping[str, int | None]
"""Set → cases a group, None for all."""


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """The conditions that an answer depends on, beside the case."""

    weights_sha256: str
    adapter_sha256: str | None
    pattern_version: str
    dtype: str
    grammar: bool
    max_tokens: int
    shortlist: str
    """Its kind and how many tools it keeps; `none` where the model sees all tools."""
    chunk: int
    """Cases drafted together; they are taken in the set's order."""


@dataclass(frozen=True, slots=True)
class StudyArm:
    """One way to run the small model."""

    name: str
    small: Small
    model: ModelFolder
    grammar: bool = True

    @property
    def conditions(self) -> Conditions:
        """The conditions that its answers depend on."""
        folder = self.small.adapter_folder
        return Conditions(
            weights_sha256=self.model.weights_sha256,
            adapter_sha256=read_adapter(folder).sha256 if folder else None,
            pattern_version=PATTERN_VERSION,
            dtype=self.small.dtype,
            grammar=self.grammar,
            max_tokens=self.small.max_tokens,
            shortlist=_plain(self.small.shortlist),
            chunk=CHUNK,
        )

    @property
    def serving(self) -> Serving:
        """Its description in a trace."""
        what = self.conditions
        return Serving(
            weights_sha256=what.weights_sha256,
            adapter_sha256=what.adapter_sha256,
            pattern_version=what.pattern_version,
            dtype=what.dtype,
            grammar=what.grammar,
        )

    def engine(self) -> DraftEngine:
        """Loaded. Raises `slm.engine.model.LoadError`."""
        from slm.engine.engine import DraftEngine

        small = self.small
        return DraftEngine.load(self.model.path, small.adapter_folder, small.dtype, shortlist=small.shortlist.options)

    def table(self, folder: Path, name: str) -> Path:
        """Where its answers to a set stand."""
        mark = hashlib.sha256(msgspec.json.encode(self.conditions)).hexdigest()[:10]
        plain = self.name.replace(", ", "-").replace(" ", "-")
        return folder / f"{plain}-{mark}" / f"{name}.parquet"


def _plain(shortlist: Shortlist) -> str:
    return "none" if shortlist.kind == "none" else f"{shortlist.kind}, {shortlist.keep}"


def arm_of(name: str, small: Small, model: ModelFolder) -> StudyArm:
    """An arm of `ARMS` under these settings; float32 unless the arm says otherwise."""
    variant = ARMS[name]
    return StudyArm(name, small.model_copy(update={"dtype": "float32", **variant.small}), model, variant.grammar)


async def collect_arm(
    arm: StudyArm, sets: Sets, folder: Path, on_progress: OnProgress, *, threads: int
) -> dict[str, Trace]:
    """Traces of one arm by set; see `draft_tables`."""
    tables = {name: sample(name, case_set(name), per_group) for name, per_group in sets.items()}
    return await draft_tables(arm, tables, folder, on_progress, threads=threads, command=COMMAND)


async def draft_tables(
    arm: StudyArm,
    tables: Mapping[str, Sequence[Case]],
    folder: Path,
    on_progress: OnProgress,
    *,
    threads: int,
    command: str,
) -> dict[str, Trace]:
    """One arm's traces of lists of cases by name, read from `folder` where they stand, with all token signals. The
    model is loaded only if something is to be drafted.

    Raises:
        slm.engine.model.LoadError: model or adapter cannot be loaded.
    """
    from router.lab.batch import PINNED, Batch
    from slm.engine.model import use_threads

    use_threads(threads)
    batch: Batch | None = None
    traces: dict[str, Trace] = {}
    for name, cases in tables.items():

        async def ask(todo: Sequence[Case], keep: Keep, cases: Sequence[Case] = cases) -> None:
            nonlocal batch
            if todo:
                batch = batch or Batch(arm.engine(), arm.small, grammar=arm.grammar)
                await batch.ask(cases, todo, keep, chunk=CHUNK)

        def report(progress: Progress, label: str = f"{arm.name}: {name}") -> None:
            on_progress(label, progress.done, progress.total)

        out = arm.table(folder, name)
        out.parent.mkdir(parents=True, exist_ok=True)
        endpoint = Endpoint("http://in.process/v1", PINNED, include_signals=True)
        traces[name] = await collect_by(
            ask, cases, [endpoint], out, command=command, serving=arm.serving, on_progress=report
        )
    return traces


def scores_of(arms: Sequence[StudyArm], sets: Sets, folder: Path, models: Sequence[str]) -> list[SetScores]:
    """Figures from the tables in `folder`; `models` are recorded ones to stand beside the arms on BFCL."""
    data = StudyData.of_checkout()
    made = []
    for name, per_group in sets.items():
        cases = sample(name, case_set(name), per_group)
        traces, recordings = _answered(arms, name, folder, cases), None
        if name == "bfcl":
            recordings = {model: data.recording(model) for model in models}
        elif name == "toolbench":
            recordings = {"gpt-3.5-turbo CoT, first call": data.toolbench_first_calls()}
        if name in TOOLBENCH:
            traces |= {f"{arm}, first call": first_calls(cases, trace) for arm, trace in traces.items()}
        made.append(set_scores(name, cases, traces, recordings))
    return made


def _answered(arms: Sequence[StudyArm], name: str, folder: Path, cases: Sequence[Case]) -> dict[str, Trace]:
    """The traces that answer all of the cases."""
    traces = {}
    for arm in arms:
        path = arm.table(folder, name)
        trace = read_trace(path) if path.is_file() else None
        if trace is not None and {case.id for case in cases} <= {row.case_id for row in trace.rows}:
            traces[arm.name] = trace
    return traces
