"""`smallcall fit`: a judge of the small model's drafts, from traces whose answers were scored."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from policies.types import Stage
from router.cli.output.tables import show

if TYPE_CHECKING:
    from evaluation.report.sheet import Sheet
    from evaluation.tuning.judge_quality import FitReport

console = Console()


def fit(
    trace: Annotated[list[Path], typer.Argument(help="traces of the small arm, with signals", exists=True)],
    cases: Annotated[list[str], typer.Option(help="a set that the traces are of, or a file of cases; repeat for more")],
    out: Annotated[Path, typer.Option(help="the folder to write the judge and its report into")],
    stage: Annotated[Stage, typer.Option(help="judge by what stands before, during or after the draft")] = Stage.AFTER,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
) -> None:
    """Fit a classifier on scored drafts, calibrate it out of fold, and say how good it is on known and unseen tools."""
    import numpy as np

    from evaluation.cases.sets import cases_of
    from evaluation.replay.feature_table import label
    from evaluation.traces.table import TraceError, read_trace
    from evaluation.tuning.judge_quality import fit_report
    from evaluation.tuning.judge_quality_text import write_report
    from policies.classifier.estimator import save_estimator
    from policies.classifier.fit import FitError, fit_and_check
    from router.cli.provenance import commit

    try:
        known = [case for name in dict.fromkeys(cases) for case in cases_of(name)]
        traces = [read_trace(path) for path in trace]
        labelled = label(known, traces)
        with console.status(f"fitting on {len(labelled.table)} drafts"):
            fitted = fit_and_check(labelled.table, seed=seed, stage=stage)
            report = fit_report(
                labelled,
                fitted,
                facts={"command": _command(trace, cases, stage, seed), "commit": commit()},
                traces=[
                    {"file": path.name, "rows": len(one.rows), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
                    for path, one in zip(trace, traces, strict=True)
                ],
                rng=np.random.default_rng(seed),
            )
    except (TraceError, FitError, LookupError, FileNotFoundError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    out.mkdir(parents=True, exist_ok=True)
    fitted.classifier.save(out)
    save_estimator(fitted.estimator, out)
    paths = write_report(report, out)
    show(_sheet(report), console)
    for path in (out / "classifier.json", *paths):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _command(traces: list[Path], cases: list[str], stage: Stage, seed: int) -> str:
    sets = " ".join(f"--cases {shlex.quote(name)}" for name in dict.fromkeys(cases))
    files = " ".join(shlex.quote(path.name) for path in traces)
    return f"smallcall fit {files} {sets} --stage {stage.value} --seed {seed}"


def _sheet(report: FitReport) -> Sheet:
    from evaluation.report.sheet import Sheet
    from evaluation.tuning.judge_quality_text import auroc_text

    rows = []
    for protocol in report.protocols:
        for one in (protocol.all, *protocol.by_kind):
            numbers = ("–" if value is None else f"{value:.4f}" for value in (one.ece, one.brier))
            rows.append((protocol.name, one.name, str(one.n), auroc_text(one), *numbers))
    title = f"{report.model} on {report.rows} drafts, {report.passed} right; out of fold, valid drafts"
    return Sheet(("tools", "outcome", "n", "AUROC", "ECE", "Brier"), rows, title, folds=("tools", "outcome"))
