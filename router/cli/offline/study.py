"""`smallcall study`: the offline commands."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evaluation.cases.case import Case
from router.cli.offline.cascade import cascade
from router.cli.offline.report import report

study_app = typer.Typer(no_args_is_help=True)
study_app.command()(cascade)
study_app.command()(report)
console = Console()
InputPrice = Annotated[
    float | None, typer.Option(min=0, help="USD per million tokens read, where the endpoint does not say what it cost")
]


def _cases(name: str, limit: int | None, per_group: int | None, category: str | None) -> list[Case]:
    from evaluation.cases.sets import cases_of, sample

    try:
        cases = cases_of(name)
    except (LookupError, ValueError, OSError) as error:
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
    cases: Annotated[str, typer.Option(help="bfcl, another set, or a .jsonl file of your own")] = "bfcl",
    limit: Annotated[int | None, typer.Option(min=1)] = None,
    per_group: Annotated[int | None, typer.Option(min=1, help="cases of each group, drawn by hash")] = None,
    category: Annotated[str | None, typer.Option(help="one category")] = None,
    key_file: Annotated[Path | None, typer.Option(help="holds the key of the endpoints", exists=True)] = None,
    input_price: InputPrice = None,
    output_price: Annotated[float | None, typer.Option(min=0, help="USD per million tokens written")] = None,
    concurrency: Annotated[int, typer.Option(min=1)] = 2,
    signals: Annotated[bool, typer.Option(help="ask a smallcall gateway for its decisions and token signals")] = True,
    stream: Annotated[bool, typer.Option()] = False,
    ray: Annotated[bool, typer.Option(help="in shards over a Ray cluster; needs the extra `ray`")] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="cases of a shard, with --ray")] = 100,
) -> None:
    """Ask OpenAI-compatible endpoints for cases and keep what they answer (default: a gateway at port 8080)."""
    from evaluation.traces import collect as traces
    from evaluation.traces import sharded
    from evaluation.traces.client import ClientPrices, Endpoint
    from evaluation.traces.table import TraceError
    from router.cli.common import progress_bar

    command = f"smallcall study collect --cases {cases} --model {model}"
    if (input_price is None) != (output_price is None):
        raise typer.BadParameter("give both or neither", param_hint="--input-price, --output-price")
    prices = ClientPrices(input_price, output_price) if input_price is not None and output_price is not None else None
    key = key_file.read_text(encoding="utf-8").strip() if key_file else None
    chosen = _cases(cases, limit, per_group, category)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        endpoints = [
            Endpoint(url, model, key, include_signals=signals, stream=stream, prices=prices)
            for url in endpoint or ["http://127.0.0.1:8080/v1"]
        ]
        with progress_bar(console) as on_progress:
            if ray:
                trace = sharded.collect_sharded(
                    chosen,
                    endpoints,
                    out,
                    command=f"{command} --ray",
                    shard_size=shard_size,
                    executor=sharded.with_ray,
                    concurrency=concurrency,
                    on_done=lambda done, total: on_progress("asking", done, total),
                )
            else:
                trace = asyncio.run(
                    traces.collect(
                        chosen,
                        endpoints,
                        out,
                        command=command,
                        concurrency=concurrency,
                        on_progress=lambda progress: on_progress("asking", progress.done, progress.total),
                    )
                )
    except (TraceError, ValueError, sharded.RayUnavailableError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    passed = sum(row.passed is True for row in trace.rows)
    console.print(f"{passed} of {len(trace.rows)} passed; wrote {out}", highlight=False)
