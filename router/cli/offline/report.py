"""`smallcall report`: cost against pass rate, of two arms' traces or of a ledger, as a table, a page and pictures."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from router.cli.costs import costs
from router.cli.offline.ledger_source import KnownBy, LedgerDays, check_source, observed_traces
from router.cli.options import with_groups, words
from router.cli.output.tables import show
from router.cli.provenance import commit
from router.settings import SMALL_USD_PER_HOUR

if TYPE_CHECKING:
    from evaluation.cases.case import Case
    from evaluation.report.content import Report
    from evaluation.traces.table import Trace

console = Console()


class _Reports(TyperGroup):
    """`smallcall report` is `smallcall report traces`: what stands behind it need not be a subcommand."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


DEFAULT = "traces"
report_app = typer.Typer(cls=_Reports)
report_app.command("costs")(costs)
LARGE = "gpt-4o-2024-08-06-FC"


@report_app.command(DEFAULT)
@with_groups
def report(
    context: typer.Context,
    days: LedgerDays,
    small: Annotated[
        str | None, typer.Argument(help="trace of the small arm, or a recorded model of BFCL", show_default=False)
    ] = None,
    labels: Annotated[
        KnownBy, typer.Option(help="of a ledger: a sample that stands for all, or whatever somebody spoke of")
    ] = KnownBy.SAMPLE,
    cases: Annotated[str, typer.Option(help="the set that the trace is of, or a file of cases")] = "bfcl",
    large: Annotated[
        str | None, typer.Option(help=f"a recorded model, or the trace of the large arm; else {LARGE}")
    ] = None,
    right_at_usd: Annotated[
        float | None, typer.Option(help="simulate a large model that is always right, at this price a request", min=0)
    ] = None,
    gateway: Annotated[Path | None, typer.Option(help="trace of a running gateway over the same cases")] = None,
    out: Annotated[Path, typer.Option()] = Path("var/report"),
    png: Annotated[bool, typer.Option(help="also write pictures for documents; needs matplotlib")] = False,
    on_no_call: Annotated[str, typer.Option(help="what a draft without a call does: escalate or answer")] = "escalate",
    classifier: Annotated[bool, typer.Option(help="fit our classifier on folds of the rows, and show it")] = True,
    input_price: Annotated[float | None, typer.Option(help="of the large model, USD per million tokens")] = None,
    output_price: Annotated[float | None, typer.Option(help="of the large model, USD per million tokens")] = None,
    small_usd_per_hour: Annotated[
        float, typer.Option(help="what the small model's machine costs")
    ] = SMALL_USD_PER_HOUR,
) -> None:
    """Cost against pass rate of a small arm's trace and a large one, or of a ledger's decisions: a table, report.html
    and report.json. `smallcall report costs` is another report: what was spent (`smallcall costs`).
    """
    from evaluation.metrics import MetricError
    from evaluation.replay.replay import ReplayError
    from evaluation.report.write import summary, write_report
    from evaluation.traces.table import TraceError

    if on_no_call not in ("escalate", "answer"):
        raise typer.BadParameter("escalate or answer", param_hint="--on-no-call")
    check_source(context, small, days.ledger, ("out", "png", "small_usd_per_hour"))
    try:
        if days.ledger is not None:
            made = _of_ledger(days, labels, small_usd_per_hour)
        else:
            assert small is not None
            prices = (input_price, output_price)
            work = _Traces(small, cases, large or LARGE, right_at_usd, gateway, prices, small_usd_per_hour)
            made = work.report(on_no_call, classifier)
        paths = write_report(made, out)
        pictures = _pictures(made, out) if png else []
    except (OSError, TraceError, ReplayError, MetricError, LookupError, ValueError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    show(summary(made), console)
    if days.ledger is not None:
        for remark in made.remarks:
            console.print(remark, markup=False, highlight=False, soft_wrap=True)
    for path in (paths.html, paths.json, *pictures):
        console.print(f"report: {path.resolve()}", soft_wrap=True, highlight=False)


def _of_ledger(days: LedgerDays, labels: KnownBy, small_usd_per_hour: float) -> Report:
    """Its URL may hold a password, and stands nowhere in the report."""
    from evaluation.report.content import Options, report_of

    given = " ".join(map(str, words(replace(days, ledger="…"))))
    command = f"smallcall report {given} --labels {labels.value}"
    found = observed_traces(days, labels=labels, command=command)
    options = Options(
        command=command,
        commit=commit(),
        version=importlib.metadata.version("smallcall"),
        small_usd_per_hour=small_usd_per_hour,
        on_no_call=found.on_no_call,
        on_ask=found.on_no_call,
        scores=(),
        judges=(found.score(),),
        routers=found.prompts_kept,
        remarks=found.remarks,
    )
    return report_of(found.cases, found.small, found.large, options=options, gateway=found.run)


@dataclass(frozen=True, slots=True)
class _Traces:
    """What a report of traces is made of."""

    small: str
    cases: str
    large: str
    right_at_usd: float | None
    gateway: Path | None
    prices: tuple[float | None, float | None]
    small_usd_per_hour: float

    @property
    def command(self) -> str:
        """Without folders."""
        return f"smallcall report {Path(self.small).name} --cases {Path(self.cases).name} " + (
            f"--large {Path(self.large).name}" if self.right_at_usd is None else f"--right-at-usd {self.right_at_usd:g}"
        )

    def report(self, on_no_call: str, classifier: bool) -> Report:
        """Raises what `report` tells of."""
        from evaluation.cases.sets import cases_of
        from evaluation.replay.classifier_scorer import ClassifierJudges
        from evaluation.report.content import Options, report_of
        from evaluation.traces.table import read_trace

        known = cases_of(self.cases)
        trace = _small(self.small, known, self.command)
        asked = {row.case_id for row in trace.rows}
        chosen = [case for case in known if case.id in asked]
        options = Options(
            command=self.command,
            commit=commit(),
            version=importlib.metadata.version("smallcall"),
            small_usd_per_hour=self.small_usd_per_hour,
            on_no_call=on_no_call,  # type: ignore[arg-type]  # checked above
            judges=ClassifierJudges().judges()[:1] if classifier else (),
        )
        arm = _large(self.large, self.right_at_usd, chosen, trace, self.prices, self.command)
        run = None if self.gateway is None else read_trace(self.gateway)
        return report_of(chosen, trace, arm, options=options, gateway=run)


def _small(name: str, cases: list[Case], command: str) -> Trace:
    """A trace, or recorded answers as drafts without signals and without cost."""
    from evaluation.cases.study_data import StudyData
    from evaluation.recorded.trace import trace_of_recording
    from evaluation.traces.table import read_trace

    if Path(name).suffix == ".parquet" or Path(name).exists():
        return read_trace(Path(name))
    answers = StudyData.of_checkout().recording(name)
    return trace_of_recording(cases, answers, arm=name, prices=None, command=command)


def _large(
    large: str,
    right_at_usd: float | None,
    cases: list[Case],
    small: Trace,
    prices: tuple[float | None, float | None],
    command: str,
) -> Trace:
    """A trace as it is, a recording at the prices given or listed, or a model that is always right."""
    from evaluation.cases.study_data import StudyData
    from evaluation.recorded.models import LARGE_MODELS, RecordedModel, trace_of
    from evaluation.traces.client import ClientPrices
    from evaluation.traces.table import read_trace
    from evaluation.tuning.tune import always_right

    if right_at_usd is not None:
        return always_right(small, usd_a_request=right_at_usd)
    if large.endswith(".parquet"):
        return read_trace(Path(large))
    listed = next((model for model in LARGE_MODELS if large in (model.name, model.recording)), None)
    if None not in prices:
        asked = ClientPrices(*(price or 0.0 for price in prices))
        recording, tokens_of = (listed.recording, listed.tokens_of) if listed else (large, None)
        listed = RecordedModel(recording, asked, tokens_of)
    if listed is None:
        known = ", ".join(model.name for model in LARGE_MODELS)
        raise ValueError(
            f"--large: {large} has no listed price (there are: {known}): give --input-price, --output-price"
        )
    return trace_of(listed, cases, StudyData.of_checkout(), command=command)


def _pictures(made: object, out: Path) -> list[Path]:
    from evaluation.report.content import Report
    from evaluation.report.pictures import PicturesUnavailableError, write_pictures

    assert isinstance(made, Report)
    try:
        return write_pictures(made, out)
    except PicturesUnavailableError as error:
        raise ValueError(f"--png: {error}") from error
