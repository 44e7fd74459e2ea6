"""The small model among 1, 5, 15, 50 and 200 tools, shown all of them or a shortlist; and the recall of shortlists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.cases.case import Case
from evaluation.cases.sets import case_set, sample
from evaluation.studies.small_model.tool_counts import RECALL_AT, Rate, Recall, crowded, pool_of
from evaluation.traces.collect import INVALID_DRAFT
from router.lab.score_small import OnProgress, StudyArm, draft_tables

if TYPE_CHECKING:
    from slm.engine.model import LoadedModel
    from slm.engine.shortlist import Ranking

SETS = ("bfcl", "heldout_tools", "in_domain")
SEED = 20
COMMAND = "smallcall study tools"


def crowded_cases(rows: int, counts: Sequence[int]) -> dict[int, list[Case]]:
    """By number of tools: so many requests of each set, the same among every number of tools."""
    sets = {name: case_set(name) for name in SETS}
    pool = pool_of(case for cases in sets.values() for case in cases)
    made: dict[int, list[Case]] = {count: [] for count in counts}
    for name, cases in sets.items():
        taken = 0
        for case in _spread(name, [one for one in cases if len(one.gold_names) == 1]):
            among = [crowded(case, count, pool, SEED) for count in counts]
            if taken < rows and all(one is not None for one in among):
                taken += 1
                for count, one in zip(counts, among, strict=True):
                    assert one is not None
                    made[count].append(one)
            if taken == rows:
                break
    return made


async def tool_rates(
    arm: StudyArm, cases: dict[int, list[Case]], folder: Path, on_progress: OnProgress, *, threads: int
) -> list[Rate]:
    """One arm among each number of tools; what was drafted before is read from `folder`."""
    tables = {f"tools-{count}": chosen for count, chosen in cases.items()}
    traces = await draft_tables(arm, tables, folder, on_progress, threads=threads, command=COMMAND)
    rates = []
    for (count, chosen), trace in zip(cases.items(), traces.values(), strict=True):
        asked = {case.id for case in chosen}
        rows = [row for row in trace.rows if row.case_id in asked]
        passed = sum(row.passed is True for row in rows)
        failed = sum(row.error not in (None, INVALID_DRAFT) for row in rows)
        rates.append(Rate(arm=arm.name, tools=count, n=len(rows), passed=passed, failed=failed))
    return rates


def recalls(loaded: LoadedModel, cases: dict[int, list[Case]], on_progress: OnProgress) -> list[Recall]:
    """Both rankings over every list of more than one tool."""
    from slm.engine.shortlist import BM25, Embedding

    made = []
    rankings: dict[str, Ranking] = {"bm25": BM25(), "embedding": Embedding(loaded)}
    for name, ranking in rankings.items():
        for count, chosen in cases.items():
            if count > 1:
                made.append(_recall(name, ranking, count, chosen, on_progress))
    return made


def _recall(name: str, ranking: Ranking, count: int, cases: Sequence[Case], on_progress: OnProgress) -> Recall:
    from slm.engine.shortlist import query_of, text_of

    at = dict.fromkeys((k for k in RECALL_AT if k < count), 0)
    for done, case in enumerate(cases):
        on_progress(f"{name}, {count} tools", done, len(cases))
        scores = ranking.scores(query_of(case.messages), [text_of(tool) for tool in case.tools])
        order = [case.tool_names[place] for place in (-scores).argsort(kind="stable")]
        last = max(order.index(gold) for gold in case.gold_names)
        for k in at:
            at[k] += last < k
    on_progress(f"{name}, {count} tools", len(cases), len(cases))
    return Recall(ranking=name, tools=count, n=len(cases), at=at)


def _spread(name: str, cases: Sequence[Case]) -> list[Case]:
    """All cases, those first that stand in samples of a few a group: each group has its share of any beginning."""
    ordered: dict[str, Case] = {}
    for per_group in (1, 2, 5, 10, 20, 50, 200, len(cases)):
        for case in sample(name, cases, per_group):
            ordered.setdefault(case.id, case)
    return list(ordered.values())
