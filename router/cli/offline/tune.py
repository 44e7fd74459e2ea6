"""`smallcall tune`: thresholds for traces, with what they promise and what they do, and a bundle to serve."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console

from router.cli.offline.ledger_source import LedgerDays, check_source
from router.cli.offline.tune_inputs import Judging, cases_asked, judging, judging_request, large_arm
from router.cli.offline.tune_ledger import tune_ledger
from router.cli.options import with_groups, words
from router.cli.output.tables import show
from router.cli.provenance import provenance
from router.settings import SMALL_USD_PER_HOUR

if TYPE_CHECKING:
    from evaluation.cases.case import Case
    from evaluation.traces.table import Trace
    from evaluation.tuning.bundle import Money, Origin
    from evaluation.tuning.rows import TuningRows
    from evaluation.tuning.tune import Goal, Tuning
    from policies.bundle.manifest import Manifest
    from policies.rules.judge import Judge

console = Console()


@dataclass(frozen=True, slots=True)
class LargeSide:
    """The large model: recorded, a trace, or simulated."""

    large: Annotated[str | None, typer.Option(help="a recorded model of BFCL, or the trace of the large arm")] = None
    right_at_usd: Annotated[
        float | None, typer.Option(help="simulate a large model that is always right, at this price a request")
    ] = None
    large_latency_s: Annotated[float | None, typer.Option(help="of the simulated large model", min=0)] = None
    large_model: Annotated[
        str | None, typer.Option(help="the large model's name in the gateway's configuration, where it is another")
    ] = None
    input_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 2.5
    output_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 10.0

    def trace(self, small: Trace, cases: list[Case]) -> Trace:
        """The large arm of those cases. Raises what reading a trace raises."""
        from evaluation.tuning.tune import always_right

        if self.right_at_usd is not None:
            return always_right(small, usd_a_request=self.right_at_usd, latency_s=self.large_latency_s)
        return large_arm(cases, str(self.large), self.input_price, self.output_price)

    def check(self) -> None:
        """Raises BadParameter where it is not one of the three."""
        if (self.large is None) == (self.right_at_usd is None):
            raise typer.BadParameter("give one of --large, --right-at-usd")
        if self.large_latency_s is not None and self.right_at_usd is None:
            raise typer.BadParameter("--large-latency-s is for --right-at-usd: a trace tells its own latencies")


@dataclass(frozen=True, slots=True)
class Goals:
    """What is aimed at: exactly one."""

    max_harm: Annotated[
        float | None, typer.Option(help="certify: at most this share of all requests made worse", min=0, max=1)
    ] = None
    min_pass_rate: Annotated[float | None, typer.Option(help="as observed", min=0, max=1)] = None
    quality_of_large: Annotated[
        float | None, typer.Option(help="pass rate over the large model's, as observed", min=0)
    ] = None
    max_cost: Annotated[float | None, typer.Option(help="over always-large, as observed", min=0)] = None
    confidence: Annotated[float, typer.Option(help="of the certificate", min=0.5, max=0.9999)] = 0.9

    def one(self) -> tuple[Goal, float]:
        """The goal and its value. Raises BadParameter where there is none, or more than one."""
        goals: dict[Goal, float | None] = {
            "max_harm": self.max_harm,
            "min_pass_rate": self.min_pass_rate,
            "quality_of_large": self.quality_of_large,
            "max_cost": self.max_cost,
        }
        given = [(goal, value) for goal, value in goals.items() if value is not None]
        if len(given) != 1:
            options = ", ".join(f"--{goal.replace('_', '-')}" for goal in goals)
            raise typer.BadParameter(f"give exactly one of {options}")
        return given[0]


@dataclass(frozen=True, slots=True)
class Scoring:
    """What scores a draft."""

    judge: Annotated[Path | None, typer.Option(help="folder of a classifier, as `smallcall fit` writes it")] = None
    score: Annotated[str, typer.Option(help="without a judge: a score of policies.rules.scores")] = "weakest_token"


@dataclass(frozen=True, slots=True)
class Gates:
    """Gates on request and plan, beside the threshold on the draft."""

    staged: Annotated[bool, typer.Option(help="gates on request and plan, too, where they pay")] = False
    judge_request: Annotated[Path | None, typer.Option(help="of the request's gate; without: the tools offered")] = None
    judge_plan: Annotated[Path | None, typer.Option(help="of the plan's gate; without: its weakest token")] = None
    cost_weight: Annotated[
        float | None, typer.Option(help="with --staged: of cost against time; else one half", min=0, max=1)
    ] = None

    def check(self) -> None:
        """Raises BadParameter where a gate is described that is not wanted."""
        if not self.staged and any((self.judge_request, self.judge_plan, self.cost_weight is not None)):
            raise typer.BadParameter("--judge-request, --judge-plan and --cost-weight are for --staged")


@dataclass(frozen=True, slots=True)
class PriceOptions:
    """A threshold that follows money."""

    usd_per_hour: Annotated[float | None, typer.Option(help="budget of the large model; the threshold follows it")] = (
        None
    )
    pass_per_usd: Annotated[float, typer.Option(help="pass rate that a dollar of the large model must buy", min=0)] = (
        0.0
    )
    pass_per_second: Annotated[float, typer.Option(help="pass rate that a second must buy", min=0)] = 0.0

    def money(self) -> Money:
        """The same, as a bundle is made of it."""
        from evaluation.tuning.bundle import Money

        return Money(self.usd_per_hour, self.pass_per_usd, self.pass_per_second)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tuned on, beside the trace."""

    cases: Annotated[str, typer.Option(help="the set that the trace is of, or a file of cases")] = "bfcl"
    small_usd_per_hour: Annotated[float, typer.Option(help="what the small model's machine costs")] = SMALL_USD_PER_HOUR
    tool_class: Annotated[
        list[str] | None, typer.Option(help="PATTERN=RATE, such as 'delete_*=0.01'; the rest has --max-harm")
    ] = None


