"""`smallcall ab`: experiments on live traffic."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from evaluation.report.sheet import Sheet
from router.cli.output.tables import AsForm, AsJson, Form, show, write_data
from router.settings import Experiment, Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from evaluation.experiments.comparison import Difference
    from evaluation.experiments.verdict import Guardrail, State
    from router.selection.experiment_store import StoredExperiment

ab_app = typer.Typer(no_args_is_help=True)
console = Console()

_COLUMNS = ("arm", "units", "requests", "judged", "passed", "$ a request", "mean s", "p95 s", "invalid", "refused")
_ADVICE = {
    "ship": "ship: it surely loses less than the margin, and it surely costs less",
    "reject": "reject: it surely loses more than the margin, or it surely costs more",
    "stop": "stop: a guardrail has gone",
    "void": "void: the arms did not get their shares of units; find out why before anything is read off",
    "continue": "continue: nothing is sure yet",
}


def _fail(message: str, code: int) -> typer.Exit:
    console.print(message, highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(code)


@ab_app.command()
def status(
    name: Annotated[
        str, typer.Argument(help="of an experiment of the configuration or of the admin API, enabled or not")
    ],
    config: Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="JSON lines with decision_id, passed and tool_error (true, false or null)")
    ] = None,
    form: AsForm = Form.TABLE,
    as_json: AsJson = False,
) -> None:
    """Pass rate, cost and latency of each arm with confidence sequences, the sample ratio, guardrails, the ship rule.

    May be looked at as often as one likes. Exit code 1: unknown experiment, no ledger, labels that cannot be read.
    """
    from evaluation.metrics import MetricError
    from router.ledger.store import LedgerUnavailableError
    from router.selection.experiment_watch import LabelsError

    try:
        settings = load_settings(config)
    except SettingsError as error:
        raise _fail(f"configuration: {error}", 2) from None
    try:
        experiment, found, course = asyncio.run(_state(settings, name, labels))
    except (LabelsError, LedgerUnavailableError, MetricError) as error:
        raise _fail(str(error), 1) from None
    data = _plain({**dataclasses.asdict(found), "stopped": found.stopped or course.stopped, "course": course.summary})
    if not write_data(form, as_json, data, data["arms"]):
        _show(name, experiment, found, course)


async def _state(settings: Settings, name: str, labels: Path | None) -> tuple[Experiment, State, _Course]:
    from router.constants import Constants
    from router.ledger.store import Ledger
    from router.selection.experiment_store import ExperimentStore
    from router.selection.experiment_watch import experiment_state, read_labels

    known = read_labels(labels) if labels is not None else {}
    async with Ledger.open(settings.ledger.url) as ledger:
        held = await ExperimentStore(ledger.engine).all()
        made = {key: one.experiment for key, one in held.items() if one.experiment is not None} | settings.experiments
        if name not in made:
            raise _fail(f"{name}: no such experiment; there are: {', '.join(made) or 'none'}", 1)
        window_s = Constants().experiment_window_s
        found = await experiment_state(ledger, name, made[name], known, time.time(), window_s)
        return made[name], found, _course(made[name], held.get(name))


@dataclasses.dataclass(frozen=True)
class _Course:
    """Whether it runs, in words."""

    summary: str
    stopped: bool = False


def _course(experiment: Experiment, held: StoredExperiment | None) -> _Course:
    if held is not None and held.stopped_at is not None:
        by = {"admin": "by hand", "guardrail": "by a guardrail", None: "by nobody knows whom"}[held.stopped_by]
        return _Course(f"stopped on {held.stopped_at:%Y-%m-%d %H:%M} UTC {by}; it does not begin again", stopped=True)
    return _Course("enabled" if experiment.enabled else "not enabled: no request is taken in")


def _plain(value: Any) -> Any:
    """JSON has neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _show(name: str, experiment: Experiment, found: State, course: _Course) -> None:
    rows = [
        (
            arm.name,
            *map(str, (arm.units, arm.requests, arm.judged)),
            _figure(arm.pass_rate, ".1%"),
            _figure(arm.cost_usd, ".6f"),
            *(_figure(value, ".3f") for value in (arm.latency_s, arm.p95_latency_s)),
            *(_figure(value, ".1%") for value in (arm.invalid_calls, arm.tool_errors)),
        )
        for arm in found.arms
    ]
    show(Sheet(_COLUMNS, rows, f"{name}: arms", folds=("arm",)), console)
    console.print(course.summary, highlight=False)
    ratio = found.ratio
    factor = math.exp(min(ratio.log_bayes_factor, 700.0))
    verdict = "MISMATCH" if ratio.mismatch else "sound"
    console.print(
        f"sample ratio: {verdict} (Bayes factor {factor:.3g}, alarm at 1000; "
        f"χ² p = {ratio.p_value:.3g} for a single look); "
        f"{found.open_units} units are open, {found.mixed_units} were served by two arms and left out",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    for one in found.treatments:
        console.print(f"\n{one.name} against {found.arms[0].name}", highlight=False)
        for label, difference, spec in (
            ("pass rate", one.pass_rate, "+.4f"),
            ("$ a request", one.cost_usd, "+.6f"),
            ("latency, s", one.latency_s, "+.3f"),
        ):
            said = _told(difference, spec, experiment.alpha) if difference else _missing(label, found, one.name)
            console.print(f"  {label}: {said}", soft_wrap=True, highlight=False)
        for rail in one.guardrails:
            console.print(f"  guardrail {rail.name} (limit {rail.limit:g}): {_stands(rail)}", highlight=False)
        console.print(f"  {_advice(one.advice, course)}", soft_wrap=True, highlight=False)


def _stands(rail: Guardrail) -> str:
    if rail.tripped_at is not None:
        return f"GONE after {rail.tripped_at} units"
    return "stands" if math.isfinite(rail.lower) else "too few units that tell of it"


def _figure(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _advice(advice: str, course: _Course) -> str:
    """To go on is no advice for what was stopped."""
    if not course.stopped:
        return _ADVICE[advice]
    return "stopped before anything was sure" if advice == "continue" else f"stopped; {_ADVICE[advice]}"


def _missing(label: str, found: State, treatment: str) -> str:
    """Why there is no difference."""
    if not all(arm.units for arm in (found.arms[0], *(arm for arm in found.arms if arm.name == treatment))):
        open_units = f"; {found.open_units} are still open" if found.open_units else ""
        return f"not known: an arm has no unit that is closed{open_units}"
    if label != "pass rate":
        return "not known"
    judged = {arm.name: arm.judged for arm in found.arms if arm.name in (found.arms[0].name, treatment)}
    if not any(judged.values()):
        return "not known: no request of a closed unit was judged (POST /v1/feedback, or --labels)"
    counts = ", ".join(f"{name} {count}" for name, count in judged.items())
    return f"not known: too few requests were judged so far ({counts})"


def _told(difference: Difference, spec: str, alpha: float) -> str:
    if not math.isfinite(difference.lower):
        return f"{difference.difference:{spec}}, too few units for an interval"
    kept = f"; covariates left {difference.variance_kept:.0%} of the variance"
    return (
        f"{difference.difference:{spec}} [{difference.lower:{spec}}, {difference.upper:{spec}}] "
        f"at {1 - alpha:.0%}, whenever looked{kept}"
    )


@ab_app.command()
def plan(
    control: Annotated[float, typer.Option(help="pass rate of the control")],
    treatment: Annotated[float, typer.Option(help="pass rate that is to be told from it")],
    share: Annotated[float, typer.Option(help="of units that get the treatment")] = 0.5,
    alpha: Annotated[float, typer.Option(help="chance of telling a difference where there is none")] = 0.05,
    power: Annotated[float, typer.Option(help="chance of telling this one")] = 0.8,
) -> None:
    """How many units an experiment needs, for `planned_units`."""
    from evaluation.experiments.sequential import planned_for_rates
    from evaluation.metrics import MetricError

    try:
        units = planned_for_rates(control, treatment, share=share, alpha=alpha, power=power)
    except MetricError as error:
        raise _fail(str(error), 2) from None
    console.print(f"{units} units of both arms together, with one judged request each", highlight=False)
