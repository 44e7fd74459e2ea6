"""What commands share: the console, the settings, the model's folder, progress bars."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from router.settings import Settings, SettingsError, load_settings
from slm.weights.folders import WeightsError
from slm.weights.registry import resolve_model

OnProgress = Callable[[str, int, int | None], None]
console = Console()

Config = Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win over it")]


def settings_or_exit(config: Path | None) -> Settings:
    """The settings, or exit code 2 and what is wrong with them."""
    try:
        return load_settings(config)
    except SettingsError as error:
        console.print(f"configuration: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def model_or_exit(settings: Settings) -> Path:
    """The small model's folder, pulled if need be, or exit code 1 and why it cannot be had."""
    try:
        with progress_bar(console) as on_progress:
            return resolve_model(settings.small.model, settings.cache_folder, on_progress).path
    except WeightsError as error:
        console.print(f"small.model: {error}", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


@contextlib.contextmanager
def progress_bar(console: Console) -> Iterator[OnProgress]:
    """Yields `on_progress(stage, done, total)`: one bar a stage; a total of None only pulses."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, total: int | None) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=done, total=total)

        yield on_progress
