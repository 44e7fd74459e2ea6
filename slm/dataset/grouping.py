"""Groups requests that may offer one list of tools: rows of a source that share it cost a fraction of their tokens.

A tool is put beside a request only where that cannot change the right answer: it was offered with the request anyway,
or the source offers it in other rows beside every tool that the request calls (so it is no rival of theirs). A request
that is answered without a call never sees a tool that its row does not offer.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from slm.dataset.augment import called_before, can_lose_gold, without_gold
from slm.dataset.examples import Example

_LOOK_AHEAD = 96
"""Number of waiting rows that are tried for a group."""

Tools = dict[str, Mapping[str, Any]]


def groups_of(
    examples: Sequence[Example], rng: random.Random, *, most_tools: int, most_rows: int, remove_gold: float
) -> Iterator[list[Example]]:
    """The examples in groups of one source that offer the same tools in the same order.

    Args:
        examples: rows in the order in which they shall be begun with; one may come several times.
        most_tools: tools of a group; more only where a single row needs them.
        most_rows: rows of a group.
        remove_gold: share of the rows that are asked without the tools they call, if they offer or meet others; drawn
            for each time that a row comes.
    """
    beside = offered_beside(examples)
    drawn = [(example, rng.random() < remove_gold) for example in examples]
    waiting: dict[str, list[tuple[Example, bool]]] = defaultdict(list)
    for example, loses in reversed(drawn):
        waiting[example.source].append((example, loses))
    for source in list(dict.fromkeys(example.source for example in examples)):
        queue = waiting[source]
        while queue:
            seed, loses = queue.pop()
            group = _Group(without_gold(seed) if loses else seed, beside, rng, most_tools)
            passed: list[tuple[Example, bool]] = []
            while queue and len(group.members) < most_rows and len(passed) < _LOOK_AHEAD:
                candidate, loses = queue.pop()
                taken = group.take_without_gold(candidate) if loses else group.take(candidate)
                if not taken:
                    passed.append((candidate, loses))
            queue.extend(reversed(passed))
            yield group.examples()


def offered_beside(examples: Sequence[Example]) -> Mapping[tuple[str, str], set[str]]:
    """`(source, called tool)` → names of the tools that some row offers beside it."""
    beside: dict[tuple[str, str], set[str]] = defaultdict(set)
    for example in examples:
        names = set(_tools(example))
        for name in example.gold_names:
            beside[example.source, name] |= names
    return beside


@dataclass(frozen=True, slots=True)
class _Member:
    example: Example
    own: frozenset[str]
    harmless: frozenset[str]
    """Tools of other rows that may be offered too."""

    def accepts(self, name: str) -> bool:
        return name in self.own or name in self.harmless


class _Group:
    def __init__(
        self, seed: Example, beside: Mapping[tuple[str, str], set[str]], rng: random.Random, most_tools: int
    ) -> None:
        self._beside, self._rng = beside, rng
        own, needed = _tools(seed), _needed(seed)
        others = [name for name in own if name not in needed]
        least = 0 if needed else min(1, len(others))
        self._room = rng.randint(max(1, len(needed)), max(most_tools, len(needed), 1))
        stay = rng.randint(least, max(least, min(len(others), self._room - len(needed))))
        kept = needed | set(rng.sample(others, stay))
        self.tools: Tools = {name: tool for name, tool in own.items() if name in kept}
        self.members = [self._member(seed)]

    def _member(self, example: Example, forbidden: frozenset[str] = frozenset()) -> _Member:
        own = frozenset(_tools(example)) - forbidden
        harmless: set[str] = set()
        called = forbidden or example.gold_names
        if called:
            harmless = set.intersection(*(self._beside[example.source, name] for name in called))
        return _Member(example, own, frozenset(harmless - forbidden))

    def take(self, example: Example) -> bool:
        """Add a row with the tools that it needs, if every row of the group accepts them; return whether it was
        added."""
        own, needed = _tools(example), _needed(example)
        new = [name for name in own if name in needed and name not in self.tools]
        if len(self.tools) + len(new) > self._room or not self._same(own):
            return False
        member = self._member(example)
        if not all(member.accepts(name) for name in self.tools):
            return False
        if not all(other.accepts(name) for other in self.members for name in new):
            return False
        self.tools.update((name, own[name]) for name in new)
        self.members.append(member)
        return True

    def take_without_gold(self, example: Example) -> bool:
        """Add a row whose tools are all missing here, so that its right answer is that none fits."""
        gold = example.gold_names
        if not can_lose_gold(example) or gold & self.tools.keys():
            return False
        member = self._member(replace(example, kind="none", calls=()), forbidden=gold)
        if not self._same(_tools(example)) or not all(member.accepts(name) for name in self.tools):
            return False
        self.members.append(member)
        return True

    def _same(self, own: Tools) -> bool:
        return all(own[name] == tool for name, tool in self.tools.items() if name in own)

    def examples(self) -> list[Example]:
        tools = tuple(self.tools.values())
        return [replace(member.example, tools=tools) for member in self.members]


def _tools(example: Example) -> Tools:
    return {str(tool["function"]["name"]): tool for tool in example.tools}


def _needed(example: Example) -> set[str]:
    """Tools without which a row would ask something else; all of them where it asks back."""
    if example.kind == "ask":
        return set(_tools(example))
    return {*example.gold_names, *called_before(example)} & _tools(example).keys()
