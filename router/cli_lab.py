"""`smallcall study ablations | ranks`: what in a training recipe is worth its place. They may take hours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from router.checkout import given, provenance

console = Console()

ABLATED = "ablation"
"""The recipe that is taken apart: the shipped adapter's newest, from the bare base and in steps for a small budget."""
Recipes = Annotated[str, typer.Option(help="a recipe's name, or a YAML file")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default")]
LossRows = Annotated[int, typer.Option(min=2, help="rows of each set that the loss is measured on")]


def ablations(
    recipe: Recipes = ABLATED,
    base: Annotated[str | None, typer.Option(help="another base: a known model, or a folder")] = None,
    data: Annotated[Path | None, typer.Option(help="rows of your own in the project's format", exists=True)] = None,
    tokens: Annotated[int, typer.Option(min=1, help="of each arm")] = 30_000,
    loss_rows: LossRows = 80,
    pass_rows: Annotated[int, typer.Option(min=0, help="rows of each set to be drafted; 0: none")] = 20,
    only: Annotated[list[str] | None, typer.Option(help="one arm by its name; repeat for more")] = None,
    keep_models: Annotated[bool, typer.Option(help="keep models of which every weight was trained")] = False,
    threads: Threads = None,
    folder: Annotated[Path, typer.Option(help="runs; an arm that is done is not run again")] = Path("var/ablations"),
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
    list_: Annotated[bool, typer.Option("--list", help="print the arms and do nothing")] = False,
) -> None:
    """Train the recipe with one thing changed at a time, and write ablations.md and ablations.json after each arm."""
    from evaluation.cases import load_cases
    from evaluation.loss_table import render_losses, write_losses
    from router.ablations import ABOUT, Measure, run_arm
    from router.cli_progress import progress_bar
    from router.cli_train import shipped_data
    from router.settings import load_settings
    from slm.ablations import SHIPPED, ablation_rows, arms_of, budgeted
    from slm.recipe import load_recipe
    from slm.weights import resolve_model

    chosen = load_recipe(recipe)
    arms = {name: budgeted(one, tokens) for name, one in arms_of(chosen).items()}
    if unknown := set(only or ()) - arms.keys():
        raise typer.BadParameter(f"no arm {min(unknown)!r}; there are: {', '.join(arms)}", param_hint="--only")
    if list_:
        console.print("\n".join(arms), markup=False, highlight=False)
        return
    settings = load_settings()
    model = resolve_model(base or chosen.base, settings.cache_folder).path
    own = folder / f"{chosen.name}-{tokens}"
    own.mkdir(parents=True, exist_ok=True)
    source = data or shipped_data()
    rows = ablation_rows(source, own / "rows.jsonl.gz", chosen.data.validation_share)
    cases = {case.id: case for case in load_cases(source)} if pass_rows else {}
    measure = Measure(rows, cases, loss_rows, pass_rows, settings.small)
    if threads is not None:
        from slm.model import use_threads

        use_threads(threads)
    if not rows.known or not rows.unseen:
        raise typer.BadParameter("too few rows: none is left to measure on", param_hint="--data")
    sizes = ["--tokens", tokens, "--loss-rows", loss_rows, "--pass-rows", pass_rows]
    others = [*given("--base", base), *given("--data", data), *given("--only", *(only or ()))]
    facts = provenance("smallcall study ablations", "--recipe", recipe, *sizes, *others, *given("--threads", threads))
    done = []
    try:
        with progress_bar(console) as tell:
            for name, arm in arms.items():
                if name == SHIPPED or only is None or name in only:
                    done.append(run_arm(name, arm, model, measure, own, tell, keep_model=keep_models))
                    write_losses(out, "ablations", render_losses("Ablations", ABOUT, done, SHIPPED, facts), done, facts)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    console.print(render_losses("Ablations", ABOUT, done, SHIPPED, facts), markup=False, highlight=False)


RANKS = (4, 8, 16, 32, 64, 128)
_RANKS_ABOUT = (
    "The change that a full fine-tune made to every linear layer but the head, cut down to its best approximation of a "
    "rank; embeddings and norms are the base's, as an adapter has them. *change*: minus the loss of the model as "
    "trained, row by row, with its 95 % interval. *known tools*: validation conversations; *held-out tools*: rows of "
    "the `heldout_tools` test set."
)


def ranks(
    model: Annotated[Path, typer.Argument(help="a model folder of which every weight was trained", exists=True)],
    recipe: Annotated[str, typer.Option(help="that it was trained by: says which rows were kept out")] = "smollm2-135m",
    base: Annotated[str | None, typer.Option(help="what it was trained from; the recipe's base by default")] = None,
    rank: Annotated[list[int] | None, typer.Option(min=1, help="one rank; repeat for more")] = None,
    loss_rows: LossRows = 150,
    threads: Threads = None,
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
) -> None:
    """Find the largest low-rank delta that a full fine-tune needs, and write ranks.md and ranks.json."""
    from evaluation.loss_table import render_losses, write_losses
    from router.cli_progress import progress_bar
    from router.ranks import WHOLE, rank_losses
    from router.settings import load_settings
    from slm.recipe import load_recipe
    from slm.weights import resolve_model

    chosen = load_recipe(recipe)
    folder = resolve_model(base or chosen.base, load_settings().cache_folder).path
    wanted = rank or list(RANKS)
    with progress_bar(console) as tell:
        arms = rank_losses(model, folder, chosen, wanted, loss_rows, tell, threads=threads)
    others = [*given("--rank", *(rank or ())), *given("--base", base), *given("--threads", threads)]
    facts = provenance("smallcall study ranks", model.name, "--recipe", recipe, "--loss-rows", loss_rows, *others)
    page = render_losses("Low-rank deltas of a full fine-tune", _RANKS_ABOUT, arms, WHOLE, facts)
    write_losses(out, "ranks", page, arms, facts)
    console.print(page, markup=False, highlight=False)
