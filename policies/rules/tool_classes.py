"""Thresholds by what a tool may do: `delete_*` stricter than `get_*`.

A draft belongs to the strictest class of the tools that it calls, and a tool to the strictest class whose pattern it
matches. Each class is certified on the requests whose drafts belong to it, at its share of δ (Bonferroni), so that all
classes hold together with confidence 1 − δ.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from policies.rules.judge import Judge
from policies.rules.single import OnOther, before_draft, judge_validity
from policies.rules.thresholds import threshold_verdict
from policies.types import Action, Draft, Request, Stage, Verdict

MAX_CLASSES = 64
REST = "*"
"""The pattern of the class that every tool belongs to that matches no other, and every draft without a call."""


@dataclass(frozen=True, slots=True)
class ToolClass:
    """Tools that share a limit."""

    pattern: str
    """As `fnmatch` reads it; upper and lower case differ."""
    alpha: float
    """The rate that may not be exceeded; the class with the least is the strictest."""
    threshold: float | None
    """None: nothing could be shown, and nothing is answered small."""
    certificate: str | None = None


@functools.lru_cache(maxsize=4096)
def pattern_of(patterns: tuple[str, ...], name: str) -> str:
    """The first pattern that a tool's name matches; `REST` where none does. `patterns`: the strictest first."""
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), REST)


def strictest_first(alphas: Iterable[tuple[str, float]]) -> tuple[str, ...]:
    """Patterns by their α, the rest of the tools last: a tool that a pattern names is not of the rest.

    Raises:
        ValueError: a pattern stands twice, or there are too many.
    """
    ordered = [pattern for pattern, _ in sorted(alphas, key=lambda one: (one[0] == REST, one[1], one[0]))]
    if len(set(ordered)) != len(ordered) or len(ordered) > MAX_CLASSES:
        raise ValueError(f"classes: at most {MAX_CLASSES}, and each pattern once")
    return tuple(ordered)


def check_classes(classes: Sequence[ToolClass]) -> None:
    """Raises ValueError for patterns or rates that cannot be, and where there is no class `REST`."""
    if REST not in strictest_first((one.pattern, one.alpha) for one in classes):
        raise ValueError(f"classes: one must be {REST!r}")


def class_of(classes: Sequence[ToolClass], names: Iterable[str]) -> ToolClass:
    """The class of a draft that calls these tools: of theirs the one with the least α."""
    patterns = strictest_first((one.pattern, one.alpha) for one in classes)
    by_pattern = {one.pattern: one for one in classes}
    found = {pattern_of(patterns, name) for name in names} or {REST}
    return min((by_pattern[pattern] for pattern in found), key=lambda one: (one.alpha, one.pattern))


@dataclass(frozen=True, slots=True)
class PerToolClass:
    """`ThresholdPolicy`, with the threshold of the draft's class. There is a class `REST`."""

    judge: Judge
    classes: tuple[ToolClass, ...]
    on_no_call: OnOther = "escalate"
    on_ask: OnOther = "escalate"

    def __post_init__(self) -> None:
        check_classes(self.classes)

    @property
    def name(self) -> str:
        return f"{self.judge.name} by {len(self.classes)} tool classes"

    def class_of(self, names: Iterable[str]) -> ToolClass:
        """Return the class of a draft that calls these tools: of theirs the one with the least α."""
        return class_of(self.classes, names)

    def before(self, request: Request) -> Verdict:
        return before_draft(request)

    def during(self, request: Request, draft: Draft) -> Verdict:
        """The plan names the tools, and so the class."""
        of = self.class_of(draft.plan)
        verdict = Verdict(Action.CONTINUE, Stage.DURING, "drafting", None, of.threshold, certificate=of.certificate)
        if of.threshold is None:
            return replace(verdict, action=Action.ESCALATE, reason="nothing_certified")
        best = self.judge.at_most(draft.signals) if draft.signals is not None else float("inf")
        if best < of.threshold:
            return replace(verdict, action=Action.ESCALATE, reason="low_confidence", score=best)
        return verdict

    def after(self, request: Request, draft: Draft) -> Verdict:
        of = self.class_of(call.name for call in draft.calls)
        verdict = judge_validity(request, draft, self.on_no_call, self.on_ask)
        return replace(
            verdict or threshold_verdict(self.judge, of.threshold, request, draft), certificate=of.certificate
        )
