"""Our policies: a draft is answered if it is valid and its score reaches a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from policies.rules.scores import SCORES
from policies.types import Action, Draft, Outcome, Request, Stage, Verdict
from policies.validation import check, unsupported_tools

OnOther = Literal["escalate", "answer"]


def before_draft(request: Request) -> Verdict:
    """Return every drafting policy's first verdict: CONTINUE if the small side can be asked at all, else ESCALATE."""
    if not request.tools:
        return Verdict(Action.ESCALATE, Stage.BEFORE, "no_tools")
    if request.tool_choice == "none":
        return Verdict(Action.ESCALATE, Stage.BEFORE, "tool_choice_none")
    findings = unsupported_tools(request.tools)
    if findings:
        shown = tuple(str(finding) for finding in findings)
        return Verdict(Action.ESCALATE, Stage.BEFORE, "schema_unsupported", findings=shown)
    return Verdict(Action.CONTINUE, Stage.BEFORE, "drafting")


def judge_validity(request: Request, draft: Draft, on_no_call: OnOther, on_ask: OnOther) -> Verdict | None:
    """ESCALATE where a draft may not be served whatever its score, else None."""
    findings = check(request, draft)
    if findings:
        shown = tuple(str(finding) for finding in findings)
        return Verdict(Action.ESCALATE, Stage.AFTER, "invalid_call", findings=shown)
    if draft.outcome is Outcome.NO_CALL and on_no_call == "escalate":
        return Verdict(Action.ESCALATE, Stage.AFTER, "no_call")
    if draft.outcome is Outcome.ASK and on_ask == "escalate":
        return Verdict(Action.ESCALATE, Stage.AFTER, "ask")
    return None


@dataclass(frozen=True, slots=True)
class ValidAndSure:
    """Serve a valid draft whose score is at least `threshold`.

    A draft that makes no call, or asks back, is owed prose: it escalates unless `on_no_call`, `on_ask` say otherwise.
    Raising the threshold never lowers the number of escalations.
    """

    threshold: float
    score: str = "weakest_token"
    """A name of `policies.rules.scores.SCORES`."""
    on_no_call: OnOther = "escalate"
    on_ask: OnOther = "escalate"

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"score: {self.score!r} is none of {', '.join(SCORES)}")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold: {self.threshold} is not in [0, 1]")

    @property
    def name(self) -> str:
        return f"{self.score}>={self.threshold:g}"

    def before(self, request: Request) -> Verdict:
        return before_draft(request)

    def during(self, request: Request, draft: Draft) -> Verdict:
        """The plan alone already holds the weakest token so far: what is below the threshold now stays below it."""
        if draft.signals is not None and self.score in ("weakest_token", "least_margin"):
            score = SCORES[self.score](draft.signals)
            if not score >= self.threshold:  # A signal that is missing is NaN, and no score.
                return Verdict(Action.ESCALATE, Stage.DURING, "low_confidence", score, self.threshold)
        return Verdict(Action.CONTINUE, Stage.DURING, "drafting")

    def after(self, request: Request, draft: Draft) -> Verdict:
        refused = judge_validity(request, draft, self.on_no_call, self.on_ask)
        if refused is not None:
            return refused
        if draft.signals is None:
            return Verdict(Action.ESCALATE, Stage.AFTER, "no_signals", threshold=self.threshold)
        score = SCORES[self.score](draft.signals)
        if not score >= self.threshold:  # A signal that is missing is NaN, and no score.
            return Verdict(Action.ESCALATE, Stage.AFTER, "low_confidence", score, self.threshold)
        return Verdict(Action.ANSWER, Stage.AFTER, "accepted", score, self.threshold)
