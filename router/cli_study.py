"""`smallcall study`: the offline commands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evaluation.cases import Case
from evaluation.recordings import StudyData
from router.checkout import commit
from router.cli_cascade import cascade
from router.cli_report import report

study_app = typer.Typer(no_args_is_help=True)
study_app.command()(cascade)
study_app.command()(report)
console = Console()


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
    endpoint: Annotated[
        list[str] | None, typer.Option(help="base URL; repeat for more that serve the same model", show_default=False)
    ] = None,
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
    ray: Annotated[bool, typer.Option(help="in shards over a Ray cluster; needs smallcall[ray]")] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="cases of a shard, with --ray")] = 100,
) -> None:
    """Ask OpenAI-compatible endpoints for cases and keep what they answer (default: a gateway at port 8080)."""
    from evaluation import sharded, traces
    from evaluation.chat_client import Endpoint
    from evaluation.trace_table import TraceError
    from router.cli_progress import progress_bar

    command = f"smallcall study collect --cases {cases} --model {model}"
    chosen = _cases(cases, limit, per_group, category)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        endpoints = [
            Endpoint(url, model, include_signals=signals, stream=stream)
            for url in endpoint or ["http://127.0.0.1:8080/v1"]
        ]
        with progress_bar(console) as tell:
            if ray:
                trace = sharded.collect_sharded(
                    chosen,
                    endpoints,
                    out,
                    command=f"{command} --ray",
                    shard_size=shard_size,
                    executor=sharded.with_ray,
                    concurrency=concurrency,
                    on_done=lambda done, total: tell("asking", done, total),
                )
            else:
                trace = asyncio.run(
                    traces.collect(
                        chosen,
                        endpoints,
                        out,
                        command=command,
                        concurrency=concurrency,
                        on_progress=lambda progress: tell("asking", progress.done, progress.total),
                    )
                )
    except (TraceError, ValueError, sharded.RayUnavailableError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    passed = sum(row.passed is True for row in trace.rows)
    console.print(f"{passed} of {len(trace.rows)} passed; wrote {out}", highlight=False)


@study_app.command()
def slm(
    per_group: Annotated[int, typer.Option(min=0, help="cases of each group of a set, drawn by hash; 0: all")] = 60,
    only: Annotated[list[str] | None, typer.Option(help="one set; repeat for more")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="one arm; repeat for more")] = None,
    adapter: Annotated[str, typer.Option(help="the tuned arms' adapter: shipped, or a folder")] = "shipped",
    model: Annotated[list[str] | None, typer.Option(help="recorded models to stand beside; repeat for more")] = None,
    folder: Annotated[Path, typer.Option(help="tables of answers; a run that was cut short goes on")] = Path("var/slm"),
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
) -> None:
    """Score the small model alone, with and without grammar and adapter, and write slm.md and slm.json."""
    from evaluation.small_scores import render_markdown, write
    from router.cli_progress import progress_bar
    from router.settings import load_settings
    from router.small_scores import ARMS, COMMAND, collect_arm, scores_of
    from slm.folders import read_adapter
    from slm.weights import resolve_model

    sets = dict.fromkeys(only or ("bfcl", "in_domain", "heldout_tools", "toolbench"), per_group or None)
    arms = arm or list(ARMS)
    if unknown := [name for name in arms if name not in ARMS]:
        raise typer.BadParameter(f"no arm {unknown[0]!r}; there are: {', '.join(ARMS)}", param_hint="--arm")
    settings = load_settings()
    settings = settings.model_copy(update={"small": settings.small.model_copy(update={"adapter": adapter})})
    base = resolve_model(settings.small.model, settings.cache_folder).path
    with progress_bar(console) as tell:
        for name in arms:
            asyncio.run(collect_arm(settings, base, name, sets, folder, tell))
    options = [
        f"--per-group {per_group}",
        *(f"--only {name}" for name in only or ()),
        *(f"--arm {name}" for name in arm or ()),
    ]
    facts = {"command": " ".join((COMMAND, *options)), "commit": commit()}
    if settings.small.adapter_folder is not None:
        facts["adapter"] = read_adapter(settings.small.adapter_folder).sha256
    models = model or ["gpt-4o-2024-08-06-FC", "claude-3-5-sonnet-20240620-FC", "Salesforce_xLAM-1b-fc-r"]
    scores = scores_of(list(ARMS), sets, folder, models)
    for path in write(scores, out, facts):
        console.print(f"wrote {path}", highlight=False)
    console.print(render_markdown(scores, facts), markup=False, highlight=False)
