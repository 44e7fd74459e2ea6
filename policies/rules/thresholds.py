"""Policies over a judge's score: one threshold, and thresholds at every stage.

A draft that may not be served, whatever its score, is refused as in `policies.rules.single`. Certificate A of
`policies.rules.certificate` counts a request as harmed only if it was answered small; so what is shown of a threshold
stays true of every policy that answers a part of what the threshold would (an earlier stage, a price, a budget).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policies.rules.judge import Judge
from policies.rules.single import OnOther, before_draft, judge_validity
from policies.types import Action, Draft, Outcome, Request, Stage, Verdict


@dataclass(frozen=True, slots=True)
class ThresholdPolicy:
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

    def during(self, request: Request, draft: Draft) -> Verdict:
        """Give up a draft that can no longer reach the threshold: no certificate is touched, the verdict stays."""
        if draft.signals is not None and self.threshold is not None:
            best = self.judge.at_most(draft.signals)
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
            verdict or threshold_verdict(self.judge, self.threshold, request, draft), certificate=self.certificate
        )


@dataclass(frozen=True, slots=True)
class StageGate:
    """One early stage: what its judge scores below `threshold` goes large."""

    judge: Judge
    threshold: float

    def refuses(self, request: Request, draft: Draft) -> float | None:
        """The score where it is below the threshold; None where the draft may go on, or has no score."""
        score = self.judge.score(request, draft)
        return score if score is not None and score < self.threshold else None


NOT_DRAFTED = Draft(Outcome.UNPARSABLE, complete=False)
"""The draft as it is known before decoding."""


@dataclass(frozen=True, slots=True)
class StagedPolicy:
    """`ThresholdPolicy` with a gate on the request before decoding, and one on the plan before any argument is decoded.

    Raising a gate's threshold never lowers the number of escalations.
    """

    last: ThresholdPolicy
    request_gate: StageGate | None = None
    plan_gate: StageGate | None = None

    @property
    def name(self) -> str:
        gates = [("request", self.request_gate), ("plan", self.plan_gate)]
        names = [f"{where} {gate.judge.name}>={gate.threshold:.6g}" for where, gate in gates if gate is not None]
        return ", ".join([*names, self.last.name])

    def before(self, request: Request) -> Verdict:
        return _gated(self.last.before(request), self.request_gate, "unsure_request", request, NOT_DRAFTED)

    def during(self, request: Request, draft: Draft) -> Verdict:
        verdict = self.last.during(request, draft)
        return _gated(verdict, self.plan_gate, "unsure_plan", request, draft)

    def after(self, request: Request, draft: Draft) -> Verdict:
        return self.last.after(request, draft)


def _gated(verdict: Verdict, gate: StageGate | None, reason: str, request: Request, draft: Draft) -> Verdict:
    """The verdict of a stage, turned by its gate."""
    if gate is None or verdict.action is Action.ESCALATE:
        return verdict
    score = gate.refuses(request, draft)
    if score is None:
        return verdict
    return replace(verdict, action=Action.ESCALATE, reason=reason, score=score, threshold=gate.threshold)


def threshold_verdict(judge: Judge, threshold: float | None, request: Request, draft: Draft) -> Verdict:
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
