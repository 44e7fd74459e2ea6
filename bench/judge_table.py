"""Decisions of rival judges on the same drafts, scored beside ours: who serves what, how much of it is right.

A judge's decision is a yes or no for each draft. Pass rate and cost are those of the cascade that it makes with the
large model; the small model is paid for on every draft.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from evaluation.cases.case import Case
from evaluation.intervals import cluster_weights, percentile_interval, weighted_means
from evaluation.metrics import Floats
from evaluation.replay.figures import Estimate
from evaluation.replay.plans import Score
from evaluation.replay.replay import Arms, join, servable_drafts
from evaluation.replay.scorers import Part
from evaluation.report.text import percent
from evaluation.traces.table import Trace
from policies.types import BoolArray

DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Drafts:
    """n drafts of one small model, with a large model's answers to the same requests."""

    name: str
    part: Part

    @property
    def arms(self) -> Arms:
        """Requests, drafts, who is right, and at what cost."""
        return self.part.arms

    def rows(self) -> Iterator[dict[str, Any]]:
        """The columns that a judge sees of each row: messages, tools and calls, arguments decoded where they are
        JSON."""
        for case, draft in zip(self.arms.cases, self.arms.drafts, strict=True):
            calls = [{"name": call.name, "arguments": _decoded(call.arguments)} for call in draft.calls]
            yield {"id": case.id, "messages": case.messages, "tools": case.tools, "calls": calls}


@dataclass(frozen=True, slots=True)
class Rival:
    """The verdicts of one package; `problems` lists why it could not be asked."""

    version: str
    accepted: Mapping[str, Sequence[bool]]
    problems: Sequence[str]


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """One judge over all drafts."""

    judge: str
    ours: bool
    served: float
    """Share of drafts that it serves."""
    right: float | None
    """Share among the served drafts; None where none is served."""
    passed: Estimate
    cost: Estimate
    """Over the large model's own."""
    harmed: float
    """Served and wrong where the large model is right, over all requests."""
    same_share: Estimate | None = None
    """Pass rate of our score at this judge's share escalated; None where there is none."""


class JudgeTable(msgspec.Struct, frozen=True, kw_only=True):
    """All judges over one small model's drafts."""

    drafts: str
    large: str
    n: int
    judges: list[Decided]
    problems: list[str]


def drafts_of(name: str, cases: Sequence[Case], small: Trace, large: Trace) -> Drafts:
    """Drafts that both arms answered. Raises ReplayError where there is none."""
    arms = join(cases, small, large, small_usd_per_hour=0.10)
    part = Part(arms, servable_drafts(arms, "escalate", "escalate"), servable_drafts(arms, "answer", "escalate"))
    return Drafts(name, part)


def compare(drafts: Drafts, rivals: Sequence[Rival], ours: Score | None, *, seed: int = 0) -> JudgeTable:
    """Score the rivals' decisions, each model alone, the oracle, and ours: by form alone, and by the score `ours`.

    Raises ValueError where a rival decided another number of drafts.
    """
    arms = drafts.arms
    n = len(arms)
    form = drafts.part.servable
    scores = None if ours is None else ours.values
    weights = np.concatenate(list(cluster_weights(arms.clusters, DRAWS, np.random.default_rng(seed))))

    def decided(judge: str, accepted: BoolArray, *, own: bool = False) -> Decided:
        return _decided(judge, accepted, arms, weights, scores=scores, ours=own)

    judges = [
        decided("small only", np.ones(n, dtype=bool)),
        _large_only(arms, weights),
        decided("oracle", ~(arms.large_pass & ~arms.small_pass)),
    ]
    for rival in rivals:
        for name, accepted in rival.accepted.items():
            if len(accepted) != n:
                raise ValueError(f"{name} decided {len(accepted)} of {n} drafts")
            judges.append(decided(name, np.asarray(accepted, dtype=bool)))
    judges.append(decided("smallcall: full schema", form, own=True))
    problems = [f"{rival.version}: {problem}" for rival in rivals for problem in rival.problems]
    return JudgeTable(drafts=drafts.name, large=arms.large_rows[0].arm, n=n, judges=judges, problems=problems)


