"""Policies over a judge's score: one threshold, and thresholds at every stage.

A draft that may not be served, whatever its score, is refused as in `policies.cascade`. Certificate A of
`policies.certificate` counts a request as harmed only if it was answered small; so what is shown of a threshold stays
true of every policy that answers a part of what the threshold would (an earlier stage, a price, a budget).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from policies.cascade import OnOther, before_draft, judge_validity
from policies.confidence import SCORES
from policies.judge import Judge
from policies.policy import Action, Draft, Request, Stage, TokenSignals, Verdict


@dataclass(frozen=True, slots=True)
class Judged:
    """Serve a valid draft whose score is at least `threshold`; without one, none."""

    judge: Judge
    threshold: float | None
    on_no_call: OnOther = "escalate"
    on_ask: OnOther = "escalate"
    certificate: str | None = None

    @property
    def name(self) -> str:
        return f"{self.judge.name}>={'never' if self.threshold is None else format(self.threshold, '.6g')}"

    def before(self, request: Request) -> Verdict:
        if self.threshold is None:
            return Verdict(Action.ESCALATE, Stage.BEFORE, "nothing_certified", certificate=self.certificate)
        return replace(before_draft(request), certificate=self.certificate)

    def during(self, request: Request, plan: Sequence[str], signals: TokenSignals | None) -> Verdict:
        """What can no longer reach the threshold is given up: no certificate is touched, the verdict is the same."""
        if signals is not None and self.threshold is not None:
            best = self.judge.at_most(signals)
            if best < self.threshold:
                return Verdict(
                    Action.ESCALATE,
                    Stage.DURING,
                    "low_confidence",
                    best,
                    self.threshold,
                    certificate=self.certificate,
                )
        return Verdict(Action.CONTINUE, Stage.DURING, "drafting", certificate=self.certificate)

    def after(self, request: Request, draft: Draft) -> Verdict:
        verdict = judge_validity(request, draft, self.on_no_call, self.on_ask)
        return replace(
            verdict or held_against(self.judge, self.threshold, request, draft), certificate=self.certificate
        )


@dataclass(frozen=True, slots=True)
class Staged:
    """`Judged`, with a threshold on a named score of the plan's tokens before any argument is spent, and a limit on the
    number of tools offered before anything is decoded.

    Raising the plan's threshold, or lowering the tools' limit, never lowers the number of escalations.
    """

    after_stage: Judged
    plan_score: str = "weakest_token"
    """A name of `policies.confidence.SCORES`."""
    plan_threshold: float | None = None
    """None: the stage is silent."""
    most_tools: int | None = None
    """A request that offers more goes large at once; None: the stage is silent."""

    def __post_init__(self) -> None:
        if self.plan_score not in SCORES:
            raise ValueError(f"plan_score: {self.plan_score!r} is none of {', '.join(SCORES)}")

    @property
    def name(self) -> str:
        parts = [self.after_stage.name]
        if self.plan_threshold is not None:
            parts.insert(0, f"plan {self.plan_score}>={self.plan_threshold:.6g}")
        if self.most_tools is not None:
            parts.insert(0, f"tools<={self.most_tools}")
        return ", ".join(parts)

    def before(self, request: Request) -> Verdict:
        verdict = self.after_stage.before(request)
        if verdict.action is Action.CONTINUE and self.most_tools is not None and len(request.tools) > self.most_tools:
            return replace(verdict, action=Action.ESCALATE, reason="too_many_tools")
        return verdict

    def during(self, request: Request, plan: Sequence[str], signals: TokenSignals | None) -> Verdict:
        verdict = self.after_stage.during(request, plan, signals)
        if verdict.action is Action.CONTINUE and signals is not None and self.plan_threshold is not None:
            score = SCORES[self.plan_score](signals)
            if score < self.plan_threshold:
                return replace(
                    verdict,
                    action=Action.ESCALATE,
                    reason="unsure_plan",
                    score=score,
                    threshold=self.plan_threshold,
                )
        return verdict

    def after(self, request: Request, draft: Draft) -> Verdict:
        return self.after_stage.after(request, draft)


def held_against(judge: Judge, threshold: float | None, request: Request, draft: Draft) -> Verdict:
    """A valid draft's verdict by its score."""
    score = judge.score(request, draft)
    if score is None:
        return Verdict(Action.ESCALATE, Stage.AFTER, "no_signals", threshold=threshold)
    sure = threshold is not None and score >= threshold
    return Verdict(
        Action.ANSWER if sure else Action.ESCALATE,
        Stage.AFTER,
        "accepted" if sure else "low_confidence" if threshold is not None else "nothing_certified",
        score,
        threshold,
        probability=judge.probability(score),
    )
