"""A judge's scores for the very rows that it is fitted on, none of which it has seen: fitted on folds, told on others.

Folds share neither a conversation nor a tool of the right answer. Scores of different folds stand on one scale only as
far as they are probabilities; a fold whose other rows allow no fit makes the whole judge refuse.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evaluation.judges import Judge, Part, heard
from evaluation.metrics import Floats
from evaluation.plans import Score
from evaluation.splits import split

FOLDS = 5


def crossfit(judge: Judge, part: Part, *, folds: int = FOLDS) -> Score:
    """One score of all rows. Raises CannotJudge where a fold allows none, or no draft is told of."""
    names = [f"fold{i}" for i in range(folds)]
    parts = split(part.arms.cases, dict.fromkeys(names, 1.0 / folds), salt="crossfit")
    fold_of = {case.id: name for name, cases in parts.items() for case in cases}
    place = np.array([fold_of[case.id] for case in part.arms.cases])
    values, probability = np.full(len(part), -np.inf), np.full(len(part), np.nan)
    told: Score | None = None
    for name in names:
        here = np.flatnonzero(place == name)
        if not len(here):
            continue
        told = judge.fit(part.take(np.flatnonzero(place != name)))(part.take(here))
        values[here] = told.values
        if told.probability is not None:
            probability[here] = told.probability
    assert told is not None, "a part has rows"
    return heard(replace(told, values=values, probability=_known(probability)))


def _known(probability: Floats) -> Floats | None:
    return None if np.isnan(probability).all() else probability
