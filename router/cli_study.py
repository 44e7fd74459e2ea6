"""`smallcall study`: the offline commands."""

from __future__ import annotations

import asyncio
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evaluation.cases import Case
from evaluation.recordings import StudyData

study_app = typer.Typer(no_args_is_help=True)
console = Console()


def commit() -> str:
    """The commit checked out here, with `+changes` where the tree is not clean; `unknown` outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S607
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


@study_app.command()
def scorer(out: Annotated[Path, typer.Option()] = Path("evaluation/results")) -> None:
    """Hold our scorer against the verdicts that BFCL published, model by model, and write scorer.md and scorer.json."""
    from evaluation.scorer_check import run
    from evaluation.scorer_report import render_markdown, write

    check = run(StudyData.of_checkout())
    command, at = "smallcall study scorer", commit()
    for path in write(check, out, command=command, commit=at):
        console.print(f"wrote {path}", highlight=False)
    console.print(render_markdown(check, command=command, commit=at), markup=False, highlight=False)


def _cases(name: str, limit: int | None, per_group: int | None, category: str | None) -> list[Case]:
    from evaluation.case_sets import case_set, sample

    try:
        cases = case_set(name)
    except LookupError as error:
        raise typer.BadParameter(str(error), param_hint="--cases") from None
    return [case for case in sample(name, cases, per_group) if category in (None, case.category)][:limit]


@study_app.command()
def collect(
    out: Annotated[Path, typer.Argument(help="the Parquet table to write; a run that was cut short goes on")],
    base_url: Annotated[str, typer.Option()] = "http://127.0.0.1:8080/v1",
    model: Annotated[
        str, typer.Option(help="the model to ask for; smallcall/small pins the small side")
    ] = "smallcall/small",
    cases: Annotated[str, typer.Option(help="a set of evaluation.case_sets")] = "bfcl",
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    per_group: Annotated[int | None, typer.Option(min=1, help="cases of each group, drawn by hash")] = None,
    category: Annotated[str | None, typer.Option(help="one category")] = None,
    concurrency: Annotated[int, typer.Option(min=1)] = 2,
    signals: Annotated[bool, typer.Option(help="ask a smallcall gateway for its decisions and token signals")] = True,
    stream: Annotated[bool, typer.Option()] = False,
) -> None:
    """Ask any OpenAI-compatible endpoint for cases and keep what it answers."""
    from evaluation import traces
    from evaluation.chat_client import Endpoint
    from router.cli_progress import progress_bar

    endpoint = Endpoint(base_url, model, include_signals=signals, stream=stream)
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar(console) as tell:
        trace = asyncio.run(
            traces.collect(
                _cases(cases, limit, per_group, category),
                endpoint,
                out,
                command=f"smallcall study collect --cases {cases} --model {model}",
                concurrency=concurrency,
                on_progress=lambda progress: tell("asking", progress.done, progress.total),
            )
        )
    passed = sum(row.passed is True for row in trace.rows)
    console.print(f"{passed} of {len(trace.rows)} passed; wrote {out}", highlight=False)


@study_app.command()
def report(
    small: Annotated[Path, typer.Argument(help="trace of the small arm")],
    large: Annotated[str, typer.Option(help="a recorded model")] = "gpt-4o-2024-08-06-FC",
    out: Annotated[Path, typer.Option()] = Path("var/report"),
    input_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 2.5,
    output_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 10.0,
    small_usd_per_hour: Annotated[float, typer.Option(help="what the small model's machine costs")] = 0.10,
) -> None:
    """Cost against pass rate of a small arm's trace and a recorded large model, as a table and an HTML page."""
    from evaluation.chat_client import TokenPrices
    from evaluation.recorded_index import served_name
    from evaluation.recording_trace import trace_of_recording
    from evaluation.report import summary_table, write_report
    from evaluation.report_content import Options, report_of
    from evaluation.trace_table import read_trace

    data, trace = StudyData.of_checkout(), read_trace(small)
    asked = {row.case_id for row in trace.rows}
    cases = [case for case in data.bfcl() if case.id in asked]
    prices = TokenPrices(input_usd_per_mtok=input_price, output_usd_per_mtok=output_price)
    command = f"smallcall study report {small.name} --large {large}"
    arm = trace_of_recording(cases, data.recording(large), arm=served_name(large), prices=prices, command=command)
    options = Options(
        command=command,
        commit=commit(),
        version=importlib.metadata.version("smallcall"),
        small_usd_per_hour=small_usd_per_hour,
    )
    made = report_of(cases, trace, arm, options=options)
    console.print(summary_table(made))
    console.print(f"report: {write_report(made, out).html.resolve()}", soft_wrap=True, highlight=False)
