"""Signals of a draft's tokens: log-probabilities, margins, entropies, feasible mass and layer agreement by span."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from policies.types import Span, TokenSignals

MISSING = math.nan
FLOOR = -100.0
"""Log-probabilities below it, −∞ too, count as it (nats)."""
_SPANS: Mapping[str, Span] = {"plan": Span.PLAN, "name": Span.NAME, "key": Span.KEY, "value": Span.VALUE}
_QUANTILES = {"logprob_q10": 0.10, "logprob_q25": 0.25, "logprob_q50": 0.50}


class _Tokens:
    """Signals as lists, since a draft is short; and which tokens belong where."""

    def __init__(self, signals: TokenSignals) -> None:
        self.logprob: list[float] = np.maximum(np.nan_to_num(signals.logprob, nan=FLOOR), FLOOR).tolist()
        self.margin: list[float] = signals.margin.tolist()
        self.entropy: list[float] = signals.entropy.tolist()
        mass = np.maximum(signals.feasible_mass.astype(np.float64), math.exp(FLOOR))
        self.surprise: list[float] = np.maximum(-np.log(mass), 0.0).tolist()
        agreement = signals.layer_agreement
        self.agreement: list[float] | None = None if agreement is None else agreement.tolist()
        self.all_of: dict[Span, list[int]] = {span: [] for span in Span}
        self.open_of: dict[Span, list[int]] = {span: [] for span in Span}
        forced = signals.forced.tolist()
        for place, span in enumerate(signals.span.tolist()):
            self.all_of[Span(span)].append(place)
            if not forced[place]:
                self.open_of[Span(span)].append(place)
        self.forced = sum(forced)

    def __len__(self) -> int:
        return len(self.logprob)


def token_features(signals: TokenSignals | None) -> dict[str, float]:
    """Signals of families `tokens`, `mass`, `layers` and the draft's length; empty without tokens."""
    if signals is None or not len(signals):
        return {}
    tokens = _Tokens(signals)
    made: dict[str, float] = {"length": math.log1p(len(tokens)), "forced_share": tokens.forced / len(tokens)}
    for name, span in _SPANS.items():
        made |= _of_span(name, tokens, tokens.all_of[span] if span is Span.NAME else tokens.open_of[span])
    return made | _decision(tokens) | _weakest(tokens) | _mass(tokens) | _layers(tokens)


def _of_span(name: str, tokens: _Tokens, places: Sequence[int]) -> dict[str, float]:
    if not places:
        return {}
    ordered = sorted(tokens.logprob[place] for place in places)
    made = {f"{name}_{key}": quantile(ordered, share) for key, share in _QUANTILES.items()}
    made[f"{name}_logprob_min"] = ordered[0]
    made[f"{name}_margin"] = sum(tokens.margin[place] for place in places) / len(places)
    made[f"{name}_entropy"] = max(tokens.entropy[place] for place in places)
    return made


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile at `share` of values in ascending order, linear between two of them (numpy's default)."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _decision(tokens: _Tokens) -> dict[str, float]:
    plan = tokens.open_of[Span.PLAN]
    if not plan:
        return {}
    return {
        "decision_logprob": tokens.logprob[plan[0]],
        "decision_margin": tokens.margin[plan[0]],
        "plan_margin_min": min(tokens.margin[place] for place in plan),
    }


def _weakest(tokens: _Tokens) -> dict[str, float]:
    made = {"all_logprob_mean": sum(tokens.logprob) / len(tokens)}
    places = [place for span in (Span.PLAN, Span.KEY, Span.VALUE) for place in tokens.open_of[span]]
    if places:
        total = sum(tokens.logprob[place] for place in places)
        made["weakest_logprob"] = min(tokens.logprob[place] for place in places)
        made["weakest_margin"] = min(tokens.margin[place] for place in places)
        made["semantic_logprob_sum"], made["semantic_logprob_mean"] = total, total / len(places)
    return made


def _mass(tokens: _Tokens) -> dict[str, float]:
    made = {"mass_sum": sum(tokens.surprise), "mass_max": max(tokens.surprise)}
    plan, name, value = (tokens.all_of[span] for span in (Span.PLAN, Span.NAME, Span.VALUE))
    if plan:
        made["mass_plan_sum"] = sum(tokens.surprise[place] for place in plan)
        made["mass_plan_max"] = max(tokens.surprise[place] for place in plan)
    if name:
        made["mass_name_sum"] = sum(tokens.surprise[place] for place in name)
    if value:
        made["mass_value_max"] = max(tokens.surprise[place] for place in value)
    return made


def _layers(tokens: _Tokens) -> dict[str, float]:
    made: dict[str, float] = {}
    for name, span in (("plan", Span.PLAN), ("key", Span.KEY), ("value", Span.VALUE)):
        there = [tokens.agreement[place] for place in tokens.open_of[span]] if tokens.agreement else []
        there = [share for share in there if share == share]
        if there:
            made[f"layers_{name}"] = sum(there) / len(there)
            if span is not Span.KEY:
                made[f"layers_{name}_min"] = min(there)
    return made
