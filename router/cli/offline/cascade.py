"""`smallcall study cascade`: the small model before each large one, judged by ours and by the others."""

from __future__ import annotations

import importlib.metadata
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from router.cli.provenance import commit
from router.settings import SMALL_USD_PER_HOUR

if TYPE_CHECKING:
    from evaluation.traces.table import Trace

console = Console()


def cascade(
    small: Annotated[list[Path], typer.Option(help="a trace of the small arm, of any sets; repeat for more")],
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
    large: Annotated[list[str] | None, typer.Option(help="a recorded model; repeat for more; all five if none")] = None,
    quality_of_large: Annotated[
        list[float] | None,
        typer.Option(help="pass rate of a simulated large model, where none is recorded; 0.95 if none is given"),
    ] = None,
    small_usd_per_hour: Annotated[
        float, typer.Option(help="what the small model's machine costs", min=0)
    ] = SMALL_USD_PER_HOUR,
    max_harm: Annotated[float, typer.Option(help="certified: share of requests made worse", min=0.001, max=0.5)] = 0.02,
    confidence: Annotated[float, typer.Option(help="of the certificates", min=0.5, max=0.9999)] = 0.9,
    draws: Annotated[int, typer.Option(help="bootstrap draws", min=20)] = 500,
) -> None:
    """The cascade's pass rate and cost with each large model, under each judge; writes cascade.md and cascade.json."""
    from evaluation.cases.sets import case_set
    from evaluation.cases.study_data import StudyData
    from evaluation.recorded.models import LARGE_MODELS
    from evaluation.replay.replay import ReplayError
    from evaluation.studies.cascade import results as cascade_results
    from evaluation.studies.cascade.study import StudyOptions, tables_of
    from evaluation.studies.cascade.targets import material_of, study_judges
    from evaluation.traces.table import TraceError, read_trace

    qualities = quality_of_large or [0.95]
    if any(not 0.0 < quality <= 1.0 for quality in qualities):
        raise typer.BadParameter("a pass rate lies above 0 and is at most 1", param_hint="--quality-of-large")
    command = _command(small, large, quality_of_large, small_usd_per_hour, max_harm, confidence, draws)
    options = StudyOptions(draws=draws, alpha=max_harm, delta=1 - confidence, small_usd_per_hour=small_usd_per_hour)
    models = [model for model in LARGE_MODELS if not large or model.name in large or model.recording in large]
    if not models:
        known = ", ".join(model.name for model in LARGE_MODELS)
        raise typer.BadParameter(
            f"none of {', '.join(large or ())} is priced; there are: {known}", param_hint="--large"
        )
    try:
        traces = [read_trace(path) for path in small]
        material = material_of(traces, models, case_set, StudyData.of_checkout(), qualities=qualities, command=command)
        tables, untold = tables_of(
            material.small,
            material.targets,
            material.sources,
            material.sources_large,
            study_judges(),
            options=options,
            on_progress=lambda place: console.print(f"… {place}", highlight=False),
        )
    except (OSError, TraceError, ReplayError, LookupError, ValueError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    busy = [row.small_busy_s for row in material.small.rows if row.small_busy_s is not None]
    study = cascade_results.study_of(
        tables,
        facts={"command": command, "commit": commit(), "version": importlib.metadata.version("smallcall")},
        small=[_fact(path, trace) for path, trace in zip(small, traces, strict=True)],
        asked=material.asked,
        options=options,
        median_busy_s=statistics.median(busy) if busy else None,
        assumptions=material.assumptions,
        missing=[*material.missing, *untold],
    )
    for line in study.missing:
        console.print(f"missing: {line}", markup=False, highlight=False, soft_wrap=True)
    for path in cascade_results.write(study, out):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _command(
    small: list[Path],
    large: list[str] | None,
    qualities: list[float] | None,
    small_usd_per_hour: float,
    max_harm: float,
    confidence: float,
    draws: int,
) -> str:
    """The whole command, so that whoever reads the figures can make them again."""
    parts = ["smallcall study cascade", *(f"--small {path.name}" for path in small)]
    parts += [f"--large {name}" for name in large or ()]
    parts += [f"--quality-of-large {quality:g}" for quality in qualities or ()]
    given = {"small-usd-per-hour": small_usd_per_hour, "max-harm": max_harm, "confidence": confidence, "draws": draws}
    defaults = {"small-usd-per-hour": 0.1, "max-harm": 0.02, "confidence": 0.9, "draws": 500}
    return " ".join([*parts, *(f"--{name} {value:g}" for name, value in given.items() if value != defaults[name])])


def _fact(path: Path, trace: Trace) -> dict[str, str]:
    return {"name": path.name, "command": trace.info.command, "data_sha256": trace.info.data_sha256}
