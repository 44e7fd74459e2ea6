"""The cascade study: the small model before each large one, judged by ours and by the others, on rows that fitted none.

Two protocols. **split**: the set's own rows, parted by tool and conversation (`in_domain` by conversation alone, for
there the tools are known); judges are fitted on one part, thresholds chosen and certified on a second, and everything
is reported on a third. **cold**: fitted and certified on the training sources' rows, reported on the whole set: what a
user meets who has no traffic of his own yet.

All figures of a table share their bootstrap draws. Curves are found anew in each draw; judges are not fitted anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

from evaluation.cases.case import Case
from evaluation.cases.splits import Keys, by_conversation, by_gold_tool, split
from evaluation.intervals import percentile_interval
from evaluation.metrics import Floats, MetricError
from evaluation.replay.figures import CURVE_FIGURES, Estimate, calibration, figures_drawn, finite
from evaluation.replay.plans import Score, baselines
from evaluation.replay.replay import Arms, join, servable_drafts
from evaluation.replay.scorers import CannotJudge, Part, Scorer, TrainableJudge, fit_all, require_scores
from evaluation.studies.cascade.procedure import OperatingPoint, certified, neutral
from evaluation.traces.table import Trace

Protocol = Literal["split", "cold"]
SPLIT = {"fit": 0.4, "certify": 0.3, "report": 0.3}
COLD = {"fit": 0.6, "certify": 0.4}
SALT = "cascade"
LEAST_REPORTED = 30
"""Below so many rows no table is made."""


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """Settings of the study."""

    draws: int = 500
    seed: int = 0
    alpha: float = 0.02
    """Certified: at most this share of all requests made worse …"""
    delta: float = 0.1
    """… with confidence 1 − `delta`."""
    small_usd_per_hour: float = 0.10


@dataclass(frozen=True, slots=True)
class Target:
    """One set of cases with one large model."""

    set_name: str
    cases: Sequence[Case]
    large: Trace
    simulated: bool = False
    by: Sequence[Keys] = (by_conversation, by_gold_tool)


class JudgeFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One judge in one table."""

    key: str
    label: str
    ours: bool
    figures: dict[str, Estimate]
    """Figures of its curve, by the names of `evaluation.replay.figures.CURVE_FIGURES`."""
    ece: float | None
    brier: float | None
    neutral: OperatingPoint | None
    """The threshold that lost nothing where it was chosen; None for the oracle."""
    certified: OperatingPoint | None


