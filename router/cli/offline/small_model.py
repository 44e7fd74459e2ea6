"""`smallcall study slm | failures | tools`: the small model alone, how it fails, and how it does among many tools."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from router.cli.provenance import commit, given, provenance

if TYPE_CHECKING:
    from router.settings import Small

console = Console()
Threads = Annotated[int, typer.Option(min=1, help="CPU threads; part of what makes answers the same")]
Answers = Annotated[Path, typer.Option(help="tables of answers; a run that was cut short goes on")]


SETS = ("bfcl", "in_domain", "heldout_tools", "new_agents", "toolbench")
ON_DEMAND = ("toolbench_recorded", "validation")
"""Sets that are taken where `--only` names them."""
MODELS = ("gpt-4o-2024-08-06-FC", "claude-3-5-sonnet-20240620-FC", "Salesforce_xLAM-1b-fc-r")


def slm(
    per_group: Annotated[int, typer.Option(min=0, help="cases of each group of a set, drawn by hash; 0: all")] = 60,
    only: Annotated[
        list[str] | None, typer.Option(help=f"one set of {', '.join((*SETS, *ON_DEMAND))}; repeat for more")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="one arm; repeat for more")] = None,
    adapter: Annotated[str, typer.Option(help="the tuned arms' adapter: shipped, or a folder")] = "shipped",
    model: Annotated[list[str] | None, typer.Option(help="recorded models to stand beside; repeat for more")] = None,
    threads: Threads = 1,
    folder: Answers = Path("var/slm"),
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
) -> None:
    """Score the small model alone, with and without grammar and adapter: slm.md and slm.json."""
    from evaluation.studies.small_model.scores import render_markdown, write
    from router.cli.common import progress_bar
    from router.lab.score_small import ARMS, COMMAND, arm_of, collect_arm, scores_of
    from router.settings import load_settings
    from slm.weights.registry import resolve_model

    _known(arm or (), tuple(ARMS), "arm", "--arm")
    _known(only or (), (*SETS, *ON_DEMAND), "set", "--only")
    settings = load_settings()
    small = settings.small.model_copy(update={"adapter": adapter})
    base = resolve_model(small.model, settings.cache_folder)
    arms = [arm_of(name, small, base) for name in ARMS]
    chosen = [one for one in arms if arm is None or one.name in arm]
    sets = dict.fromkeys(only or SETS, per_group or None)
    with _tables(), progress_bar(console) as on_progress:
        for one in chosen:
            asyncio.run(collect_arm(one, sets, folder, on_progress, threads=threads))
    options = [
        f"--per-group {per_group}",
        *(f"--only {name}" for name in only or ()),
        *(f"--arm {name!r}" for name in arm or ()),
        f"--threads {threads}",
    ]
    facts = _facts(" ".join((COMMAND, *options)), small)
    scores = scores_of(arms, sets, folder, model or MODELS)
    for path in write(scores, out, facts):
        console.print(f"wrote {path}", highlight=False)
    console.print(render_markdown(scores, facts), markup=False, highlight=False)


def failures(
    only: Annotated[
        list[str] | None, typer.Option(help=f"one set of {', '.join((*SETS, *ON_DEMAND))}; repeat for more")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="failures of each set to be told, drawn by hash")] = 50,
    arm: Annotated[str, typer.Option(help="an arm of `study slm`")] = "tuned",
    adapter: Annotated[str, typer.Option(help="the tuned arms' adapter: shipped, or a folder")] = "shipped",
    folder: Answers = Path("var/slm"),
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
) -> None:
    """Sort the failures that `study slm` left in its tables by kind, and tell a sample of each set: failures.md."""
    from evaluation.cases.sets import case_set
    from evaluation.studies.small_model.failures import render_failures, set_failures
    from evaluation.traces.table import read_trace
    from router.lab.score_small import ARMS, arm_of
    from router.settings import load_settings
    from slm.weights.registry import resolve_model

    _known((arm,), tuple(ARMS), "arm", "--arm")
    _known(only or (), (*SETS, *ON_DEMAND), "set", "--only")
    settings = load_settings()
    small = settings.small.model_copy(update={"adapter": adapter})
    chosen = arm_of(arm, small, resolve_model(small.model, settings.cache_folder))
    tables = {name: chosen.table(folder, name) for name in only or SETS}
    found = {name: path for name, path in tables.items() if path.is_file()}
    if not found:
        missing = ", ".join(map(str, tables.values()))
        console.print(f"no answers to read: run `smallcall study slm --arm {arm!r}` first ({missing})", markup=False)
        raise typer.Exit(1)
    made = [set_failures(name, case_set(name), read_trace(path).rows) for name, path in found.items()]
    options = " ".join((f"--arm {arm!r}", f"--rows {rows}", *(f"--only {name}" for name in only or ())))
    facts = _facts(f"smallcall study failures {options}", chosen.small)
    out.mkdir(parents=True, exist_ok=True)
    page = render_failures(made, rows, facts)
    (out / "failures.md").write_text(page, encoding="utf-8")
    console.print(render_failures(made, 0, facts), markup=False, highlight=False)
    console.print(f"wrote {out / 'failures.md'}", highlight=False)


@contextlib.contextmanager
def _tables() -> Iterator[None]:
    """A table of answers that cannot be read or written, such as one that another run writes, ends the command."""
    from evaluation.traces.table import TraceError

    try:
        yield
    except TraceError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _known(asked: Sequence[str], known: Sequence[str], what: str, option: str) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise typer.BadParameter(f"no {what} {unknown[0]!r}; there are: {', '.join(known)}", param_hint=option)


def _facts(command: str, small: Small) -> dict[str, str]:
    """What a page of figures says of its making."""
    from slm.weights.folders import read_adapter

    facts = {"command": command, "commit": commit()}
    if small.adapter_folder is not None:
        facts["adapter"] = read_adapter(small.adapter_folder).sha256
    return facts


def tools(
    rows: Annotated[int, typer.Option(min=1, help="requests of each set")] = 40,
    count: Annotated[list[int] | None, typer.Option(min=1, help="tools offered; repeat for more")] = None,
    shortlist: Annotated[
        list[str] | None, typer.Option(help="what the model is shown: none, bm25, embedding; repeat for more")
    ] = None,
    adapter: Annotated[str, typer.Option(help="shipped, none, or a folder")] = "shipped",
    drafts: Annotated[bool, typer.Option(help="--no-drafts: recall of the shortlists only")] = True,
    threads: Threads = 1,
    folder: Answers = Path("var/slm"),
    out: Annotated[Path, typer.Option()] = Path("evaluation/results"),
) -> None:
    """Pass rate by number of tools offered, and the recall of shortlists: slm_tools.md and slm_tools.json."""
    import msgspec

    from evaluation.studies.small_model.tool_counts import COUNTS, render_tool_counts
    from router.cli.common import progress_bar
    from router.lab.score_small import StudyArm
    from router.lab.tool_counts import COMMAND, crowded_cases, recalls, tool_rates
    from router.settings import Shortlist, load_settings
    from slm.engine.model import load
    from slm.weights.registry import resolve_model

    kinds = shortlist or ["none", "bm25", "embedding"]
    settings = load_settings()
    small = settings.small.model_copy(update={"adapter": adapter, "dtype": "float32"})
    base = resolve_model(small.model, settings.cache_folder)
    cases = crowded_cases(rows, tuple(count or COUNTS))
    rates = []
    with _tables(), progress_bar(console) as on_progress:
        for kind in kinds if drafts else ():
            own = small.model_copy(update={"shortlist": Shortlist.model_validate({"kind": kind})})
            arm = StudyArm("all shown" if kind == "none" else kind, own, base)
            rates += asyncio.run(tool_rates(arm, cases, folder, on_progress, threads=threads))
        found = recalls(load(base.path, small.adapter_folder), cases, on_progress)
    options = [*given("--rows", rows), *given("--count", *(count or ())), *given("--shortlist", *(shortlist or ()))]
    options += given("--adapter", adapter if adapter != "shipped" else None)
    options += [] if drafts else ["--no-drafts"]
    facts = provenance(COMMAND, *options, "--threads", threads)
    cut = Shortlist()
    facts["shortlists"] = f"cut lists of more than {cut.keep} tools down to so many"
    out.mkdir(parents=True, exist_ok=True)
    page = render_tool_counts(rates, found, facts)
    (out / "slm_tools.md").write_text(page, encoding="utf-8")
    content = {**facts, "rates": rates, "recalls": found}
    (out / "slm_tools.json").write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    console.print(page, markup=False, highlight=False)
