"""Judges that the study compares: each is fitted on one part of the rows and gives scores for another.

A judge sees requests and drafts, and on the part it is fitted on also who was right. `Judge.fit` may refuse with
`CannotJudge`; the study then leaves the judge out and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import LogisticRegression

from evaluation.cases.splits import split
from evaluation.metrics import Floats
from evaluation.replay.plans import Score
from evaluation.replay.replay import Arms, Ints, servable_scores
from policies.rules.scores import SCORES
from policies.types import BoolArray, Outcome

LEAST_ROWS = 20
"""Below so many rows nothing is fitted."""


class CannotJudge(ValueError):
    """A judge that these rows do not allow; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Part:
    """n rows of a study."""

    arms: Arms
    servable: BoolArray
    """(n,) drafts that the gateway may serve whatever their score."""
    servable_silent: BoolArray
    """(n,) the same where a draft without a call is served too (`on_no_call: answer`)."""

    def __len__(self) -> int:
        return len(self.arms)

    def take(self, rows: Ints) -> Part:
        """Some of the rows, by index."""
        return Part(self.arms.take(rows), self.servable[rows], self.servable_silent[rows])


Scorer = Callable[[Part], Score]


@dataclass(frozen=True, slots=True)
class TrainableJudge:
    """A way to order drafts by how safe they are to serve."""

    key: str
    label: str
    fit: Callable[[Part], Scorer]
    needs_large: bool = False
    """True where the fit looks at the large model's answers, so that each large model needs a fit of its own."""
    ours: bool = False


def schema_valid() -> TrainableJudge:
    """Serve every valid draft of calls: form alone."""

    def scores(part: Part) -> Score:
        calls = np.array([draft.outcome is Outcome.CALLS for draft in part.arms.drafts])
        return Score("schema_valid", "schema-valid only", np.where(part.servable & calls, 1.0, -np.inf))

    return TrainableJudge("schema_valid", "schema-valid only", lambda _: scores)


def of_signals(
    name: str, label: str, *, ours: bool = False, serve_silent: bool = False, key: str = ""
) -> TrainableJudge:
    """A score of `policies.rules.scores`, its probability a logistic curve fitted on the part (Platt 1999).

    With `serve_silent` drafts without a call are served too.
    """
    key = key or name

    def values(part: Part) -> Floats:
        found = servable_scores(SCORES[name], part.arms, part.servable_silent if serve_silent else part.servable)
        return np.full(len(part), -np.inf) if found is None else found

    def fit(part: Part) -> Scorer:
        calibrated = platt(values(part), part.arms.small_pass)

        def scores(other: Part) -> Score:
            found = values(other)
            return Score(key, label, found, probability=None if calibrated is None else calibrated(found))

        return scores

    return TrainableJudge(key, label, fit, ours=ours)


def require_scores(score: Score) -> Score:
    """The score itself. Raises CannotJudge where it says nothing of any draft."""
    if not np.isfinite(score.values).any():
        raise CannotJudge(f"{score.label}: no draft that may be served came with token probabilities")
    return score


def random_mix() -> TrainableJudge:
    """A coin before anything is drafted."""

    def scores(part: Part) -> Score:
        return Score("random_mix", "random mix", np.zeros(len(part)), routes=True)

    return TrainableJudge("random_mix", "random mix", lambda _: scores)


def oracle() -> TrainableJudge:
    """Escalates exactly where only the large model is right; nobody can build it."""

    def scores(part: Part) -> Score:
        return Score("oracle", "oracle", part.arms.small_pass.astype(np.float64) - part.arms.large_pass)

    return TrainableJudge("oracle", "oracle", lambda _: scores)


def platt(values: Floats, passed: BoolArray) -> Callable[[Floats], Floats] | None:
    """P(pass) as a logistic curve of the score's logit; None where the rows allow no fit. −inf gives NaN."""
    known = np.isfinite(values)
    if known.sum() < LEAST_ROWS or len(set(passed[known].tolist())) < 2:
        return None
    model = LogisticRegression(C=1e3, max_iter=1000).fit(_logit(values[known])[:, None], passed[known])

    def probability(scores: Floats) -> Floats:
        given = np.full(len(scores), np.nan)
        fit = np.isfinite(scores)
        if fit.any():
            given[fit] = model.predict_proba(_logit(scores[fit])[:, None])[:, 1]
        return given

    return probability


def _logit(values: Floats) -> Floats:
    inside = np.clip(values, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def two_classes(labels: BoolArray, judge: str) -> None:
    """Raises CannotJudge where a fit would have one class, or hardly a row."""
    if len(labels) < LEAST_ROWS:
        raise CannotJudge(f"{judge}: {len(labels)} rows to fit on, {LEAST_ROWS} are needed")
    if len(set(labels.tolist())) < 2:
        raise CannotJudge(f"{judge}: all rows to fit on came to the same")


def fit_all(judges: Sequence[TrainableJudge], part: Part) -> tuple[dict[str, Scorer], list[str]]:
    """Judge's key → its scorer, and a sentence for each that refused."""
    fitted: dict[str, Scorer] = {}
    refused = []
    for judge in judges:
        try:
            fitted[judge.key] = judge.fit(part)
        except CannotJudge as error:
            refused.append(str(error))
    return fitted, refused


FOLDS = 5


def crossfit(judge: TrainableJudge, part: Part, *, folds: int = FOLDS) -> Score:
    """One score of all rows. Raises CannotJudge where a fold allows none, or no draft is known."""
    names = [f"fold{i}" for i in range(folds)]
    parts = split(part.arms.cases, dict.fromkeys(names, 1.0 / folds), salt="crossfit")
    fold_of = {case.id: name for name, cases in parts.items() for case in cases}
    place = np.array([fold_of[case.id] for case in part.arms.cases])
    values, probability = np.full(len(part), -np.inf), np.full(len(part), np.nan)
    scored: Score | None = None
    for name in names:
        here = np.flatnonzero(place == name)
        if not len(here):
            continue
        scored = judge.fit(part.take(np.flatnonzero(place != name)))(part.take(here))
        values[here] = scored.values
        if scored.probability is not None:
            probability[here] = scored.probability
    assert scored is not None, "a part has rows"
    return require_scores(replace(scored, values=values, probability=_known(probability)))


def _known(probability: Floats) -> Floats | None:
    return None if np.isnan(probability).all() else probability