class CostRatio(msgspec.Struct, frozen=True, kw_only=True):
    """Our cheapest judge beside the cheapest of the others, at one pass rate."""

    figure: str
    """`qnc` or `cost95`."""
    ours: str
    other: str
    ratio: Estimate
    """Our cost over theirs; the same draws for both."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """One set, one large model, one protocol."""

    set_name: str
    large: str
    simulated: bool
    protocol: Protocol
    rows: dict[str, int]
    """Cases of each part: `fit`, `certify`, `report`."""
    clusters: int
    """Independent groups that the intervals are drawn from."""
    small_passed: Estimate
    small_cost: Estimate
    large_passed: Estimate
    large_usd_per_1000: float
    oracle_passed: Estimate
    schema_valid_passed: Estimate
    judges: list[JudgeFigures]
    against: list[CostRatio]
    remarks: list[str]


def tables_of(
    small: Trace,
    targets: Sequence[Target],
    sources: Mapping[str, Sequence[Case]],
    sources_large: Trace | None,
    judges: Sequence[TrainableJudge],
    *,
    options: StudyOptions,
    on_progress: Callable[[str], None] = lambda _: None,
) -> tuple[list[Table], list[str]]:
    """All tables, and a sentence for each that could not be made.

    Args:
        small: rows of the small arm, of all sets.
        sources: set → the cases that a cold start on it is fitted on; a set without any has no cold table.
        sources_large: a large model's rows for those cases.
    """
    made: list[Table] = []
    missing: list[str] = []
    parts = _Parts(small, options.small_usd_per_hour)
    fits = _Fits(judges)
    for target in targets:
        whole = parts.of(target.cases, target.large)
        for protocol in ("split", "cold"):
            place = f"{target.set_name}, {target.large.info.arm}, {protocol}"
            on_progress(place)
            try:
                if protocol == "split":
                    by_part = _split(target.cases, SPLIT, target.by)
                    fit, certify, report = (_subset(whole, by_part[name]) for name in SPLIT)
                else:
                    given = sources.get(target.set_name, ())
                    if not given or sources_large is None:
                        raise CannotJudge("no trace of training sources was given")
                    source = parts.of(given, sources_large)
                    by_part = _split(given, COLD, (by_conversation, by_gold_tool))
                    fit, certify = (_subset(source, by_part[name]) for name in COLD)
                    report = whole
                if min(len(fit), len(certify), len(report)) < LEAST_REPORTED:
                    sizes = f"{len(fit)}, {len(certify)} and {len(report)}"
                    raise CannotJudge(f"parts of {sizes} rows are too few: {LEAST_REPORTED} are needed in each")
                fitted, refused = fits.of(fit, target.set_name, protocol, target.large.info.arm)
                made.append(_table(target, protocol, (fit, certify, report), judges, fitted, refused, options))
            except (CannotJudge, MetricError) as error:
                missing.append(f"{place}: {error}")
    return made, missing


class _Parts:
    """Rows of cases with a large model's, and which drafts may be served: checked once for each small row."""

    def __init__(self, small: Trace, small_usd_per_hour: float) -> None:
        self._small = small
        self._price = small_usd_per_hour
        self._servable: dict[str, tuple[bool, bool]] = {}

    def of(self, cases: Sequence[Case], large: Trace) -> Part:
        arms = join(cases, self._small, large, small_usd_per_hour=self._price)
        new = [i for i, case in enumerate(arms.cases) if case.id not in self._servable]
        if new:
            unseen = arms.take(np.array(new))
            for case, plain, silent in zip(
                unseen.cases,
                servable_drafts(unseen, "escalate", "escalate"),
                servable_drafts(unseen, "answer", "escalate"),
                strict=True,
            ):
                self._servable[case.id] = bool(plain), bool(silent)
        served = np.array([self._servable[case.id] for case in arms.cases])
        return Part(arms, served[:, 0], served[:, 1])


class _Fits:
    """Judges as fitted, each once for each part: anew for a large model only where the fit looks at its answers."""

    def __init__(self, judges: Sequence[TrainableJudge]) -> None:
        self._judges = judges
        self._kept: dict[tuple[str, str, str], tuple[dict[str, Scorer], list[str]]] = {}

    def of(self, part: Part, set_name: str, protocol: str, large: str) -> tuple[dict[str, Scorer], list[str]]:
        fitted: dict[str, Scorer] = {}
        refused: list[str] = []
        for needs_large, key in ((False, (set_name, protocol, "")), (True, (set_name, protocol, large))):
            if key not in self._kept:
                self._kept[key] = fit_all([j for j in self._judges if j.needs_large is needs_large], part)
            fitted |= self._kept[key][0]
            refused += self._kept[key][1]
        return fitted, refused


def _split(cases: Sequence[Case], shares: Mapping[str, float], by: Sequence[Keys]) -> dict[str, set[str]]:
    return {name: {case.id for case in part} for name, part in split(cases, shares, salt=SALT, by=by).items()}


def _subset(part: Part, ids: set[str]) -> Part:
    return part.take(np.array([i for i, case in enumerate(part.arms.cases) if case.id in ids], dtype=np.int64))


def _table(
    target: Target,
    protocol: Protocol,
    parts: tuple[Part, Part, Part],
    judges: Sequence[TrainableJudge],
    fitted: Mapping[str, Scorer],
    refused: Sequence[str],
    options: StudyOptions,
) -> Table:
    fit, certify, report = parts
    remarks = list(refused)
    scores: list[tuple[TrainableJudge, Score, Score]] = []
    for judge in judges:
        if judge.key not in fitted:
            continue
        try:
            scorer = fitted[judge.key]
            scores.append((judge, require_scores(scorer(certify)), require_scores(scorer(report))))
        except CannotJudge as error:
            remarks.append(str(error))
    plans = baselines(report.arms)
    point, drawn = figures_drawn(
        report.arms, plans, [holdout_score for _, _, holdout_score in scores], draws=options.draws, seed=options.seed
    )
    clusters = len(set(report.arms.clusters))
    return Table(
        set_name=target.set_name,
        large=target.large.info.arm,
        simulated=target.simulated,
        protocol=protocol,
        rows={"fit": len(fit), "certify": len(certify), "report": len(report)},
        clusters=clusters,
        small_passed=_estimate("small_only/quality", point, drawn),
        small_cost=_estimate("small_only/cost", point, drawn),
        large_passed=_estimate("large_only/quality", point, drawn),
        large_usd_per_1000=1000.0 * float(report.arms.large_cost.mean()),
        oracle_passed=_estimate("oracle/quality", point, drawn),
        schema_valid_passed=_estimate("schema_valid/quality", point, drawn),
        judges=[
            _judged(judge, (certify, chooser), (report, holdout_score), point, drawn, options)
            for judge, chooser, holdout_score in scores
        ],
        against=_against([judge for judge, _, _ in scores], point, drawn),
        remarks=[*remarks, *_remarks(report.arms, clusters)],
    )