def _decided(
    judge: str, accepted: BoolArray, arms: Arms, weights: Floats, *, scores: Floats | None, ours: bool
) -> Decided:
    served = accepted & arms.draftable
    return Decided(
        judge=judge,
        ours=ours,
        served=float(served.mean()),
        right=float(arms.small_pass[served].mean()) if served.any() else None,
        passed=_estimate(np.where(served, arms.small_pass, arms.large_pass), weights),
        cost=_cost(arms.small_cost * arms.draftable + np.where(served, 0.0, arms.large_cost), arms, weights),
        harmed=float((served & ~arms.small_pass & arms.large_pass).mean()),
        same_share=None if scores is None else _at_share(scores, int(served.sum()), arms, weights),
    )


def _at_share(scores: Floats, served: int, arms: Arms, weights: Floats) -> Estimate | None:
    """Ours where it serves as many drafts: the surest ones. None where fewer may be served at all."""
    if not 0 < served <= int(np.isfinite(scores).sum()):
        return None
    mine = np.zeros(len(scores), dtype=bool)
    mine[np.argsort(-scores, kind="stable")[:served]] = True
    return _estimate(np.where(mine, arms.small_pass, arms.large_pass), weights)


def _large_only(arms: Arms, weights: Floats) -> Decided:
    return Decided(
        judge="large only",
        ours=False,
        served=0.0,
        right=None,
        passed=_estimate(arms.large_pass, weights),
        cost=Estimate(1.0, 1.0, 1.0),
        harmed=0.0,
    )


def _estimate(values: Floats | BoolArray, weights: Floats) -> Estimate:
    low, high = percentile_interval(weighted_means(values, weights))
    return Estimate(float(np.mean(values)), float(low), float(high))


def _cost(spent: Floats, arms: Arms, weights: Floats) -> Estimate:
    low, high = percentile_interval(weighted_means(spent, weights) / weighted_means(arms.large_cost, weights))
    return Estimate(float(spent.sum() / arms.large_cost.sum()), float(low), float(high))


def _decoded(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments


def write(tables: Sequence[JudgeTable], folder: Path, facts: Mapping[str, str]) -> tuple[Path, Path]:
    """Write `judges.md` and `judges.json` into `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table = folder / "judges.md", folder / "judges.json"
    markdown.write_text(render_markdown(tables, facts), encoding="utf-8")
    content = msgspec.json.encode({**facts, "tables": list(tables)})
    table.write_bytes(msgspec.json.format(content, indent=1) + b"\n")
    return markdown, table


def render_markdown(tables: Sequence[JudgeTable], facts: Mapping[str, str]) -> str:
    """One table a small model, and what could not be run."""
    parts = [
        "# Rival judges on the same drafts",
        "\n".join(f"{name}: `{value}`  " for name, value in facts.items()),
        "Which drafts each judge would serve; a recorded large model answers what it escalates. *Right*: of the drafts "
        "served. *Harmed*: served and wrong where the large model is right, of all requests. *Ours at its share*: pass "
        "rate of our classifier where it serves as many drafts, the surest ones; it is fitted on folds that share no "
        "tool and no conversation with the drafts it is asked about. Intervals: 95 %, bootstrap of whole groups. "
        "Recorded small models have no token signals and no cost: the classifier sees their form, grounding and "
        "request alone, and their drafts count as free.",
    ]
    for table in tables:
        lines = [
            f"## Drafts of {table.drafts} before {table.large}, {table.n:,} BFCL requests\n",
            "| judge | serves | right | passes | cost of large | harmed | ours at its share |",
            "| --- | --: | --: | --: | --: | --: | --: |",
        ]
        for judge in table.judges:
            cells = [
                f"**{judge.judge}**" if judge.ours else judge.judge,
                f"{judge.served:.1%}",
                "–" if judge.right is None else f"{judge.right:.1%}",
                percent(judge.passed),
                percent(judge.cost),
                f"{judge.harmed:.1%}",
                "–" if judge.same_share is None else percent(judge.same_share),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        if table.problems:
            lines += ["\nCould not be run:\n", *(f"- {_quoted(problem)}" for problem in table.problems)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _quoted(text: str) -> str:
    """Words of another program, on one line and without markup."""
    return " ".join(text.replace("|", "/").replace("`", "'").split())
