"""Metrics against values worked out by hand, against scikit-learn, and against the properties that define them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import brier_score_loss, roc_auc_score

from evaluation import metrics
from evaluation.metrics import MetricError, sweep

# Five requests; scores tie at .5; the last draft may not be served.
SCORES = [0.9, 0.5, 0.5, 0.2, -np.inf]
SMALL = [1, 1, 0, 0, 0]
LARGE = [1, 0, 1, 1, 1]
COST_S = [1.0, 1.0, 1.0, 1.0, 1.0]
COST_L = [10.0, 10.0, 20.0, 30.0, 30.0]


def _five() -> metrics.Curve:
    return sweep(SCORES, SMALL, LARGE, COST_S, COST_L)


@st.composite
def _requests(draw: st.DrawFn) -> tuple[np.ndarray, ...]:
    """Scores with many ties, two pass columns, two cost columns."""
    n = draw(st.integers(1, 30))
    scores = draw(arrays(np.float64, n, elements=st.sampled_from([-np.inf, 0.0, 0.25, 0.5, 0.75])))
    small, large = (draw(arrays(np.bool_, n)) for _ in range(2))
    cost_s, cost_l = (draw(arrays(np.int64, n, elements=st.integers(0, 9))) for _ in range(2))
    return scores, small, large, cost_s, cost_l + 1


def test_sweep_gives_the_points_worked_out_by_hand() -> None:
    """Tied requests move together, and the small model is paid for on every request."""
    curve = _five()
    assert curve.threshold.tolist() == [np.inf, 0.9, 0.5, 0.2, -np.inf]
    assert curve.escalated == pytest.approx([1.0, 0.8, 0.4, 0.2, 0.0])
    assert curve.quality == pytest.approx([0.8, 0.8, 0.8, 0.6, 0.4])
    assert curve.cost == pytest.approx([21.0, 19.0, 13.0, 7.0, 1.0])
    assert curve.reachable().tolist() == [True, True, True, True, False]


@given(_requests())
def test_every_point_is_what_its_threshold_does(rows: tuple[np.ndarray, ...]) -> None:
    """Recomputing a point from `score >= threshold` gives the same share, quality and cost."""
    scores, small, large, cost_s, cost_l = rows
    curve = sweep(*rows)
    for i, threshold in enumerate(curve.threshold):
        accept = scores >= threshold
        assert curve.escalated[i] == pytest.approx(1 - accept.mean())
        assert curve.quality[i] == pytest.approx(np.where(accept, small, large).mean())
        assert curve.cost[i] == pytest.approx((cost_s + np.where(accept, 0, cost_l)).mean())


@given(_requests())
def test_raising_the_threshold_never_lowers_escalations_or_cost(rows: tuple[np.ndarray, ...]) -> None:
    """From the first point to the last, share escalated and cost only fall."""
    curve = sweep(*rows)
    assert (np.diff(curve.escalated) < 0).all()
    assert (np.diff(curve.cost) <= 1e-9).all()


@given(_requests(), st.integers(0, 2**32 - 1))
def test_weights_count_rows_as_repetition_does(rows: tuple[np.ndarray, ...], seed: int) -> None:
    """A row of weight k is the row written k times; two rows of weights give two curves."""
    n = len(rows[0])
    weights = np.random.default_rng(seed).integers(1, 4, size=(2, n))
    both = sweep(*rows, weights=weights)
    for b in range(2):
        repeated = sweep(*(np.repeat(column, weights[b]) for column in rows))
        assert both.quality[b] == pytest.approx(repeated.quality)
        assert both.cost[b] == pytest.approx(repeated.cost)
        assert both.escalated[b] == pytest.approx(repeated.escalated)


@given(_requests())
def test_the_oracle_dominates_every_score(rows: tuple[np.ndarray, ...]) -> None:
    """At any share escalated, ordering by who passes reaches at least the quality of another order."""
    _, small, large, cost_s, cost_l = rows
    other = sweep(*rows)
    oracle = sweep(small.astype(float) - large, small, large, cost_s, cost_l)
    at = np.interp(other.escalated[::-1], oracle.escalated[::-1], oracle.quality[::-1])
    assert (at >= other.quality[::-1] - 1e-9).all()


@pytest.mark.parametrize(
    ("scores", "cost"), [([0.1, np.nan], 1.0), ([0.1, np.inf], 1.0), ([], 1.0), ([0.1, 0.2], np.nan)]
)
def test_a_sweep_refuses_what_it_cannot_order(scores: list[float], cost: float) -> None:
    """NaN, +inf and no request at all are errors, never a silent figure."""
    n = len(scores)
    with pytest.raises(MetricError):
        sweep(scores, [1] * n, [1] * n, [cost] * n, [1.0] * n)


def test_gap_figures_by_hand() -> None:
    """PGR, APGR and CPT of the five requests: q_S = .4, q_L = .8."""
    curve = _five()
    assert metrics.pgr(curve.quality, 0.4, 0.8) == pytest.approx([1, 1, 1, 0.5, 0])
    # Trapezoids over ρ: 0→.2 at mean .25, .2→.4 at mean .75, .4→1 at 1.
    assert metrics.apgr(curve) == pytest.approx(0.2 * 0.25 + 0.2 * 0.75 + 0.6)
    assert metrics.cpt(curve, 0.5) == pytest.approx(0.2)
    assert metrics.cpt(curve, 1.0) == pytest.approx(0.4)
    assert np.isnan(metrics.pgr(0.5, 0.4, 0.4))


def test_cpt_takes_the_first_crossing_of_a_curve_that_falls_again() -> None:
    """PGR 0, 1, 0, 1 over rising ρ: 100 % is reached at the first rise, and is not interpolated."""
    curve = sweep([3, 2, 1], [0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1])
    assert metrics.pgr(curve.quality, curve.quality[-1], curve.quality[0])[::-1] == pytest.approx([0, 1, 0, 1])
    assert metrics.cpt(curve, 1.0) == pytest.approx(1 / 3)
    assert metrics.cpt(curve, 1.5) == np.inf


def test_a_random_order_recovers_half_of_the_gap() -> None:
    """One tie group is a straight line between the models: APGR 1/2."""
    assert metrics.apgr(sweep([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1] * 4, [1] * 4)) == pytest.approx(0.5)


def test_quality_neutral_cost_by_hand() -> None:
    """q ≥ .8 is cheapest at cost 13, and c_L is 20; an invalid draft is no way to save."""
    assert metrics.qnc(_five(), np.mean(COST_L)) == pytest.approx(13 / 20)
    hopeless = sweep([-np.inf] * 2, [1, 1], [1, 0], [1, 1], [4, 4])
    assert metrics.qnc(hopeless, 4.0) == pytest.approx(5 / 4)


def test_hull_and_aiq_by_hand() -> None:
    """Dominated points go, dents are bridged, and the hull stays level to the right."""
    cost, quality = [0, 1, 2, 3, 4], [0.2, 0.3, 0.8, 0.7, 0.9]
    assert [v.tolist() for v in metrics.hull(cost, quality)] == [[0, 2, 4], [0.2, 0.8, 0.9]]
    assert metrics.aiq(cost, quality, 0, 4) == pytest.approx((2 * 0.5 + 2 * 0.85) / 4)
    assert metrics.aiq(cost, quality, 0, 8) == pytest.approx((2 * 0.5 + 2 * 0.85 + 4 * 0.9) / 8)
    assert metrics.aiq(cost, quality, 1, 2) == pytest.approx((0.5 + 0.8) / 2)
    with pytest.raises(MetricError):
        metrics.aiq([1, 2], [0.1, 0.2], 0, 2)


@given(_requests())
def test_the_hull_is_above_all_points_rising_and_concave(rows: tuple[np.ndarray, ...]) -> None:
    """What defines the non-decreasing convex hull holds on any sweep."""
    curve = sweep(*rows)
    cost, quality = metrics.hull(curve.cost, curve.quality)
    assert (np.interp(curve.cost, cost, quality) >= curve.quality - 1e-9).all()
    assert (np.diff(cost) > 0).all()
    assert (np.diff(quality) > 0).all()
    assert (np.diff(np.diff(quality) / np.diff(cost)) < 1e-9).all()


_SCORED = st.integers(1, 40).flatmap(
    lambda n: st.tuples(arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])), arrays(np.bool_, n))
)


@given(_SCORED)
def test_auroc_and_brier_equal_scikit_learn(scored: tuple[np.ndarray, np.ndarray]) -> None:
    """Ties included; with one class AUROC is not defined."""
    scores, labels = scored
    assert metrics.brier(scores, labels) == pytest.approx(brier_score_loss(labels, scores, labels=[False, True]))
    if labels.all() or not labels.any():
        assert np.isnan(metrics.auroc(scores, labels))
    else:
        assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@given(_SCORED, st.integers(0, 2**32 - 1))
def test_auroc_counts_weights_as_repetition(scored: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """A row of weight k is the row written k times, and one of weight 0 is not there."""
    scores, labels = scored
    weights = np.random.default_rng(seed).integers(0, 3, size=(2, len(scores)))
    weights[:, 0] += 1
    got = metrics.auroc(scores, labels, weights=weights)
    for b in range(2):
        want = metrics.auroc(np.repeat(scores, weights[b]), np.repeat(labels, weights[b]))
        assert got[b] == pytest.approx(want, nan_ok=True)


def test_aurc_by_hand() -> None:
    """Failure rates among the best 1, 2, 3 are 0, 1/2, 1/3; the best order has 0, 0, 1/3."""
    assert metrics.aurc([3, 2, 1], [1, 0, 1]) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert metrics.e_aurc([3, 2, 1], [1, 0, 1]) == pytest.approx((1 / 2) / 3)


@given(_SCORED, st.integers(0, 2**32 - 1))
def test_aurc_of_ties_is_the_mean_over_their_orders(scored: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """A constant score has the failure rate at every k; a perfect score has no excess."""
    _, labels = scored
    assert metrics.aurc(np.zeros(len(labels)), labels) == pytest.approx(1 - labels.mean())
    assert metrics.e_aurc(labels.astype(float), labels) == pytest.approx(0)
    order = np.random.default_rng(seed).permutation(len(labels))
    scores = scored[0]
    assert metrics.aurc(scores, labels) == pytest.approx(metrics.aurc(scores[order], labels[order]))


def test_ece_by_hand() -> None:
    """Two bins of two rows: |(0+1) − (.1+.3)|/4 + |(1+1) − (.6+.8)|/4."""
    assert metrics.ece([0.1, 0.3, 0.6, 0.8], [0, 1, 1, 1], bins=2) == pytest.approx((0.6 + 0.6) / 4)
    assert metrics.ece([0.75] * 8, [1, 1, 1, 0] * 2) == pytest.approx(0)
    assert metrics.ece([1.0, 0.0], [0, 1]) == pytest.approx(1)


def test_ece_fills_bins_by_rank() -> None:
    """Fifteen bins over thirty rows hold two each, however the probabilities cluster."""
    p = np.linspace(0, 1, 30) ** 6
    y = np.arange(30) % 2
    pairs = np.abs((y - p).reshape(15, 2).sum(axis=1)).sum() / 30
    assert metrics.ece(p, y) == pytest.approx(pairs)


@pytest.mark.parametrize("bad", [[1.5, 0.5], [np.nan, 0.5]])
def test_probability_metrics_refuse_other_numbers(bad: list[float]) -> None:
    """A logit or a NaN is an error."""
    for metric in (metrics.brier, metrics.ece):
        with pytest.raises(MetricError):
            metric(bad, [0, 1])


@given(_SCORED, st.integers(0, 2**32 - 1))
def test_aurc_counts_weights_as_repetition(scored: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """A row of weight k is the row written k times, and one of weight 0 is not there."""
    scores, labels = scored
    weights = np.random.default_rng(seed).integers(0, 3, size=(2, len(scores)))
    weights[:, 0] += 1
    for metric in (metrics.aurc, metrics.e_aurc):
        got = metric(scores, labels, weights=weights)
        for b in range(2):
            want = metric(np.repeat(scores, weights[b]), np.repeat(labels, weights[b]))
            assert got[b] == pytest.approx(want)


def test_area_under_the_deferral_curve_by_hand() -> None:
    """Costs 1, 7, 13, 19, 21 scale to 0, .3, .6, .9, 1 with pass rates .4, .6, .8, .8, .8."""
    assert metrics.audc(_five()) == pytest.approx(0.3 * 0.5 + 0.3 * 0.7 + 0.3 * 0.8 + 0.1 * 0.8)
    assert np.isnan(metrics.audc(sweep([0.0], [1], [0], [1], [0])))


def test_cost_at_a_share_of_the_gap_by_hand() -> None:
    """Half of the gap costs 7 of the large model's 20; all of it is the quality-neutral cost."""
    assert metrics.cost_at(_five(), 0.5, np.mean(COST_L)) == pytest.approx(7 / 20)
    assert metrics.cost_at(_five(), 1.0, np.mean(COST_L)) == pytest.approx(metrics.qnc(_five(), np.mean(COST_L)))
    assert metrics.cost_at(_five(), 1.5, 1.0) == np.inf
