"""The content of a report: two arms' traces in, every figure, remark and source out. Writes nothing.

The same inputs give the same content: no clock, no network, a fixed seed. Policies are the live ones, run over recorded
drafts (`evaluation.replay.replay`). What cannot be shown, such as a score whose signals were not recorded, is left out
and said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from evaluation.cases.case import Case, data_hash
from evaluation.replay.figures import CurveFigures, Point, study
from evaluation.replay.plans import Plan, Score, baselines, plan_of, plan_of_run, plans_at_shares
from evaluation.replay.prompt_routers import matrix_factorisation, prompt_logistic
from evaluation.replay.replay import Arms, join, replay, servable_drafts
from evaluation.replay.scorers import CannotJudge, Part, TrainableJudge, crossfit, of_signals
from evaluation.report.breakdown import (
    CategoryRow,
    Mistake,
    OutcomeRow,
    by_category,
    by_outcome,
    by_tool,
    count_mistakes,
    worst_mistakes,
)
from evaluation.report.reliability import Reliability, RiskCoverage, reliability, risk_coverage
from evaluation.traces.table import Trace
from policies.rules.scores import SCORES
from policies.rules.single import OnOther
from policies.types import Policy

REPORT_VERSION = 2
FEW_CLUSTERS = 30


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of a report, and what it says of its making. No secrets."""

    command: str
    commit: str | None
    version: str
    on_no_call: OnOther = "escalate"
    on_ask: OnOther = "escalate"
    scores: Sequence[str] = ("weakest_token", "mean_logprob")
    """Names of `policies.rules.scores.SCORES`; the first one leads."""
    judges: Sequence[TrainableJudge] = ()
    """More judges, such as a fitted classifier; they lead. Each is fitted on some folds and scored on the others."""
    routers: bool = True
    """True if routers that see only the prompt are fitted and shown."""
    small_usd_per_hour: float = 0.10
    """Price of the small model's machine. The default is an assumption: a cloud machine of two virtual CPUs is listed
    at about 0.08 to 0.10 USD an hour; a draft is charged the whole machine for its seconds."""
    draws: int = 1000
    seed: int = 0
    max_mistakes: int = 20
    remarks: Sequence[str] = ()
    """Further caveats that a reader must know before believing a figure."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.scores) - set(SCORES))
        if unknown:
            raise ValueError(f"scores: {', '.join(unknown)} is none of {', '.join(SCORES)}")


class ArmFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One trace of the study."""

    arm: str
    command: str
    data_sha256: str
    endpoint: dict[str, Any]
    rows: int
    failed: int
    """The number of the study's requests without an answer."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that the page shows; the JSON file is this."""

    report_version: int = REPORT_VERSION
    version: str
    command: str
    commit: str | None
    data_sha256: str
    """Over the cases that both arms answered."""
    cases: int
    clusters: int
    draws: int
    seed: int
    small_usd_per_hour: float
    on_no_call: OnOther
    on_ask: OnOther
    no_call_rule: str
    small: ArmFacts
    large: ArmFacts
    gateway: ArmFacts | None
    remarks: list[str]
    points: list[Point]
    curves: list[CurveFigures]
    categories: list[CategoryRow]
    category_plans: list[str]
    tools: list[CategoryRow]
    """The most frequent tools of right answers."""
    tools_total: int
    reliability: list[Reliability]
    risk: list[RiskCoverage]
    outcomes: list[OutcomeRow]
    mistakes: list[Mistake]
    mistakes_total: int
    mistakes_order: str


