"""The same requests among more and more tools: cases with distractors, and tables of what came of them.

Distractors are tools of other cases. One that bears the name of an offered tool, or shares a word of its name with a
tool of the right answer, is not taken: it might do as well. Not guaranteed: that no other tool would.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from evaluation.cases.case import Case
from evaluation.intervals import wilson

COUNTS = (1, 5, 15, 50, 200)
RECALL_AT = (1, 3, 5, 8, 12, 20)


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Drafts of one arm among so many tools."""

    arm: str
    tools: int
    n: int
    passed: int
    failed: int
    """Requests that could not be drafted, such as prompts that are too long; they did not pass."""


class Recall(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of the cases whose right tools are all among the first k of a ranking."""

    ranking: str
    tools: int
    n: int
    at: dict[int, int]
    """k → cases."""


def pool_of(cases: Iterable[Case]) -> list[Mapping[str, Any]]:
    """Every tool that is offered, one of each name."""
    tools: dict[str, Mapping[str, Any]] = {}
    for case in cases:
        for tool in case.tools:
            tools.setdefault(tool["function"]["name"], tool)
    return list(tools.values())


def crowded(case: Case, count: int, pool: Sequence[Mapping[str, Any]], seed: int) -> Case | None:
    """The case with so many tools, in random order: those of the answer and of the conversation, its own, distractors.

    None where what must be offered is more, or where the pool is too small. The same seed gives the same case.
    """
    rng = random.Random(f"{seed}/{case.id}/{count}")
    must = set(case.gold_names) | _called(case)
    needed = [tool for tool in case.tools if tool["function"]["name"] in must]
    if not case.gold_names or len(needed) > count:
        return None
    own = [tool for tool in case.tools if tool["function"]["name"] not in must]
    tools = [*needed, *rng.sample(own, min(len(own), count - len(needed)))]
    names = {tool["function"]["name"] for tool in case.tools}
    rivals = set().union(*map(_words, case.gold_names))
    for place in rng.sample(range(len(pool)), len(pool)):
        if len(tools) == count:
            break
        name = pool[place]["function"]["name"]
        if name not in names and not rivals & _words(name):
            names.add(name)
            tools.append(dict(pool[place]))
    if len(tools) < count:
        return None
    rng.shuffle(tools)
    return replace(case, id=f"{case.id}@{count}", tools=tools)


def render_tool_counts(rates: Sequence[Rate], recalls: Sequence[Recall], facts: Mapping[str, str]) -> str:
    """A Markdown page of both tables."""
    lines = ["# By number of tools offered", "", *(f"{name}: `{value}`  " for name, value in facts.items()), ""]
    lines.append(
        "Pass rate in %, its 95 % interval and n, of the same requests among tools of other cases. What cannot be "
        "drafted (a prompt that is too long) did not pass; how many is said behind."
    )
    arms = list(dict.fromkeys(rate.arm for rate in rates))
    by_place = {(rate.arm, rate.tools): rate for rate in rates}
    lines += ["", "| tools | " + " | ".join(arms) + " |", "| --- |" + " --- |" * len(arms)]
    for count in sorted({rate.tools for rate in rates}):
        lines.append(f"| {count} | " + " | ".join(_rate(by_place.get((arm, count))) for arm in arms) + " |")
    lines += ["", "Recall in %: requests of which all right tools are among the first k of a shortlist's ranking.", ""]
    ks = sorted({k for recall in recalls for k in recall.at})
    lines += ["| ranking | tools | n | " + " | ".join(f"k = {k}" for k in ks) + " |"]
    lines += ["| --- | --- | --- |" + " --- |" * len(ks)]
    for recall in recalls:
        shares = [_share(recall.at[k], recall.n) if k in recall.at else "–" for k in ks]
        lines.append(f"| {recall.ranking} | {recall.tools} | {recall.n} | " + " | ".join(shares) + " |")
    return "\n".join(lines) + "\n"


def _rate(rate: Rate | None) -> str:
    if rate is None or not rate.n:
        return "–"
    text = f"{_share(rate.passed, rate.n)} of {rate.n}"
    return text if not rate.failed else f"{text}, {rate.failed} not drafted"


def _share(hits: int, n: int) -> str:
    low, high = wilson(hits, n)
    return f"{100 * hits / n:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def _called(case: Case) -> set[str]:
    calls = (call for message in case.messages for call in message.get("tool_calls") or ())
    return {call["function"]["name"] for call in calls}


def _words(name: str) -> set[str]:
    return {word.lower().rstrip("s") for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name) if len(word) > 3}
