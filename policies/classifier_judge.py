"""A fitted classifier as a `policies.judge.Judge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from policies.classifier import Classifier
from policies.classifier_file import ClassifierError
from policies.judge import Contribution
from policies.policy import Draft, Request, Stage, TokenSignals


@dataclass(frozen=True, slots=True)
class ClassifierJudge:
    """Scores a draft by its signals, those included that are missing: the classifier knows what that means."""

    classifier: Classifier

    @property
    def name(self) -> str:
        return "classifier"

    def score(self, request: Request, draft: Draft) -> float | None:
        return self.classifier.score(self.classifier.vector(request, draft))

    def at_most(self, plan_signals: TokenSignals) -> float:
        """Nothing is known: later signals may speak for the draft."""
        return float("inf")

    def probability(self, score: float) -> float | None:
        return self.classifier.probability(score)

    def explain(self, request: Request, draft: Draft) -> Sequence[Contribution]:
        return self.classifier.explain(self.classifier.vector(request, draft))


def load_judge(folder: Path, stage: Stage) -> ClassifierJudge:
    """A saved classifier of what stands at a stage. Raises `policies.classifier.ClassifierError`."""
    classifier = Classifier.load(folder)
    if classifier.stage is not stage:
        raise ClassifierError(f"{folder}: judges at stage {classifier.stage.value}, and not {stage.value}")
    return ClassifierJudge(classifier)
