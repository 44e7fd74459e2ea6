"""`smallcall train`: fine-tune a base model by a recipe, in this process."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

import slm
from router.settings import load_settings
from slm.training.recipe import Recipe, load_recipe
from slm.weights.registry import WeightsError, resolve_model

if TYPE_CHECKING:
    from slm.training.train import Step

TRAIN_EXTRA = "training needs the extra: pip install 'smallcall[train]'"


def train(
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a YAML file.")] = "smollm2-135m",
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Rows in the project's format, or OpenAI conversations (.jsonl, .jsonl.gz); repeat.", exists=True
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Another base: a known model, or a folder.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Folder of an adapter to go on from.", exists=True, file_okay=False)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder; an unfinished run in it goes on.", show_default="runs/<recipe>")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
    score_rows: Annotated[
        int, typer.Option(min=0, help="Validation rows to be drafted at the end, on the CPU, for a pass rate; 0: none.")
    ] = 32,
    cache: Annotated[Path | None, typer.Option(help="Cache folder.", show_default="the configured cache")] = None,
) -> None:
    """Train by a recipe: an adapter (or a whole model) and what it was made of, in a run folder."""
    errors = Console(stderr=True)
    try:
        chosen = load_recipe(recipe)
        if base is not None:
            chosen = chosen.model_copy(update={"base": base})
        files = data or shipped_data()
        folder = resolve_model(chosen.base, cache or load_settings().cache_folder).path
        run = run or Path("runs") / chosen.name
        result = _run(chosen, folder, files, start, run, threads, errors)
        _tell_refused(run, errors)
        print(result)
        if score_rows:
            _score(chosen, folder, files, result, score_rows, errors)
    except (WeightsError, ValueError, OSError) as exc:
        errors.print(f"error: {exc}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from exc


def shipped_data() -> list[Path]:
    """The rows that come with the repository, public ones and hand-written ones; the installed package has none.

    Raises:
        OSError: this is not a checkout.
    """
    folder = Path(slm.__file__).parent / "data"
    paths = [folder / "train.jsonl.gz", folder / "authored"]
    if not all(path.exists() for path in paths):
        raise FileNotFoundError("the training rows come with a clone of the repository only: give --data")
    return paths


def _tell_refused(run: Path, errors: Console) -> None:
    """How many rows were left out for what: of each file, and on the way to tokens."""
    facts = json.loads((run / "data.json").read_text(encoding="utf-8"))
    parts = [*facts["files"].items(), ("training", facts["train"]), ("validation", facts["validation"])]
    for name, part in parts:
        if part["refused"]:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(part["refused"].items()))
            errors.print(f"{name}: rows left out: {reasons}", markup=False, highlight=False, soft_wrap=True)


def _score(recipe: Recipe, base: Path, files: list[Path], trained: Path, rows: int, errors: Console) -> None:
    from router.cli.common import progress_bar
    from router.lab.train_scores import score_run, validation_cases

    drawn = validation_cases(files, recipe.data.validation_share, rows)
    if not drawn.cases:
        errors.print(str(drawn), highlight=False, soft_wrap=True)
        return
    with progress_bar(errors) as on_progress:
        small = load_settings().small
        passed = score_run(recipe, base, drawn.cases, trained, small, partial(on_progress, "validation rows"))
    errors.print(f"{passed} of {drawn} right", highlight=False)


def _run(
    recipe: Recipe, base: Path, files: list[Path], start: Path | None, run: Path, threads: int | None, errors: Console
) -> Path:
    try:
        from slm.engine.model import use_threads
        from slm.training.train import train
    except ImportError as exc:
        raise ValueError(TRAIN_EXTRA) from exc
    if threads is not None:
        use_threads(threads)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=errors) as bars:
        task = bars.add_task("reading rows", total=None)

        def show(step: Step) -> None:
            parts = [f"{step.tokens:,} tokens", f"{step.left_s / 60:.0f} min left"]
            if step.loss is not None:
                parts.insert(0, f"loss {step.loss:.3f}")
            if step.validation_loss is not None:
                parts.insert(1, f"validation {step.validation_loss:.3f}")
            bars.update(task, description=", ".join(parts), completed=step.step, total=step.steps)

        return train(recipe, base, files, run, start=start, on_progress=show).folder