def report_of(
    cases: Sequence[Case],
    small: Trace,
    large: Trace,
    *,
    options: Options,
    policy: Policy | None = None,
    gateway: Trace | None = None,
) -> Report:
    """Work out the study of two arms.

    `policy` is one more live policy to replay, such as a gateway's own; `gateway` is the trace of a running gateway
    over the same cases, shown as it was measured. Raises ReplayError for traces that do not fit, MetricError where
    there is no cost to compare with.
    """
    arms = join(cases, small, large, small_usd_per_hour=options.small_usd_per_hour)
    servable = servable_drafts(arms, options.on_no_call, options.on_ask)
    part = Part(arms, servable, servable_drafts(arms, "answer", options.on_ask))
    scores, absent = _scores(part, options)
    plans = baselines(arms)
    for score in (score for score in scores if not score.routes):
        plans[-1:-1] = plans_at_shares(arms, score)
    if policy is not None:
        plans.append(plan_of(arms, "policy", f"policy: {policy.name}", replay(policy, arms)))
    if gateway is not None:
        plans.append(plan_of_run(arms, gateway, small_usd_per_hour=options.small_usd_per_hour))
    oracle = Score("oracle", "oracle", arms.small_pass.astype(np.float64) - arms.large_pass)
    points, curves = study(arms, plans, [*scores, oracle], draws=options.draws, seed=options.seed)
    first = next((score for score in scores if not score.routes), None)
    shown = _category_plans(plans, first)
    clusters = len(set(arms.clusters))
    tools, tools_total = by_tool(arms, shown)
    return Report(
        version=options.version,
        command=options.command,
        commit=options.commit,
        data_sha256=data_hash(arms.cases),
        cases=len(arms),
        clusters=clusters,
        draws=options.draws,
        seed=options.seed,
        small_usd_per_hour=options.small_usd_per_hour,
        on_no_call=options.on_no_call,
        on_ask=options.on_ask,
        no_call_rule=_NO_CALL_RULES[options.on_no_call],
        small=_facts(small, arms.small_failed),
        large=_facts(large, arms.large_failed),
        gateway=None if gateway is None else _facts(gateway, sum(row.passed is None for row in gateway.rows)),
        remarks=[*options.remarks, *_remarks(arms, clusters), *absent],
        points=points,
        curves=curves,
        categories=by_category(arms, shown),
        category_plans=[plan.label for plan in shown],
        tools=tools,
        tools_total=tools_total,
        reliability=reliability(arms, [score for score in scores if not score.routes]),
        risk=risk_coverage(arms, scores),
        outcomes=by_outcome(arms, servable),
        mistakes=worst_mistakes(arms, servable, first, limit=options.max_mistakes),
        mistakes_total=count_mistakes(arms, servable),
        mistakes_order="in the cases' order" if first is None else f"those surest by {first.label} first",
    )


_NO_CALL_RULES: dict[OnOther, str] = {
    "escalate": (
        "A draft that calls no tool escalates, since the user is owed prose that the small model should not write. "
        "Where no call is right, such a request therefore costs draft and large answer, and passes if the large model "
        "makes no call; only 'small only' counts the draft itself as the answer."
    ),
    "answer": (
        "A draft that calls no tool is served as an answer without text (on_no_call: answer). Where no call is right "
        "it passes, since calls alone are checked; whether an empty answer served the user is not measured. "
        "'Schema-valid drafts' are drafts of calls, whatever this setting says."
    ),
}


def _scores(part: Part, options: Options) -> tuple[list[Score], list[str]]:
    """The scores that can be worked out, and a sentence for each that cannot."""
    judges = [*options.judges, *(of_signals(name, _label(name)) for name in options.scores)]
    if options.routers:
        judges += [prompt_logistic(), matrix_factorisation()]
    scores, absent = [], []
    for judge in judges:
        try:
            scores.append(crossfit(judge, part))
        except CannotJudge as error:
            absent.append(f"No curve for {error}.")
    return scores, absent


def _label(name: str) -> str:
    return _SCORE_LABELS.get(name, name.replace("_", " "))


_SCORE_LABELS = {"weakest_token": "weakest token", "mean_logprob": "mean log-prob"}


def _category_plans(plans: Sequence[Plan], first: Score | None) -> list[Plan]:
    """The columns of the table by category: each model, valid drafts, the first score in the middle, the oracle."""
    keys = ["small_only", "large_only", "schema_valid", "oracle", "policy", "gateway"]
    if first is not None:
        keys.insert(3, f"{first.key}@0.5")
    by_key = {plan.key: plan for plan in plans}
    return [by_key[key] for key in keys if key in by_key]


def _facts(trace: Trace, failed: int) -> ArmFacts:
    info = trace.info
    return ArmFacts(
        arm=info.arm,
        command=info.command,
        data_sha256=info.data_sha256,
        endpoint=info.endpoint,
        rows=len(trace.rows),
        failed=failed,
    )


def _remarks(arms: Arms, clusters: int) -> list[str]:
    """Return the caveats that a reader must know before believing a figure."""
    out = arms.left_out
    counted = [
        (arms.small_failed, "requests of the small arm had no answer; they count as failed and as free of charge"),
        (arms.large_failed, "requests of the large arm had no answer; they count as failed and as free of charge"),
        (arms.small_unpriced, "drafts have no measured seconds and no price; they count as free of charge"),
        (out.without_small, "cases are left out: the small arm's trace lacks them"),
        (out.without_large, "cases are left out: the large arm's trace lacks them"),
        (out.without_gold, "cases are left out: nothing says what is right"),
    ]
    remarks = [f"{n:,} {text}." for n, text in counted if n]
    if clusters < FEW_CLUSTERS:
        remarks.append(f"Only {clusters} independent groups: the intervals are too narrow.")
    return remarks
