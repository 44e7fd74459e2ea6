"""`smallcall tune`: a threshold for traces, with what it promises and what it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from evaluation.cases import Case
    from evaluation.trace_table import Trace
    from evaluation.tuning import Tuning

console = Console()


def tune(
    small: Annotated[Path, typer.Argument(help="trace of the small arm, with signals", exists=True)],
    cases: Annotated[str, typer.Option(help="the set that the trace is of")] = "bfcl",
    large: Annotated[str | None, typer.Option(help="a recorded model of BFCL")] = None,
    right_at_usd: Annotated[
        float | None, typer.Option(help="simulate a large model that is always right, at this price a request")
    ] = None,
    max_harm: Annotated[
        float | None, typer.Option(help="certify: at most this share of all requests made worse", min=0, max=1)
    ] = None,
    min_pass_rate: Annotated[float | None, typer.Option(help="as observed, without a guarantee", min=0, max=1)] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="over always-large, as observed, without a guarantee", min=0)
    ] = None,
    confidence: Annotated[float, typer.Option(help="of the certificate", min=0.5, max=0.9999)] = 0.9,
    score: Annotated[str, typer.Option(help="a score of policies.confidence")] = "weakest_token",
    input_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 2.5,
    output_price: Annotated[float, typer.Option(help="of the large model, USD per million tokens")] = 10.0,
    small_usd_per_hour: Annotated[float, typer.Option(help="what the small model's machine costs")] = 0.10,
) -> None:
    """Choose a threshold on one part of a trace and tell on the other what it does."""
    from evaluation.case_sets import case_set
    from evaluation.replay import ReplayError
    from evaluation.trace_table import TraceError, read_trace
    from evaluation.tuning import always_right
    from evaluation.tuning import tune as choose

    goals = {"max_harm": max_harm, "min_pass_rate": min_pass_rate, "max_cost": max_cost}
    given = [(goal, value) for goal, value in goals.items() if value is not None]
    if len(given) != 1:
        raise typer.BadParameter("give one of --max-harm, --min-pass-rate, --max-cost")
    if (large is None) == (right_at_usd is None):
        raise typer.BadParameter("give one of --large, --right-at-usd")
    goal, target = given[0]
    try:
        trace, known = read_trace(small), case_set(cases)
        asked = {row.case_id for row in trace.rows}
        chosen_cases = [case for case in known if case.id in asked]
        if right_at_usd is not None:
            other = always_right(trace, usd_a_request=right_at_usd)
        else:
            other = _recorded(chosen_cases, str(large), input_price, output_price)
        made = choose(
            chosen_cases,
            trace,
            other,
            goal=goal,  # type: ignore[arg-type]  # a key of `goals`
            target=target,
            delta=1 - confidence,
            score=score,
            small_usd_per_hour=small_usd_per_hour,
        )
    except (TraceError, ReplayError, LookupError, ValueError) as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    console.print(_table(made))
    console.print(
        f"chosen on {made.choosing_rows} rows ({made.certifying_rows} conversations certify), told on "
        f"{made.telling_rows} others that share no conversation and no called tool with them",
        highlight=False,
    )
    threshold = made.chosen.operating.threshold
    if threshold is None:
        console.print("nothing can be chosen: let everything go large (policy: {kind: large_only})", markup=False)
        return
    console.print("policy for the configuration file:")
    policy = {"policy": {"kind": "threshold", "score": score, "threshold": threshold}}
    console.print(yaml.safe_dump(policy, sort_keys=False), markup=False, highlight=False)


def _recorded(cases: list[Case], large: str, input_price: float, output_price: float) -> Trace:
    from evaluation.chat_client import TokenPrices
    from evaluation.recorded_index import served_name
    from evaluation.recording_trace import trace_of_recording
    from evaluation.recordings import StudyData

    prices = TokenPrices(input_usd_per_mtok=input_price, output_usd_per_mtok=output_price)
    answers = StudyData.of_checkout().recording(large)
    return trace_of_recording(cases, answers, arm=served_name(large), prices=prices, command="smallcall tune")


def _table(made: Tuning) -> Table:
    from evaluation.report_text import percent

    table = Table(title=f"threshold on {made.score}")
    for header in ("goal", "threshold", "answered small", "pass rate", "always large", "cost", "harm", "certificate"):
        table.add_column(header)
    for choice in made.choices:
        at, shown = choice.operating, choice.certificate
        certified = "none: observed only"
        if choice.goal == "max_harm":
            certified = "nothing could be certified"
            if shown is not None:
                certified = f"harm ≤ {shown.alpha:.1%} with {1 - shown.delta:.0%} ({shown.errors} of {shown.rows})"
        table.add_row(
            f"{choice.goal} {choice.target:g}" + (" ◀" if choice is made.chosen else ""),
            "–" if at.threshold is None else f"{at.threshold:.4f}",
            f"{at.share_small:.1%}",
            percent(at.passed),
            f"{at.large_passed:.1%}",
            f"{at.cost:.1%}",
            percent(at.harmed),
            certified,
        )
    return table
