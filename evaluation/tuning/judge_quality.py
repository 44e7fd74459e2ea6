"""Quality of a fitted judge, out of fold: given for tools that it knows and for tools that it does not, side by side.

Figures are of valid drafts, the only ones that are served; invalid ones would flatter the judge, since their findings
give them away. Intervals: bootstrap over groups (components, or conversations where tools are known).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from evaluation.intervals import cluster_weights, percentile_interval, wilson
from evaluation.metrics import Floats, aurc, auroc, brier, ece
from evaluation.replay.feature_table import KINDS, Labelled
from policies.classifier.fit import Fitted, OutOfFold
from policies.classifier.models import Trees
from policies.features.catalog import FEATURE_LIST, FEATURES_VERSION
from policies.rules.scores import SCORES
from policies.types import BoolArray

BINS = 15
DRAWS = 500
IMPORTANCE_ROWS = 1_000
"""Rows of a fold that importance is measured on."""
IMPORTANCE_REPEATS = 3
MIN_GROUP = 20
"""Groups with fewer rows get no line of their own."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of how well scores separate right from wrong on some rows; None where all passed, or all failed."""

    name: str
    n: int
    passed: int
    auroc: float | None
    auroc_low: float | None = None
    """95 % interval."""
    auroc_high: float | None = None
    aurc: float | None = None
    ece: float | None = None
    brier: float | None = None


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of about equal probability: what was said and what came."""

    n: int
    said: float
    passed: float
    low: float
    high: float


class Protocol(msgspec.Struct, frozen=True, kw_only=True):
    """One way to hold rows out."""

    name: str
    folds: list[int]
    """Rows of each."""
    groups: int
    all: Figures
    by_kind: list[Figures]
    by_source: list[Figures]
    baselines: list[Figures]
    """Untrained scores on the same rows."""
    reliability: list[Bin]


class Importance(msgspec.Struct, frozen=True, kw_only=True):
    """AUROC lost on held-out rows when a signal, or a whole family, is shuffled among them."""

    name: str
    family: str
    lost: float


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """Report on a fitted judge: what was fitted on what, and how good it is."""

    facts: dict[str, str]
    traces: list[dict[str, str | int]]
    features_version: int
    stage: str
    model: str
    calibration: str
    rows: int
    passed: int
    invalid: int
    without_label: int
    not_drafted: int
    missing_signals: list[str]
    """Signals that no row has."""
    protocols: list[Protocol]
    importance: list[Importance]
    families: list[Importance]


def fit_report(
    labelled: Labelled,
    fitted: Fitted,
    *,
    facts: dict[str, str],
    traces: list[dict[str, str | int]],
    rng: np.random.Generator,
) -> FitReport:
    """The report of one fit; `labelled` is what it was fitted on."""
    table, classifier = labelled.table, fitted.classifier
    protocols = [_protocol("known tools", labelled, fitted.known_tools, table.conversations, rng)]
    if fitted.unseen_tools is not None:
        protocols.append(_protocol("unseen tools", labelled, fitted.unseen_tools, table.components, rng))
    honest = fitted.unseen_tools or fitted.known_tools
    with threadpool_limits(1):  # Thousands of small predictions: more threads would only wait for each other.
        signals, families = importance(labelled, honest, rng)
    absent = [bool(np.isnan(column).all()) for column in table.vectors.T]
    learned = {"probe", "state_distance"} if np.isnan(table.hidden).all() else set()
    return FitReport(
        facts=facts,
        traces=traces,
        features_version=FEATURES_VERSION,
        stage=classifier.stage.value,
        model="boosted trees" if isinstance(classifier.model, Trees) else "logistic regression",
        calibration=type(classifier.calibration).__name__.lower(),
        rows=len(table),
        passed=int(table.passed.sum()),
        invalid=int((~labelled.valid).sum()),
        without_label=labelled.without_label,
        not_drafted=labelled.not_drafted,
        missing_signals=[
            feature.name
            for feature, gone in zip(FEATURE_LIST, absent, strict=True)
            if feature.name in learned or (gone and feature.family not in ("hidden", "record"))
        ],
        protocols=protocols,
        importance=signals,
        families=families,
    )


def figures(
    name: str,
    raw: Floats,
    passed: BoolArray,
    probability: Floats | None = None,
    weights: Sequence[np.ndarray] = (),
) -> Figures:
    """Figures of some rows; `weights` are blocks of bootstrap counts, shape (b, n)."""
    n, right = len(raw), int(passed.sum())
    if not n:
        return Figures(name=name, n=0, passed=0, auroc=None)
    value = float(auroc(raw, passed))
    low = high = None
    if weights and value == value:
        draws = np.concatenate([np.atleast_1d(auroc(raw, passed, weights=block)) for block in weights])
        if not np.isnan(draws).all():
            low, high = (float(bound) for bound in percentile_interval(draws))
    return Figures(
        name=name,
        n=n,
        passed=right,
        auroc=value if value == value else None,
        auroc_low=low,
        auroc_high=high,
        aurc=float(aurc(raw, passed)),
        ece=None if probability is None else ece(probability, passed, bins=BINS),
        brier=None if probability is None else brier(probability, passed),
    )


def reliability(probability: Floats, passed: BoolArray) -> list[Bin]:
    """BINS bins of equal mass, by rank."""
    made = []
    for places in np.array_split(np.argsort(probability, kind="stable"), BINS):
        if len(places):
            right = int(passed[places].sum())
            low, high = wilson(right, len(places))
            said = float(probability[places].mean())
            made.append(Bin(n=len(places), said=said, passed=right / len(places), low=low, high=high))
    return made


def importance(
    labelled: Labelled, scored: OutOfFold, rng: np.random.Generator
) -> tuple[list[Importance], list[Importance]]:
    """AUROC lost by each signal and by each family, mean over folds and repeats; greatest first.

    Signals that say nearly the same stand in for each other: each alone loses little, their family shows it.
    """
    family_of: dict[str, str] = {feature.name: feature.family for feature in FEATURE_LIST}
    lost: dict[str, list[float]] = {}
    for fold in scored.folds:
        usable = np.flatnonzero(labelled.valid[fold.held_out])[:IMPORTANCE_ROWS]
        labels = labelled.table.passed[fold.held_out][usable]
        if labels.all() or not labels.any():
            continue
        vectors = fold.vectors[usable]
        whole = float(auroc(fold.estimator.predict_proba(vectors)[:, 1], labels))
        targets: dict[str, list[int]] = {}
        for column, name in enumerate(fold.names):
            targets[name] = [column]
            targets.setdefault(f"{family_of[name]} (family)", []).append(column)
        for target, columns in targets.items():
            for _ in range(IMPORTANCE_REPEATS):
                shuffled = vectors.copy()
                shuffled[:, columns] = vectors[rng.permutation(len(vectors))][:, columns]
                value = float(auroc(fold.estimator.predict_proba(shuffled)[:, 1], labels))
                lost.setdefault(target, []).append(whole - value)
    made = [
        Importance(name=name, family=family_of.get(name, name), lost=float(np.mean(values)))
        for name, values in sorted(lost.items())
    ]
    ordered = sorted(made, key=lambda one: -one.lost)
    return [one for one in ordered if one.name in family_of], [one for one in ordered if one.name not in family_of]


def _protocol(
    name: str, labelled: Labelled, scored: OutOfFold, groups: Sequence[str], rng: np.random.Generator
) -> Protocol:
    keep = np.flatnonzero(labelled.valid)
    raw, probability, passed = scored.raw[keep], scored.probability[keep], labelled.table.passed[keep]
    own = [groups[place] for place in keep.tolist()]
    weights = list(cluster_weights(own, DRAWS, rng)) if len(set(own)) > 1 else []

    def of(label: str, mask: BoolArray) -> Figures:
        return figures(label, raw[mask], passed[mask], probability[mask], [block[:, mask] for block in weights])

    kinds = np.array([labelled.kinds[place] for place in keep.tolist()])
    sources = np.array([labelled.cases[place].source for place in keep.tolist()])
    return Protocol(
        name=name,
        folds=[len(fold.held_out) for fold in scored.folds],
        groups=len(set(own)),
        all=of("all", np.ones(len(keep), dtype=np.bool_)),
        by_kind=[of(kind, kinds == kind) for kind in KINDS if (kinds == kind).any()],
        by_source=[of(str(s), sources == s) for s in np.unique(sources) if (sources == s).sum() >= MIN_GROUP],
        baselines=_baselines(labelled, keep, weights),
        reliability=reliability(probability, passed) if len(keep) else [],
    )


def _baselines(labelled: Labelled, keep: np.ndarray, weights: Sequence[np.ndarray]) -> list[Figures]:
    signals = [labelled.signals[place] for place in keep.tolist()]
    if not signals or any(one is None for one in signals):
        return []
    passed = labelled.table.passed[keep]
    return [
        figures(name, np.array([score(one) for one in signals if one is not None]), passed, weights=weights)
        for name, score in SCORES.items()
    ]
