"""Our fitted classifier among the judges of a study: signals of every draft, fitted on one part, scores of another.

All drafts teach it, those without a call and invalid ones too; it is asked only about those that may be served. Signals
without a context are worked out once for each case, since the same drafts stand before every large model.
"""

from __future__ import annotations

import numpy as np

from evaluation.replay.feature_table import feature_table
from evaluation.replay.plans import Score
from evaluation.replay.scorers import CannotJudge, Part, Scorer, TrainableJudge
from policies.classifier.classifier import Classifier
from policies.classifier.context import with_context
from policies.classifier.dataset import FeatureTable, FitError
from policies.classifier.fit import fit

SEED = 0


class ClassifierJudges:
    """Judges that share one fit for each part: as the gateway is set by default, and with drafts without a call served.

    A part is known by its cases: make a new object where drafts or labels of the same cases differ.
    """

    def __init__(self) -> None:
        self._tables: dict[str, FeatureTable] = {}
        self._fitted: dict[tuple[str, ...], Classifier] = {}

    def judges(self) -> list[TrainableJudge]:
        """Both."""
        return [
            self._judge("classifier", "classifier", serve_silent=False),
            self._judge("classifier_silent", "classifier, no-call served", serve_silent=True),
        ]

    def _judge(self, key: str, label: str, *, serve_silent: bool) -> TrainableJudge:
        def fitted(part: Part) -> Scorer:
            classifier = self._fit(part, label)

            def scores(other: Part) -> Score:
                raw = classifier.scores(with_context(self._table(other), classifier.context))
                servable = other.servable_silent if serve_silent else other.servable
                probability = classifier.calibration.probabilities(raw)
                return Score(key, label, np.where(servable, raw, -np.inf), probability=np.asarray(probability))

            return scores

        return TrainableJudge(key, label, fitted, ours=True)

    def _fit(self, part: Part, label: str) -> Classifier:
        rows = np.flatnonzero(part.arms.draftable)
        known = tuple(part.arms.cases[row].id for row in rows.tolist())
        if known not in self._fitted:
            try:
                self._fitted[known] = fit(self._table(part).rows(rows), seed=SEED)
            except FitError as error:
                raise CannotJudge(f"{label}: {error}") from error
        return self._fitted[known]

    def _table(self, part: Part) -> FeatureTable:
        """The part's drafts, in its order."""
        arms = part.arms
        new = [row for row, case in enumerate(arms.cases) if case.id not in self._tables]
        if new:
            made = feature_table(
                [arms.cases[row] for row in new],
                [arms.requests[row] for row in new],
                [arms.drafts[row] for row in new],
                [bool(arms.small_pass[row]) for row in new],
            )
            for place, row in enumerate(new):
                self._tables[arms.cases[row].id] = made.rows(np.array([place]))
        parts = [self._tables[case.id] for case in arms.cases]
        return FeatureTable(
            vectors=np.concatenate([part.vectors for part in parts]),
            hidden=np.concatenate([part.hidden for part in parts]),
            offered=[part.offered[0] for part in parts],
            planned=[part.planned[0] for part in parts],
            passed=arms.small_pass,
            conversations=[case.conversation for case in arms.cases],
            components=list(arms.clusters),
        )
