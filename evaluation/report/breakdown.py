"""Where a policy gains and where it errs: figures by category, what drafts came to by kind of gold, errors to read.

Intervals by category are Wilson's, rows taken as independent: categories are too small to resample clusters in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from evaluation.cases.case import AnyCallGold, CallsGold, Case, ToldGold, ToolNamesGold
from evaluation.intervals import wilson
from evaluation.replay.figures import Estimate
from evaluation.replay.plans import Plan, Score
from evaluation.replay.replay import Arms
from evaluation.traces.table import calls_of
from policies.types import BoolArray, Outcome

MAX_TEXT_CHARS = 1200
MAX_TOOLS = 30
_NO_CALL = "no call"


class GroupRate(msgspec.Struct, frozen=True):
    """The figures of one plan in one category."""

    quality: Estimate
    escalated: float
    cost: float
    """Over the large model's own cost in the category."""


class CategoryRow(msgspec.Struct, frozen=True):
    """One category; `rates` are in the order of the plans."""

    category: str
    n: int
    rates: list[GroupRate]


class OutcomeRow(msgspec.Struct, frozen=True):
    """The number of drafts with one outcome, and how many were right, for one kind of gold."""

    gold: str
    """`calls`, `no_call`, `any_call`, `tool_names` or `told`."""
    outcome: str
    """`calls` (servable), `invalid_calls`, `no_call`, `ask`, `unparsable`, or `failed` where the request did."""
    n: int
    small_passes: int
    large_passes: int
    served: int
    """The number that may be served by the gateway as set; the rest escalates."""


class Mistake(msgspec.Struct, frozen=True):
    """A draft that may be served, is wrong, and that the large model had right. Texts are cut at MAX_TEXT_CHARS."""

    case_id: str
    category: str
    score: float | None
    reason: str
    asked: str
    tools: list[str]
    gold: str
    small: str
    large: str


def by_category(arms: Arms, plans: Sequence[Plan]) -> list[CategoryRow]:
    """One row a category, in alphabetical order."""
    category = np.array([case.category for case in arms.cases])
    return [_rates(name, category == name, arms, plans) for name in np.unique(category).tolist()]


def by_tool(arms: Arms, plans: Sequence[Plan], *, limit: int = MAX_TOOLS) -> tuple[list[CategoryRow], int]:
    """One row for each tool that right answers call, the most frequent first, and how many tools there are.

    A request that calls several tools stands in the row of each; one whose right answer is no call in none.
    """
    asked = Counter(name for case in arms.cases for name in case.gold_names)
    shown = sorted(asked, key=lambda name: (-asked[name], name))[:limit]
    rows = [_rates(name, np.array([name in case.gold_names for case in arms.cases]), arms, plans) for name in shown]
    return rows, len(asked)


def _rates(name: str, here: BoolArray, arms: Arms, plans: Sequence[Plan]) -> CategoryRow:
    n, large = int(here.sum()), float(arms.large_cost[here].sum())
    rates = []
    for plan in plans:
        passes = float(plan.passes[here].sum())
        cost = float(plan.cost_usd[here].sum())
        low, high = wilson(round(passes), n)
        escalated = float(plan.escalated[here].mean())
        rates.append(GroupRate(Estimate(passes / n, low, high), escalated, cost / large if large > 0 else 0.0))
    return CategoryRow(name, n, rates)


def by_outcome(arms: Arms, servable: BoolArray) -> list[OutcomeRow]:
    """Count the outcomes of drafts by kind of gold; rows of no case are left out."""
    count: Counter[tuple[str, str]] = Counter()
    small: Counter[tuple[str, str]] = Counter()
    large: Counter[tuple[str, str]] = Counter()
    served: Counter[tuple[str, str]] = Counter()
    for i, case in enumerate(arms.cases):
        key = (str(type(case.gold).__struct_config__.tag), _outcome(arms, servable, i))
        count[key] += 1
        small[key] += int(arms.small_pass[i])
        large[key] += int(arms.large_pass[i])
        served[key] += int(servable[i])
    return [OutcomeRow(*key, count[key], small[key], large[key], served[key]) for key in sorted(count)]


def worst_mistakes(arms: Arms, servable: BoolArray, score: Score | None, *, limit: int) -> list[Mistake]:
    """At most `limit` mistakes, those of the highest score first; without a score in the cases' order."""
    harmful = np.flatnonzero(servable & ~arms.small_pass & arms.large_pass)
    if score is not None:
        harmful = harmful[np.argsort(-score.values[harmful], kind="stable")]
    return [_mistake(arms, int(i), score) for i in harmful[:limit]]


def count_mistakes(arms: Arms, servable: BoolArray) -> int:
    """Return the number of drafts that may be served and are wrong where the large model is right."""
    return int((servable & ~arms.small_pass & arms.large_pass).sum())


def _outcome(arms: Arms, servable: BoolArray, i: int) -> str:
    draft, row = arms.drafts[i], arms.small_rows[i]
    if row.passed is None:
        return "failed"
    if draft.outcome is Outcome.CALLS and not servable[i]:
        return "invalid_calls"
    return draft.outcome.value


def _mistake(arms: Arms, i: int, score: Score | None) -> Mistake:
    case, row, draft = arms.cases[i], arms.small_rows[i], arms.drafts[i]
    return Mistake(
        case_id=case.id,
        category=case.category,
        score=None if score is None else float(score.values[i]),
        reason=row.fail_reason or "",
        asked=_cut(_asked(case)),
        tools=list(case.tool_names[:20]),
        gold=_cut(_gold(case)),
        small=_cut(_lines((call.name, call.arguments) for call in draft.calls)),
        large=_cut(_lines((call.name, call.arguments) for call in calls_of(arms.large_rows[i].calls))),
    )


def _asked(case: Case) -> str:
    content = case.messages[-1].get("content")
    return content if isinstance(content, str) else _plain(content)


def _gold(case: Case) -> str:
    match case.gold:
        case CallsGold(calls=calls):
            return _lines((call.name, _plain(call.arguments)) for call in calls)
        case ToolNamesGold(names=names):
            return "a call of " + " or ".join(names)
        case AnyCallGold():
            return "some call"
        case ToldGold():
            return "not written down: somebody said, or the large model's answer"
        case _:
            return _NO_CALL


def _lines(calls: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name} {arguments}" for name, arguments in calls) or _NO_CALL


def _plain(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + " […]"