def _judged(
    judge: TrainableJudge,
    selection: tuple[Part, Score],
    holdout: tuple[Part, Score],
    point: Mapping[str, Floats],
    drawn: Mapping[str, Floats],
    options: StudyOptions,
) -> JudgeFigures:
    figures = {name: _estimate(f"{judge.key}/{name}", point, drawn) for name in CURVE_FIGURES}
    if judge.key == "random_mix":  # a coin reaches every point of the line between the models
        figures |= {name: Estimate(share) for name, share in _COIN.items()}
    ece, brier = calibration(holdout[0].arms, holdout[1])
    chosen = made = None
    if judge.key not in ("oracle", "random_mix"):
        chosen = neutral(*selection, *holdout, draws=options.draws, seed=options.seed)
        made = certified(
            *selection, *holdout, alpha=options.alpha, delta=options.delta, draws=options.draws, seed=options.seed
        )
    return JudgeFigures(
        key=judge.key,
        label=judge.label,
        ours=judge.ours,
        figures=figures,
        ece=ece,
        brier=brier,
        neutral=chosen,
        certified=made,
    )


_COIN = {"cpt50": 0.5, "cpt80": 0.8, "cpt95": 0.95, "cpt100": 1.0}


def _against(
    judges: Sequence[TrainableJudge], point: Mapping[str, Floats], drawn: Mapping[str, Floats]
) -> list[CostRatio]:
    ours = [judge.key for judge in judges if judge.ours]
    others = [judge.key for judge in judges if not judge.ours and judge.key not in ("oracle", "random_mix")]
    if not ours or not others:
        return []
    rows = []
    for figure in ("qnc", "cost95"):
        mine, theirs = (min(keys, key=lambda key: float(point[f"{key}/{figure}"])) for keys in (ours, others))
        value = _ratio(point[f"{mine}/{figure}"], point[f"{theirs}/{figure}"])
        draws = _ratio(drawn[f"{mine}/{figure}"], drawn[f"{theirs}/{figure}"])
        rows.append(CostRatio(figure=figure, ours=mine, other=theirs, ratio=_interval(value, draws)))
    return rows


def _ratio(ours: Floats, theirs: Floats) -> Floats:
    """Where a pass rate is never reached, the large model alone reaches it at a cost of 1."""
    return np.asarray(np.minimum(ours, 1.0) / np.minimum(theirs, 1.0))


def _estimate(name: str, point: Mapping[str, Floats], drawn: Mapping[str, Floats]) -> Estimate:
    return _interval(point[name], drawn[name])


def _interval(value: Floats, drawn: Floats) -> Estimate:
    if np.isnan(drawn).all():
        return Estimate(finite(float(value)))
    low, high = percentile_interval(drawn)
    return Estimate(finite(float(value)), finite(float(low)), finite(float(high)))


def _remarks(arms: Arms, clusters: int) -> list[str]:
    counted = [
        (arms.small_failed, "requests of the small model had no answer; they count as not passed and free"),
        (arms.small_unpriced, "drafts have no measured seconds; they count as free"),
        (arms.left_out.without_small, "cases of the set are not in the small model's trace"),
    ]
    remarks = [f"{n:,} {text}." for n, text in counted if n]
    if clusters < 30:
        remarks.append(f"Only {clusters} independent groups: the intervals are too narrow.")
    gap = float(arms.large_pass.mean() - arms.small_pass.mean())
    if gap <= 0:
        remarks.append("The large model is not the better one here: figures of the gap are not defined.")
    return remarks
