"""Score the small model alone: start a gateway for each arm, pin the small side, ask for samples of every set.

Traces are kept, so a run that was cut short goes on, and a later run asks only for what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.case_sets import case_set, sample
from evaluation.chat_client import Endpoint
from evaluation.recordings import StudyData
from evaluation.small_scores import SetScores, set_scores
from evaluation.trace_table import Trace, read_trace
from evaluation.traces import Progress, collect
from router.gateway_process import gateway_process
from router.settings import Settings

ARMS: Mapping[str, Mapping[str, Any]] = {
    "tuned": {},
    "tuned, no grammar": {"grammar": False},
    "zero-shot": {"adapter": "none"},
    "zero-shot, no grammar": {"adapter": "none", "grammar": False},
}
"""Arms and what they change in the settings' `small` section."""
COMMAND = "smallcall study slm"
DEADLINE_S = 600.0
"""Of a draft: a busy machine must not change what is scored."""

Tell = Callable[[str, int, int | None], None]


async def collect_arm(
    settings: Settings,
    model_folder: Path,
    arm: str,
    sets: Mapping[str, int | None],
    folder: Path,
    tell: Tell,
    *,
    concurrency: int = 8,
) -> dict[str, Trace]:
    """Traces of one arm by set. `sets`: cases a group, None for all. `folder/<arm>` keeps the tables."""
    small = settings.small.model_copy(update={**ARMS[arm], "deadline_s": DEADLINE_S})
    own = _folder(folder, arm)
    own.mkdir(parents=True, exist_ok=True)
    traces: dict[str, Trace] = {}
    async with gateway_process(settings.model_copy(update={"small": small}), model_folder, own) as url:
        for name, per_group in sets.items():

            def told(progress: Progress, label: str = f"{arm}: {name}") -> None:
                tell(label, progress.done, progress.total)

            traces[name] = await collect(
                sample(name, case_set(name), per_group),
                Endpoint(url, "smallcall/small", include_signals=True),
                own / f"{name}.parquet",
                command=COMMAND,
                concurrency=concurrency,
                on_progress=told,
            )
    return traces


def scores_of(
    arms: Sequence[str], sets: Mapping[str, int | None], folder: Path, models: Sequence[str]
) -> list[SetScores]:
    """Figures from the tables in `folder`; `models` are recorded ones to stand beside the arms on BFCL."""
    data = StudyData.of_checkout()
    made = []
    for name, per_group in sets.items():
        cases = sample(name, case_set(name), per_group)
        tables = {arm: _folder(folder, arm) / f"{name}.parquet" for arm in arms}
        traces = {arm: read_trace(path) for arm, path in tables.items() if path.is_file()}
        recordings = {model: data.recording(model) for model in models} if name == "bfcl" else None
        made.append(set_scores(name, cases, traces, recordings))
    return made


def _folder(folder: Path, arm: str) -> Path:
    return folder / arm.replace(", ", "-").replace(" ", "-")
