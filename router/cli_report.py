"""`smallcall report`: cost against pass rate of two arms' traces, as a table, a page and pictures."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from router.checkout import commit

if TYPE_CHECKING:
    from evaluation.cases import Case
    from evaluation.trace_table import Trace

console = Console()


def report(
    small: Annotated[str, typer.Argument(help="trace of the small arm, or a recorded model of BFCL")],
    cases: Annotated[str, typer.Option(help="the set that the trace is of, or a file of cases")] = "bfcl",
    large: Annotated[str, typer.Option(help="a recorded model, or the trace of the large arm")] = (
        "gpt-4o-2024-08-06-FC"
    ),
    right_at_usd: Annotated[
        float | None, typer.Option(help="simulate a large model that is always right, at this price a request", min=0)
    ] = None,
    gateway: Annotated[Path | None, typer.Option(help="trace of a running gateway over the same cases")] = None,
    out: Annotated[Path, typer.Option()] = Path("var/report"),
    png: Annotated[bool, typer.Option(help="also write pictures for documents; needs matplotlib")] = False,
    on_no_call: Annotated[str, typer.Option(help="what a draft without a call does: escalate or answer")] = "escalate",
    classifier: Annotated[bool, typer.Option(help="fit our classifier on folds of the rows, and show it")] = True,
    input_price: Annotated[float | None, typer.Option(help="of the large model, USD per million tokens")] = None,
    output_price: Annotated[float | None, typer.Option(help="of the large model, USD per million tokens")] = None,
    small_usd_per_hour: Annotated[float, typer.Option(help="what the small model's machine costs")] = 0.10,
) -> None:
    """Cost against pass rate of a small arm's trace and a large one: a table, report.html and report.json."""
    from evaluation.classifier_judge import ClassifierJudges
    from evaluation.metrics import MetricError
    from evaluation.replay import ReplayError
    from evaluation.report import summary_table, write_report
    from evaluation.report_content import Options, report_of
    from evaluation.trace_table import TraceError, read_trace

    if on_no_call not in ("escalate", "answer"):
        raise typer.BadParameter("escalate or answer", param_hint="--on-no-call")
    command = f"smallcall report {Path(small).name} --cases {Path(cases).name} " + (
        f"--large {Path(large).name}" if right_at_usd is None else f"--right-at-usd {right_at_usd:g}"
    )
    try:
        known = _cases(cases)
        trace = _small(small, known, command)
        asked = {row.case_id for row in trace.rows}
        chosen = [case for case in known if case.id in asked]
        options = Options(
            command=command,
            commit=commit(),
            version=importlib.metadata.version("smallcall"),
            small_usd_per_hour=small_usd_per_hour,
            on_no_call=on_no_call,  # type: ignore[arg-type]  # checked above
            judges=ClassifierJudges().judges()[:1] if classifier else (),
        )
        arm = _large(large, right_at_usd, chosen, trace, (input_price, output_price), command)
        run = None if gateway is None else read_trace(gateway)
        made = report_of(chosen, trace, arm, options=options, gateway=run)
        paths = write_report(made, out)
        pictures = _pictures(made, out) if png else []
    except (OSError, TraceError, ReplayError, MetricError, LookupError, ValueError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    console.print(summary_table(made))
    for path in (paths.html, paths.json, *pictures):
        console.print(f"report: {path.resolve()}", soft_wrap=True, highlight=False)


def _cases(name: str) -> list[Case]:
    from evaluation.case_sets import SETS, case_set
    from evaluation.cases import load_cases

    if name not in SETS and Path(name).suffix in (".jsonl", ".gz"):
        return load_cases(Path(name))
    return case_set(name)


def _small(name: str, cases: list[Case], command: str) -> Trace:
    """A trace, or recorded answers as drafts without signals and without cost."""
    from evaluation.recording_trace import trace_of_recording
    from evaluation.recordings import StudyData
    from evaluation.trace_table import read_trace

    if Path(name).suffix == ".parquet" or Path(name).exists():
        return read_trace(Path(name))
    answers = StudyData.of_checkout().recording(name)
    return trace_of_recording(cases, answers, arm=name, prices=None, command=command)


def _large(
    large: str,
    right_at_usd: float | None,
    cases: list[Case],
    small: Trace,
    prices: tuple[float | None, float | None],
    command: str,
) -> Trace:
    """A trace as it is, a recording at the prices given or listed, or a model that is always right."""
    from evaluation.chat_client import TokenPrices
    from evaluation.price_list import LARGE_MODELS, LargeModel, trace_of
    from evaluation.recordings import StudyData
    from evaluation.trace_table import read_trace
    from evaluation.tuning import always_right

    if right_at_usd is not None:
        return always_right(small, usd_a_request=right_at_usd)
    if large.endswith(".parquet"):
        return read_trace(Path(large))
    listed = next((model for model in LARGE_MODELS if large in (model.name, model.recording)), None)
    if None not in prices:
        asked = TokenPrices(*(price or 0.0 for price in prices))
        recording, tokens_of = (listed.recording, listed.tokens_of) if listed else (large, None)
        listed = LargeModel(recording, asked, tokens_of)
    if listed is None:
        known = ", ".join(model.name for model in LARGE_MODELS)
        raise ValueError(
            f"--large: {large} has no listed price (there are: {known}): give --input-price, --output-price"
        )
    return trace_of(listed, cases, StudyData.of_checkout(), command=command)


def _pictures(made: object, out: Path) -> list[Path]:
    from evaluation.report_content import Report
    from evaluation.report_pictures import PicturesUnavailableError, write_pictures

    assert isinstance(made, Report)
    try:
        return write_pictures(made, out)
    except PicturesUnavailableError as error:
        raise ValueError(f"--png: {error}") from error
