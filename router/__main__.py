"""The `smallcall` command. Only this and `router.cli` print."""

from __future__ import annotations

import asyncio
import importlib.metadata
import signal
from pathlib import Path
from typing import Annotated

import typer

from evaluation.report.sheet import Sheet
from router.cli.ab import ab_app
from router.cli.audits import audits
from router.cli.common import Config, console, model_or_exit, progress_bar, settings_or_exit
from router.cli.costs import costs
from router.cli.drift import drift
from router.cli.engine import engine_app
from router.cli.harvest import harvest
from router.cli.keys import keys_app
from router.cli.ledger import ledger_app
from router.cli.models import models_app
from router.cli.offline.fit import fit
from router.cli.offline.report import report_app
from router.cli.offline.small_model import failures, slm, tools
from router.cli.offline.study import study_app
from router.cli.offline.train import train
from router.cli.offline.tune import tune
from router.cli.output.tables import show
from router.settings import SettingsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


def _version(asked: bool) -> None:
    if asked:
        console.print(f"smallcall {importlib.metadata.version('smallcall')}", highlight=False)
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say which version this is")
    ] = False,
) -> None:
    """A gateway that lets a small model make the tool call first, and the tools to measure and tune it."""


def serve(
    config: Config = None, port: Annotated[int | None, typer.Option(help="instead of server.port")] = None
) -> None:
    """Run the gateway."""
    from router.access.gate import PublicWithoutKeysError
    from router.access.store import KeysUnavailableError
    from router.ledger.store import LedgerUnavailableError
    from router.server.run import StartError, check
    from router.server.run import serve as run

    settings = settings_or_exit(config)
    if port is not None:
        settings = settings.model_copy(update={"server": settings.server.model_copy(update={"port": port})})
    try:
        check(settings)
        run(settings, model_or_exit(settings) if settings.small.local else None, _listening)
    except (PublicWithoutKeysError, LedgerUnavailableError, KeysUnavailableError, StartError) as error:
        console.print(str(error), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, PublicWithoutKeysError) else 1) from None
    except SettingsError as error:
        console.print(f"configuration: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def _listening(url: str) -> None:
    console.print(f"listening at {url}", highlight=False, markup=False, soft_wrap=True)


def demo(
    config: Config = None,
    out: Annotated[Path, typer.Option(help="where the report, the ledger and the log go")] = Path("var/demo"),
    requests: Annotated[int, typer.Option(min=1, max=60)] = 60,
) -> None:
    """Send sixty real requests through a running gateway, print what came of them, and write a report."""
    from router.lab.demo import run_demo

    settings = settings_or_exit(config)
    folder = model_or_exit(settings)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bar(console) as on_progress:
        result = asyncio.run(run_demo(settings, folder, out, on_progress, requests=requests))
    title = f"{len(result.asked)} BFCL requests through the gateway, large model: recorded GPT-4o"
    show(Sheet(("", "smallcall", "always large"), result.rows, title, folds=("",)), console)
    show(result.ways, console)
    console.print(f"report: {result.report.html.resolve()}", soft_wrap=True, highlight=False)


def recorded(
    model: Annotated[str, typer.Option(help="a name of evaluation/data/bfcl_recorded")] = "gpt-4o-2024-08-06-FC",
    port: Annotated[int, typer.Option()] = 8081,
) -> None:
    """Serve a recorded large model as an OpenAI-compatible endpoint."""
    from evaluation.cases.study_data import StudyData
    from evaluation.recorded.server import RecordedServer
    from evaluation.recorded.server import serve as run

    data = StudyData.of_checkout()

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server = RecordedServer(data.recording(model), data.bfcl(), port=port)
        await run(server, stop, lambda url: console.print(f"{model} at {url}", highlight=False))

    asyncio.run(main())


def _commands() -> None:
    """Say what there is, in the order and the groups of `--help`."""
    for panel, commands in (
        ("Run a gateway", (serve, demo)),
        ("Look at what it did", (costs, audits, drift)),
        ("Improve what it does", (harvest, train, fit, tune)),
        ("The lab", (recorded,)),
    ):
        for command in commands:
            app.command(rich_help_panel=panel)(command)
    for command in (slm, failures, tools):
        study_app.command()(command)
    for panel, name, group, said in (
        ("Run a gateway", "keys", keys_app, "Virtual keys: create, list and revoke."),
        ("Run a gateway", "models", models_app, "Weights: pull and list."),
        ("Look at what it did", "report", report_app, "Cost against pass rate, of traces or a ledger."),
        ("Look at what it did", "ledger", ledger_app, "Decisions: list, show, prune and export."),
        ("Look at what it did", "ab", ab_app, "Experiments: plan and look."),
        ("The lab", "study", study_app, "Offline: collect traces, write reports, score the small model."),
        ("The lab", "engine", engine_app, "The small model by itself: serve."),
    ):
        app.add_typer(group, name=name, help=said, rich_help_panel=panel)


_commands()

if __name__ == "__main__":
    app()
