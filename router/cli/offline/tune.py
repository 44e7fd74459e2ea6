"""`smallcall tune`: thresholds for traces, with what they promise and what they do, and a bundle to serve."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console

from router.cli.offline.ledger_source import LEDGER_HELP, check_source
from router.cli.offline.tune_inputs import Judging, cases_asked, judging, judging_request, large_arm
from router.cli.offline.tune_ledger import tune_ledger

if TYPE_CHECKING:
    from evaluation.cases.case import Case
    from evaluation.traces.table import Trace
    from evaluation.tuning.bundle import Money, Origin
    from evaluation.tuning.rows import Rows
    from evaluation.tuning.tune import Goal, Tuning
    from policies.bundle.manifest import Manifest
    from policies.rules.judge import Judge

console = Console()


def tune(
    context: typer.Context,
    small: Annotated[
        Path | None, typer.Argument(help="trace of the small arm, with signals", exists=True, show_default=False)
    ] = None,
    ledger: Annotated[str | None, typer.Option(help=LEDGER_HELP)] = None,
    since: Annotated[str | None, typer.Option(help="first day of the ledger's decisions, such as 2026-11-01")] = None,
    until: Annotated[str | None, typer.Option(help="last day")] = None,
    cases: Annotated[str, typer.Option(help="the set that the trace is of, or a file of cases")] = "bfcl",
    large: Annotated[str | None, typer.Option(help="a recorded model of BFCL, or the trace of the large arm")] = None,
    right_at_usd: Annotated[
        float | None, typer.Option(help="simulate a large model that is always right, at this price a request")
    ] = None,
    large_latency_s: Annotated[float | None, typer.Option(help="of the simulated large model", min=0)] = None,
    large_model: Annotated[
        str | None, typer.Option(help="the large model's name in the gateway's configuration, where it is another")
    ] = None,
    max_harm: Annotated[
        float | None, typer.Option(help="certify: at most this share of all requests made worse", min=0, max=1)
    ] = None,
    min_pass_rate: Annotated[float | None, typer.Option(help="as observed", min=0, max=1)] = None,
    quality_of_large: Annotated[
        float | None, typer.Option(help="pass rate over the large model's, as observed", min=0)
    ] = None,
    max_cost: Annotated[float | None, typer.Option(help="over always-large, as observed", min=0)] = None,
    confidence: Annotated[float, typer.Option(help="of the certificate", min=0.5, max=0.9999)] = 0.9,
    judge: Annotated[Path | None, typer.Option(help="folder of a classifier, as `smallcall fit` writes it")] = None,
    score: Annotated[str, typer.Option(help="without a judge: a score of policies.rules.scores")] = "weakest_token",
    tool_class: Annotated[
        list[str] | None, typer.Option(help="PATTERN=RATE, such as 'delete_*=0.01'; the rest has --max-harm")
    ] = None,
    staged: Annotated[bool, typer.Option(help="gates on request and plan, too, where they pay")] = False,
    judge_request: Annotated[
        Path | None, typer.Option(help="of the request's gate; without: the tools offered")
    ] = None,
    judge_plan: Annotated[Path | None, typer.Option(help="of the plan's gate; without: its weakest token")] = None,
    cost_weight: Annotated[
        float | None, typer.Option(help="with --staged: of cost against time; else one half", min=0, max=1)
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option(help="budget of the large model; the threshold follows it")
    ] = None,
    pass_per_usd: Annotated[
        float, typer.Option(help="pass rate that a dollar of the large model must buy", min=0)
    ] = 0.0,
    pass_per_second: Annotated[float, typer.Option(help="pass rate that a second must buy", min=0)] = 0.0,
    input_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 2.5,
    output_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 10.0,
    small_usd_per_hour: Annotated[float, typer.Option(help="what the small model's machine costs")] = 0.10,
    out: Annotated[Path | None, typer.Option(help="write the bundle into this new folder")] = None,
) -> None:
    """Choose thresholds on one part of a trace, or of a ledger's decisions, and tell on another what they do."""
    from evaluation.replay.replay import ReplayError
    from evaluation.traces.table import TraceError, read_trace
    from evaluation.tuning.bundle import Money, Origin
    from policies.bundle.bundle import BundleError

    goals: dict[Goal, float | None] = {
        "max_harm": max_harm,
        "min_pass_rate": min_pass_rate,
        "quality_of_large": quality_of_large,
        "max_cost": max_cost,
    }
    goal, target = _goal(goals)
    money = Money(usd_per_hour, pass_per_usd, pass_per_second)
    check_source(context, small, ledger, (*goals, "confidence", "small_usd_per_hour"))
    if small is not None and (large is None) == (right_at_usd is None):
        raise typer.BadParameter("give one of --large, --right-at-usd")
    if large_latency_s is not None and right_at_usd is None:
        raise typer.BadParameter("--large-latency-s is for --right-at-usd: a trace tells its own latencies")
    _check_shape(goal, bool(tool_class), staged, money)
    if not staged and any((judge_request, judge_plan, cost_weight is not None)):
        raise typer.BadParameter("--judge-request, --judge-plan and --cost-weight are for --staged")
    try:
        if small is None:
            days, delta = (since, until), 1 - confidence
            tune_ledger(str(ledger), days, goal, target, delta=delta, small_usd_per_hour=small_usd_per_hour)
            return
        main, trace = judging(judge, score), read_trace(small)
        known = cases_asked(trace, cases)
        if right_at_usd is not None:
            from evaluation.tuning.tune import always_right

            other = always_right(trace, usd_a_request=right_at_usd, latency_s=large_latency_s)
        else:
            other = large_arm(known, str(large), input_price, output_price)
        named = large_model or (other.info.arm if right_at_usd is None else None)
        made_by = "smallcall " + " ".join(sys.argv[1:])
        origin = Origin(main.spec, trace.info.serving, named, small_usd_per_hour, made_by)
        work = _Work(known, trace, other, main.judge, small_usd_per_hour, 1 - confidence)
        given: dict[str, Judging] = {"classifier": main}
        if staged:
            given |= {
                "request": judging_request(judge_request),
                "plan": judging(judge_plan, "weakest_token", "classifier_plan"),
            }
            manifest = _staged(work, origin, target, 0.5 if cost_weight is None else cost_weight, given)
        elif tool_class:
            manifest = _classes(work, origin, target, tool_class)
        else:
            manifest = _threshold(work, origin, goal, target, money)
        if out is not None:
            _write(out, manifest, given.values())
    except (TraceError, ReplayError, BundleError, LookupError, ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


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

    def rows_of(self, cases: Sequence[Case]) -> Rows:
        from evaluation.tuning.rows import Rows

        return Rows.of(
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


def _goal(goals: Mapping[Goal, float | None]) -> tuple[Goal, float]:
    given = [(goal, value) for goal, value in goals.items() if value is not None]
    if len(given) != 1:
        options = ", ".join(f"--{goal.replace('_', '-')}" for goal in goals)
        raise typer.BadParameter(f"give exactly one of {options}")
    return given[0]


def _threshold(work: _Work, origin: Origin, goal: Goal, target: float, money: Money) -> Manifest:
    from evaluation.tuning.bundle import threshold_manifest
    from policies.bundle.manifest import ScoreJudge
    from router.cli.offline.tune_tables import choices_table

    tuning = work.tuned(goal, target)
    console.print(choices_table(tuning))
    console.print(
        f"chosen on {len(tuning.choosing)} rows ({len(tuning.choosing.one_each)} conversations), told on "
        f"{len(tuning.telling)} others that share no conversation and no called tool with them",
        highlight=False,
    )
    threshold = tuning.chosen.operating.threshold
    if threshold is None:
        console.print("nothing can be chosen: let everything go large (policy: {kind: large_only})", markup=False)
    elif isinstance(origin.judge, ScoreJudge) and not money.given:
        console.print("policy for the configuration file, without a certificate:")
        policy = {"policy": {"kind": "threshold", "score": work.judge.name, "threshold": threshold}}
        console.print(yaml.safe_dump(policy, sort_keys=False), markup=False, highlight=False)
    return threshold_manifest(tuning, origin, money)


def _classes(work: _Work, origin: Origin, rest: float, patterns: Sequence[str]) -> Manifest:
    from evaluation.tuning.bundle import class_manifest
    from evaluation.tuning.by_tool_class import tune_classes
    from policies.rules.tool_classes import REST
    from router.cli.offline.tune_tables import classes_table

    alphas = {REST: rest}
    for told in patterns:
        pattern, _, value = told.rpartition("=")
        if not pattern or pattern in alphas:
            raise ValueError(f"--tool-class {told}: must be PATTERN=RATE, each pattern once")
        try:
            alphas[pattern] = float(value)
        except ValueError:
            raise ValueError(f"--tool-class {told}: {value!r} is no rate") from None
    tuning = work.tuned("max_harm", rest)
    made = tune_classes(tuning.choosing, tuning.telling, alphas, delta=work.delta)
    console.print(classes_table(made))
    return class_manifest(made, tuning, origin)


def _staged(work: _Work, origin: Origin, alpha: float, cost_weight: float, given: Mapping[str, Judging]) -> Manifest:
    from evaluation.tuning.bundle import staged_manifest
    from evaluation.tuning.by_stage import tune_stages
    from router.cli.offline.tune_tables import stages_table

    request, plan = given["request"], given["plan"]
    made = tune_stages(
        work.cases, work.rows_of, request.judge, plan.judge, alpha=alpha, delta=work.delta, cost_weight=cost_weight
    )
    console.print(stages_table(made))
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
    from policies.bundle.manifest import ClassifierJudge

    wanted = {spec.folder for spec in manifest.judges() if isinstance(spec, ClassifierJudge)}
    folders = {
        one.spec.folder: one.folder
        for one in given
        if isinstance(one.spec, ClassifierJudge) and one.folder is not None and one.spec.folder in wanted
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
