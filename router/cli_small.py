"""`smallcall study slm`: the small model scored alone, and its answers held against those that are committed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from router.checkout import commit

if TYPE_CHECKING:
    from router.small_scores import Arm

console = Console()

SETS = ("bfcl", "in_domain", "heldout_tools", "toolbench")
MODELS = ("gpt-4o-2024-08-06-FC", "claude-3-5-sonnet-20240620-FC", "Salesforce_xLAM-1b-fc-r")
VERDICTS = "slm_bfcl_verdicts.json.gz"


def slm(
    per_group: Annotated[int, typer.Option(min=0, help="cases of each group of a set, drawn by hash; 0: all")] = 60,
    only: Annotated[list[str] | None, typer.Option(help=f"one set of {', '.join(SETS)}; repeat for more")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="one arm; repeat for more")] = None,
    adapter: Annotated[str, typer.Option(help="the tuned arms' adapter: shipped, or a folder")] = "shipped",
    model: Annotated[list[str] | None, typer.Option(help="recorded models to stand beside; repeat for more")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; part of what makes answers the same")] = 1,
    folder: Annotated[Path, typer.Option(help="tables of answers; a run that was cut short goes on")] = Path("var/slm"),
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
    check: Annotated[
        int | None,
        typer.Option(min=1, help="draft so many BFCL cases of each arm again and compare with the committed verdicts"),
    ] = None,
) -> None:
    """Score the small model alone, with and without grammar and adapter: slm.md, slm.json, verdicts case by case."""
    from evaluation.small_scores import render_markdown, write
    from evaluation.verdicts import write_verdicts
    from router.cli_progress import progress_bar
    from router.settings import load_settings
    from router.small_scores import ARMS, COMMAND, arm_of, collect_arm, scores_of, verdicts_of
    from slm.folders import read_adapter
    from slm.weights import resolve_model

    if unknown := [name for name in arm or () if name not in ARMS]:
        raise typer.BadParameter(f"no arm {unknown[0]!r}; there are: {', '.join(ARMS)}", param_hint="--arm")
    if unknown := [name for name in only or () if name not in SETS]:
        raise typer.BadParameter(f"no set {unknown[0]!r}; there are: {', '.join(SETS)}", param_hint="--only")
    settings = load_settings()
    small = settings.small.model_copy(update={"adapter": adapter})
    base = resolve_model(small.model, settings.cache_folder)
    arms = [arm_of(name, small, base) for name in ARMS]
    chosen = [one for one in arms if arm is None or one.name in arm]
    if check is not None:
        _check([one.name for one in chosen] if arm else None, arms, out / VERDICTS, check)
        return
    sets = dict.fromkeys(only or SETS, per_group or None)
    with progress_bar(console) as tell:
        for one in chosen:
            asyncio.run(collect_arm(one, sets, folder, tell, threads=threads))
    options = [
        f"--per-group {per_group}",
        *(f"--only {name}" for name in only or ()),
        *(f"--arm {name!r}" for name in arm or ()),
        f"--threads {threads}",
    ]
    facts = {"command": " ".join((COMMAND, *options)), "commit": commit()}
    if small.adapter_folder is not None:
        facts["adapter"] = read_adapter(small.adapter_folder).sha256
    scores = scores_of(arms, sets, folder, model or MODELS)
    for path in write(scores, out, facts):
        console.print(f"wrote {path}", highlight=False)
    if "bfcl" in sets:
        made = verdicts_of(arms, "bfcl", sets["bfcl"], folder, threads=threads, commit=facts["commit"])
        write_verdicts(out / VERDICTS, made)
        console.print(f"wrote {out / VERDICTS}", highlight=False)
    console.print(render_markdown(scores, facts), markup=False, highlight=False)


def _check(names: list[str] | None, arms: list[Arm], path: Path, least: int) -> None:
    """Exit code 1 where an answer differs, 2 where nothing can be compared."""
    import msgspec

    from evaluation.verdicts import read_verdicts
    from router.cli_progress import progress_bar
    from router.small_scores import check_arm

    try:
        committed = read_verdicts(path)
    except (OSError, msgspec.MsgspecError) as error:
        console.print(f"no verdicts to compare with: {error}", markup=False, highlight=False)
        raise typer.Exit(2) from None
    differ = False
    for arm in arms:
        if arm.name not in committed.arms or (names is not None and arm.name not in names):
            continue
        try:
            with progress_bar(console) as tell:
                count, found = asyncio.run(check_arm(arm, committed, least, tell))
        except ValueError as error:
            console.print(str(error), markup=False, highlight=False)
            raise typer.Exit(2) from None
        console.print(f"{arm.name}: {count} cases drafted again, {len(found)} differ", highlight=False)
        for line in found:
            console.print(f"  {line}", markup=False, highlight=False)
        differ = differ or bool(found)
    if differ:
        raise typer.Exit(1)
