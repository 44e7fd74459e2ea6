"""Scores of how sure the small model was: one number from token signals, higher is safer.

Only tokens that decide something count: the plan (where the tool is chosen), argument values, and keys, each only where
the grammar left a choice; a forced token says nothing about doubt, and the frame of the pattern is always sure. Sums
over the whole text would be length-biased (Gupta et al. 2024, arXiv 2404.10136).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from policies.types import BoolArray, Span, TokenSignals

ScoreFunction = Callable[[TokenSignals], float]


def semantic(signals: TokenSignals) -> BoolArray:
    """Which tokens count, shape (T,)."""
    decides = np.isin(signals.span, (Span.PLAN, Span.KEY, Span.VALUE))
    return np.asarray(decides & ~signals.forced, dtype=np.bool_)


def weakest_token(signals: TokenSignals) -> float:
    """exp of the least log-probability of a counting token, in [0, 1]; 1 where no token counts."""
    chosen = signals.logprob[semantic(signals)]
    return math.exp(float(chosen.min())) if len(chosen) else 1.0


def mean_logprob(signals: TokenSignals) -> float:
    """exp of the mean log-probability of **all** tokens, in [0, 1]; what routers on log-probs commonly use."""
    return math.exp(float(signals.logprob.mean())) if len(signals) else 1.0


def mean_semantic(signals: TokenSignals) -> float:
    """exp of the mean log-probability of the counting tokens, in [0, 1]; 1 where no token counts."""
    chosen = signals.logprob[semantic(signals)]
    return math.exp(float(chosen.mean())) if len(chosen) else 1.0


def least_margin(signals: TokenSignals) -> float:
    """The least p(best) − p(second) of a counting token, in [0, 1]; 1 where no token counts."""
    chosen = signals.margin[semantic(signals)]
    return float(chosen.min()) if len(chosen) else 1.0


SCORES: Mapping[str, ScoreFunction] = {
    "weakest_token": weakest_token,
    "mean_logprob": mean_logprob,
    "mean_semantic": mean_semantic,
    "least_margin": least_margin,
}
"""Every score by its name, as configuration files name it."""
