"""Splits that share neither a conversation nor a tool: rows tied by either go into one part together.

Rows are nodes, a shared conversation or tool is an edge, and a connected component is never divided. The part of a
component is decided by a hash, so that it depends neither on the order of the rows nor on a generator. Shares are
therefore met on average over components, not exactly, and one big component may take most rows with it: look at the
sizes. A row added later can join two components and move one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from evaluation.cases.case import Case

Keys = Callable[[Case], Iterable[str]]
"""Returns the keys that tie a case to others: two cases that share a key stay together."""


def by_conversation(case: Case) -> list[str]:
    """Rows of one dialogue."""
    return [f"conversation:{case.conversation}"]


def by_gold_tool(case: Case) -> list[str]:
    """Rows whose gold calls the same tool, by name: cases without a gold call are tied by conversation alone."""
    return [f"tool:{name}" for name in case.gold_names]


def by_offered_tool(case: Case) -> list[str]:
    """Rows that offer the same tool, by name. Sources with drawn distractors become one component."""
    return [f"tool:{name}" for name in case.tool_names]


def components(cases: Sequence[Case], by: Sequence[Keys] = (by_conversation, by_gold_tool)) -> dict[str, str]:
    """Case id → component, named by the smallest case id in it."""
    parent: dict[str, str] = {}

    def root(node: str) -> str:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for case in cases:
        node = f"case:{case.id}"
        parent.setdefault(node, node)
        for key in (key for keys in by for key in keys(case)):
            parent.setdefault(key, key)
            parent[root(key)] = root(node)
    smallest: dict[str, str] = {}
    for case in cases:
        component = root(f"case:{case.id}")
        smallest[component] = min(case.id, smallest.get(component, case.id))
    return {case.id: smallest[root(f"case:{case.id}")] for case in cases}


def split(
    cases: Sequence[Case],
    shares: Mapping[str, float],
    *,
    salt: str,
    by: Sequence[Keys] = (by_conversation, by_gold_tool),
) -> dict[str, list[Case]]:
    """Part → its cases, in their own order. `shares` are positive and sum to 1; another `salt` gives another split.

    Raises ValueError for shares that are not so.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares must be positive and sum to 1: {dict(shares)}")
    component_of = components(cases, by)
    parts: dict[str, list[Case]] = {part: [] for part in shares}
    for case in cases:
        parts[_part(component_of[case.id], shares, salt)].append(case)
    return parts


def _part(component: str, shares: Mapping[str, float], salt: str) -> str:
    digest = hashlib.sha256(f"{salt}\x00{component}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    reached = 0.0
    for part, share in shares.items():
        reached += share
        if position < reached:
            return part
    return part  # the shares' sum may fall short of 1 by rounding