@with_groups
def tune(
    context: typer.Context,
    goals: Goals,
    large: LargeSide,
    days: LedgerDays,
    scoring: Scoring,
    subject: Subject,
    gates: Gates,
    prices: PriceOptions,
    small: Annotated[
        Path | None, typer.Argument(help="trace of the small arm, with signals", exists=True, show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="write the bundle into this new folder")] = None,
) -> None:
    """Choose thresholds on one part of a trace, or of a ledger's decisions, and tell on another what they do."""
    from evaluation.replay.replay import ReplayError
    from evaluation.traces.table import TraceError
    from evaluation.tuning.bundle import serves_small
    from policies.bundle.bundle import BundleError

    goal, target = goals.one()
    of_ledgers = (*(field.name for field in fields(goals)), "small_usd_per_hour")
    check_source(context, small, days.ledger, of_ledgers)
    if small is not None:
        large.check()
    _check_shape(goal, bool(subject.tool_class), gates.staged, prices.money())
    gates.check()
    try:
        if small is None:
            delta = 1 - goals.confidence
            tune_ledger(days, goal, target, delta=delta, small_usd_per_hour=subject.small_usd_per_hour)
            return
        main = judging(scoring.judge, scoring.score)
        options = [word for group in (subject, large, goals, scoring, gates, prices) for word in words(group)]
        work, origin = _work(
            small, main, subject, large, goals.confidence, provenance("smallcall tune", small, *options)
        )
        given: dict[str, Judging] = {"classifier": main}
        if gates.staged:
            given |= {
                "request": judging_request(gates.judge_request),
                "plan": judging(gates.judge_plan, "weakest_token", "classifier_plan"),
            }
            weight = 0.5 if gates.cost_weight is None else gates.cost_weight
            manifest = _staged(work, origin, target, weight, given)
        elif subject.tool_class:
            manifest = _classes(work, origin, target, subject.tool_class)
        else:
            manifest = _threshold(work, origin, goal, target, prices.money())
        if out is not None:
            if not serves_small(manifest.policy):
                raise ValueError(f"{out}: no bundle, since there is nothing to serve by (see above)")
            _write(out, manifest, given.values())
    except (TraceError, ReplayError, BundleError, LookupError, ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _work(
    small: Path, main: Judging, subject: Subject, large: LargeSide, confidence: float, facts: Mapping[str, str]
) -> tuple[_Work, Origin]:
    """What is tuned, and what a bundle says of it."""
    from evaluation.traces.table import read_trace
    from evaluation.tuning.bundle import Origin

    trace = read_trace(small)
    known = cases_asked(trace, subject.cases)
    other = large.trace(trace, known)
    _tell_dropped(trace, known, other)
    named = large.large_model or (other.info.arm if large.right_at_usd is None else None)
    usd, made_by = subject.small_usd_per_hour, f"{facts['command']} (commit {facts['commit']})"
    origin = Origin(main.spec, trace.info.serving, named, usd, made_by)
    return _Work(known, trace, other, main.judge, usd, 1 - confidence), origin


def _tell_dropped(small: Trace, cases: Sequence[Case], large: Trace) -> None:
    """Say how many rows of the small arm are in no figure."""
    known, answered = {case.id for case in cases}, {row.case_id for row in large.rows}
    ids = {row.case_id for row in small.rows}
    for dropped, why in (
        (len(ids - known), "no case of --cases is theirs"),
        (len((ids & known) - answered), f"{large.info.arm} has no recorded answer to them"),
    ):
        if dropped:
            said = f"left out: {dropped} of the {len(ids)} rows of the small arm, since {why}"
            console.print(said, markup=False, highlight=False, soft_wrap=True)


def _check_shape(goal: Goal, tool_class: bool, staged: bool, money: Money) -> None:
    if tool_class + staged + money.given > 1:
        raise typer.BadParameter("--tool-class, --staged and money (--usd-per-hour, --pass-per-…) exclude each other")
    if (tool_class or staged) and goal != "max_harm":
        raise typer.BadParameter("--tool-class and --staged need --max-harm")


@dataclass(frozen=True)
class _Work:
    """What is tuned."""

    cases: Sequence[Case]
    small: Trace
    large: Trace
    judge: Judge
    small_usd_per_hour: float
    delta: float

    def rows_of(self, cases: Sequence[Case]) -> TuningRows:
        from evaluation.tuning.rows import TuningRows

        return TuningRows.of(
            cases,
            self.small,
            self.large,
            self.judge,
            on_no_call="escalate",
            on_ask="escalate",
            small_usd_per_hour=self.small_usd_per_hour,
            seed=0,
        )

    def tuned(self, goal: Goal, target: float) -> Tuning:
        from evaluation.tuning.tune import tune as choose

        return choose(
            self.cases,
            self.small,
            self.large,
            goal=goal,
            target=target,
            delta=self.delta,
            judge=self.judge,
            small_usd_per_hour=self.small_usd_per_hour,
        )


def _threshold(work: _Work, origin: Origin, goal: Goal, target: float, money: Money) -> Manifest:
    from evaluation.tuning.bundle import threshold_manifest
    from policies.bundle.manifest import ScoreEntry
    from router.cli.offline.tune_tables import choices_sheet

    tuning = work.tuned(goal, target)
    show(choices_sheet(tuning), console)
    console.print(
        f"chosen on {len(tuning.selection)} rows ({len(tuning.selection.one_each)} conversations), told on "
        f"{len(tuning.holdout)} others that share no conversation and no called tool with them",
        highlight=False,
    )
    threshold = tuning.chosen.operating.threshold
    if threshold is None:
        console.print("nothing can be chosen: let everything go large (policy: {kind: large_only})", markup=False)
    elif isinstance(origin.judge, ScoreEntry) and not money.given:
        console.print("policy for the configuration file, without a certificate:")
        policy = {"policy": {"kind": "threshold", "score": work.judge.name, "threshold": threshold}}
        console.print(yaml.safe_dump(policy, sort_keys=False), markup=False, highlight=False)
    return threshold_manifest(tuning, origin, money)


def _classes(work: _Work, origin: Origin, rest: float, patterns: Sequence[str]) -> Manifest:
    from evaluation.tuning.bundle import class_manifest
    from evaluation.tuning.by_tool_class import tune_classes
    from policies.rules.tool_classes import REST
    from router.cli.offline.tune_tables import classes_sheet

    alphas = {REST: rest}
    for spec in patterns:
        pattern, _, value = spec.rpartition("=")
        if not pattern or pattern in alphas:
            raise ValueError(f"--tool-class {spec}: must be PATTERN=RATE, each pattern once")
        try:
            alphas[pattern] = float(value)
        except ValueError:
            raise ValueError(f"--tool-class {spec}: {value!r} is no rate") from None
    tuning = work.tuned("max_harm", rest)
    made = tune_classes(tuning.selection, tuning.holdout, alphas, delta=work.delta)
    show(classes_sheet(made), console)
    return class_manifest(made, tuning, origin)


def _staged(work: _Work, origin: Origin, alpha: float, cost_weight: float, given: Mapping[str, Judging]) -> Manifest:
    from evaluation.tuning.bundle import staged_manifest
    from evaluation.tuning.by_stage import tune_stages
    from router.cli.offline.tune_tables import stages_sheet

    request, plan = given["request"], given["plan"]
    made = tune_stages(
        work.cases, work.rows_of, request.judge, plan.judge, alpha=alpha, delta=work.delta, cost_weight=cost_weight
    )
    show(stages_sheet(made), console)
    console.print("each of the two is certified at half of what --confidence leaves, so that both hold together")
    if made.single is None:
        console.print("nothing can be certified: let everything go large (policy: {kind: large_only})", markup=False)
    elif made.saved is not None:
        kept = "kept" if made.pays else "not outside the interval, so the single threshold stays"
        console.print(
            f"the gates save {made.saved.value:.2%} ({made.saved.low:.2%} to {made.saved.high:.2%}) of always-large's "
            f"weighed cost and time: {kept}",
            highlight=False,
        )
    else:
        console.print("no gate pays: the single threshold stays")
    return staged_manifest(made, origin, request.spec, plan.spec)


def _write(out: Path, manifest: Manifest, given: Collection[Judging]) -> None:
    from policies.bundle.bundle import load, save
    from policies.bundle.manifest import ClassifierEntry

    wanted = {spec.folder for spec in manifest.judges() if isinstance(spec, ClassifierEntry)}
    folders = {
        one.spec.folder: one.folder
        for one in given
        if isinstance(one.spec, ClassifierEntry) and one.folder is not None and one.spec.folder in wanted
    }
    digest = save(out, manifest, folders)
    bundle = load(out, digest)
    console.print(f"bundle {digest} in {out}", markup=False, highlight=False, soft_wrap=True)
    for shown in bundle.manifest.certificates:
        console.print(f"certificate {shown.id}: {shown.sentence()}", markup=False, highlight=False, soft_wrap=True)
    if bundle.manifest.made_for is None:
        console.print(
            "no certificate: the trace does not say what its drafts were made with; collect it anew from a gateway",
            highlight=False,
            soft_wrap=True,
        )
    served = {"policy": {"kind": "bundle", "path": str(out)}}
    console.print(yaml.safe_dump(served, sort_keys=False), markup=False, highlight=False, soft_wrap=True)
