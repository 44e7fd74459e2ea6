"""`smallcall models`: pull base models into the cache, list what is there, and export one for other engines."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from evaluation.report.sheet import Sheet
from router.cli.output.tables import show
from router.settings import SettingsError, load_settings
from slm.weights.registry import (
    DEFAULT_MODEL,
    KNOWN_MODELS,
    LocalSource,
    WeightsError,
    downloaded_file,
    find_model,
    known_model,
    resolve_model,
)

models_app = typer.Typer(help="Base models in the cache.", no_args_is_help=True, pretty_exceptions_show_locals=False)


class ExportFormat(StrEnum):
    """What `models export` writes; equal in value to `slm.engine.export.FORMATS`."""

    SAFETENSORS = "safetensors"
    Q8_0 = "q8_0"
    F16 = "f16"


CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", help="Cache folder instead of the configured one.", file_okay=False),
]


@models_app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A known model.")] = DEFAULT_MODEL,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take the GGUF file from this folder (or this file) and ask no network."),
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Find a model by SHA-256, convert it once, check what is cached, and print the folder's path."""
    errors = Console(stderr=True)
    try:
        model = known_model(name)
        with _Bars(errors) as bars:
            folder = resolve_model(
                model,
                cache or load_settings().cache_folder,
                bars.show,
                None if source is None else [LocalSource(source.expanduser())],
                verify=True,
            )
    except (WeightsError, SettingsError) as exc:
        raise _failed(errors, exc) from exc
    print(folder.path)


@models_app.command()
def export(
    target: Annotated[Path, typer.Argument(help="A new folder.", file_okay=False)],
    formats: Annotated[
        list[ExportFormat] | None,
        typer.Option("--format", help="Repeat for several: safetensors (vLLM), q8_0 or f16 (GGUF, llama.cpp)."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Known name or folder, instead of the configured one.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Folder, `shipped` or `none`, instead of the configured.")] = None,
    cache: CacheOption = None,
) -> None:
    """Write the model with its adapter merged in for other engines, and print the paths."""
    errors = Console(stderr=True)
    try:
        settings = load_settings()
        changes = {key: value for key, value in (("model", model), ("adapter", adapter)) if value is not None}
        small = settings.small.model_copy(update=changes)
        where = cache or settings.cache_folder
        with _Bars(errors) as bars:
            folder = resolve_model(small.model, where, bars.show)
            from slm.engine.export import export as write  # imports torch

            made = write(
                folder.path,
                small.adapter_folder,
                target.expanduser(),
                [one.value for one in formats or [ExportFormat.SAFETENSORS]],
                gguf=downloaded_file(small.model, where),
                name=folder.name,
                tell=lambda stage: bars.show(stage, 0, None),
            )
    except (WeightsError, SettingsError) as exc:
        raise _failed(errors, exc) from exc
    for path in made:
        print(path)


@models_app.command("list")
def list_models(cache: CacheOption = None) -> None:
    """List the known models and whether the cache has them."""
    try:
        where = cache or load_settings().cache_folder
    except SettingsError as exc:
        raise _failed(Console(stderr=True), exc) from exc
    rows = []
    for model in KNOWN_MODELS.values():
        found = find_model(model, where)
        state, digest = ("ready", found.weights_sha256[:16]) if found else ("not pulled", "")
        rows.append((model.name, model.licence, _megabytes(model.file.bytes), state, digest))
    show(Sheet(("name", "licence", "download", "state", "weights SHA-256"), rows, folds=("licence",)), Console())


def _failed(errors: Console, exc: Exception) -> typer.Exit:
    errors.print(f"error: {exc}", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(1)


class _Bars:
    """One line a stage: a bar with bytes where the size is known, else a moving bar; seconds in both."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[size]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._stage: str | None = None
        self._task = TaskID(0)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def show(self, stage: str, done: int, total: int | None) -> None:
        """The `slm.weights.registry.OnProgress` callback."""
        if stage != self._stage:
            self._finish()
            self._stage, self._task = stage, self._progress.add_task(stage, total=total, size="")
        size = "" if total is None else f"{_megabytes(done)} of {_megabytes(total)}"
        self._progress.update(self._task, completed=done, total=total, size=size)

    def _finish(self) -> None:
        """Stop the last stage's clock; a moving bar becomes a full one."""
        if self._stage is not None and self._progress.tasks[-1].total is None:
            self._progress.update(self._task, completed=1, total=1)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
