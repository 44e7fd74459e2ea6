"""`smallcall engine serve`: the small model by itself, as a server of OpenAI completions."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

engine_app = typer.Typer(no_args_is_help=True)
console = Console()


@engine_app.callback()
def _group() -> None:
    """The small model without a gateway."""


@engine_app.command("serve")
def serve_engine(
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file; its section `small` is read")] = None,
    host: Annotated[str, typer.Option(help="another host than this one needs a key")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8090,
    key_file: Annotated[Path | None, typer.Option(help="holds the key that callers must have", exists=True)] = None,
    name: Annotated[str | None, typer.Option(help="of the model, as callers name it; default: its folder's")] = None,
) -> None:
    """Serve the small model at /v1/completions, with log-probabilities and guided decoding."""
    import uvicorn

    from router.cli.common import model_or_exit, settings_or_exit
    from router.completions.app import Terms, create_engine_app
    from router.constants import Constants
    from router.server.run import StartError, check_adapter, check_port
    from router.server.wiring import worker_of
    from router.settings import is_loopback
    from router.telemetry import configure_logging

    settings = settings_or_exit(config)
    key = key_file.read_text(encoding="utf-8").strip() if key_file else None
    if not key and (key_file or not is_loopback(host)):
        console.print("others can reach this host: it needs --key-file with a key in it", highlight=False)
        raise typer.Exit(2)
    try:
        if settings.small.adapter_folder is not None:
            check_adapter(settings.small.adapter_folder)
        check_port(host, port, "--host", "--port")
    except StartError as error:
        console.print(str(error), highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None
    folder = model_or_exit(settings)
    configure_logging(settings.log_level)
    with contextlib.ExitStack() as stack:
        worker = worker_of(settings, folder, stack, Constants())
        app = create_engine_app(worker, Terms(name, key), worker.running)
        uvicorn.run(app, host=host, port=port, log_config=None, access_log=False, timeout_graceful_shutdown=10)
