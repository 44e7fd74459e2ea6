"""The guarantee, by simulation and by exact enumeration; and what is returned where nothing can be shown."""

import functools
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from policies.rules.certificate import (
    certify_along,
    certify_classes,
    certify_harm,
    certify_risk,
    fixed_sequence,
    one_of_each,
    upper_bound,
)

DRAWS = 2000


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, and whether each model is right: P(small right) is the score, the large one is right in 90 %."""
    scores = rng.beta(2, 1, n).round(2)  # Rounded: ties are part of the matter.
    return scores, rng.random(n) < scores, rng.random(n) < 0.9


def true_harm(threshold: float) -> float:
    """P(score ≥ threshold, small wrong, large right) in `draw`, by numbers."""
    scores = population()
    return float(np.mean((scores >= threshold) * (1 - scores)) * 0.9)


@functools.cache
def population() -> np.ndarray:
    """Very many scores of `draw`."""
    return np.random.default_rng(0).beta(2, 1, 400_000).round(2)


def test_harm_exceeds_its_bound_in_no_more_than_delta_of_the_draws() -> None:
    """2,000 draws of 400 rows: violations stay under δ within three standard errors, and are not absent."""
    rng, alpha, delta = np.random.default_rng(1), 0.05, 0.1
    harm_at = {threshold: true_harm(threshold) for threshold in np.arange(0, 101) / 100}
    violations = certified = 0
    for _ in range(DRAWS):
        made = certify_harm(*draw(rng, 400), alpha=alpha, delta=delta)
        if made is not None:
            certified += 1
            violations += harm_at[round(made.threshold, 2)] > alpha
    assert certified > 0.95 * DRAWS
    assert violations <= DRAWS * delta + 3 * (DRAWS * delta * (1 - delta)) ** 0.5
    assert violations > 0.2 * DRAWS * delta, "a guarantee that is never used up is wasteful"


def test_the_empirical_choice_violates_it_far_more_often() -> None:
    """Why a certificate is needed: the loosest threshold whose own rate is under α breaks α in many draws."""
    rng, alpha = np.random.default_rng(2), 0.05
    harm_at = {threshold: true_harm(threshold) for threshold in np.arange(0, 101) / 100}
    violations = 0
    for _ in range(400):
        scores, small, large = draw(rng, 400)
        rates = {t: np.mean((scores >= t) & ~small & large) for t in np.unique(scores)}
        chosen = min((t for t, rate in rates.items() if rate <= alpha), default=1.0)
        violations += harm_at[round(float(chosen), 2)] > alpha
    assert violations > 0.3 * 400


def test_selective_risk_exceeds_its_bound_in_no_more_than_delta_of_the_draws() -> None:
    """The same for the share of wrong answers among the accepted."""
    rng, alpha, delta = np.random.default_rng(3), 0.15, 0.1
    scores = np.random.default_rng(0).beta(2, 1, 1_000_000).round(2)
    risk_at = {t: float(np.mean(1 - scores[scores >= t])) for t in np.arange(0, 101) / 100}
    violations = certified = 0
    for _ in range(DRAWS):
        values, small, _ = draw(rng, 600)
        made = certify_risk(values, small, alpha=alpha, delta=delta)
        if made is not None:
            certified += 1
            assert made.accepted >= 150
            violations += risk_at[round(made.threshold, 2)] > alpha
    assert certified > 0.5 * DRAWS
    assert violations <= DRAWS * delta + 3 * (DRAWS * delta * (1 - delta)) ** 0.5


def test_the_walk_stops_where_the_exact_test_first_fails() -> None:
    """By hand: 200 rows, no harm in the best 100, one in ten after that."""
    n, alpha, delta = 200, 0.05, 0.1
    scores = np.linspace(1, 0, n)
    small = np.array([index < 100 or index % 10 != 0 for index in range(n)])
    most = max(k for k in range(n) if binom.cdf(k, n, alpha) <= delta)
    made = certify_harm(scores, small, np.ones(n, dtype=bool), alpha=alpha, delta=delta)
    assert made is not None
    assert made.errors == most
    first_too_many = np.flatnonzero(np.cumsum(~small) > most)[0]
    assert made.threshold == scores[first_too_many - 1]
    assert made.accepted == first_too_many
    assert made.bound <= alpha < upper_bound(made.errors + 1, n, delta)


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, -np.inf]), st.booleans(), st.booleans()), max_size=60))
def test_no_draft_that_may_not_be_served_is_ever_accepted(rows: list[tuple[float, bool, bool]]) -> None:
    """Thresholds are finite scores, counts are those of the rows, and large errors do no harm."""
    scores, small, large = (np.array(column) for column in zip(*rows, strict=True)) if rows else (np.zeros(0),) * 3
    made = certify_harm(scores, small, large, alpha=0.3, delta=0.3)
    if made is not None:
        accepted = scores >= made.threshold
        assert np.isfinite(made.threshold)
        assert made.accepted == accepted.sum()
        assert made.errors == (accepted & ~small.astype(bool) & large.astype(bool)).sum()


def test_nothing_is_certified_where_nothing_can_be() -> None:
    """Too few rows, no draft to serve, or a score that is wrong at its surest."""
    sure = np.ones(40)
    right, wrong = np.ones(40, dtype=bool), np.zeros(40, dtype=bool)
    assert certify_harm(sure, right, right, alpha=0.05, delta=0.1) is None  # 0.95 ** 40 > 0.1
    assert certify_harm(np.ones(46), np.ones(46), np.ones(46), alpha=0.05, delta=0.1) is not None
    assert certify_harm(np.full(500, -np.inf), np.ones(500), np.ones(500), alpha=0.05, delta=0.1) is None
    assert certify_harm(sure, wrong, right, alpha=0.05, delta=0.1) is None
    assert certify_harm([], [], [], alpha=0.05, delta=0.1) is None
    assert certify_risk(sure, right, alpha=0.2, delta=0.1) is None


@pytest.mark.parametrize(
    ("scores", "small", "alpha", "delta"),
    [
        ([1.0], [True, False], 0.1, 0.1),
        ([np.nan], [True], 0.1, 0.1),
        ([1.0], [True], 0.0, 0.1),
        ([1.0], [True], 0.1, 1),
    ],
)
def test_what_makes_no_sense_is_refused(scores: list[float], small: list[bool], alpha: float, delta: float) -> None:
    """Lengths, NaN and rates are checked."""
    with pytest.raises(ValueError, match=r"shape|NaN|must lie"):
        certify_risk(scores, small, alpha=alpha, delta=delta)


def test_fixed_sequence_counts_to_the_first_that_is_not_rejected() -> None:
    """What stands behind a failure is not looked at, however good."""
    assert fixed_sequence([0, 0, 50, 0], 200, alpha=0.05, delta=0.1) == 2
    assert fixed_sequence([0, 0], 200, alpha=0.05, delta=0.1) == 2
    assert fixed_sequence([50], 200, alpha=0.05, delta=0.1) == 0


def test_the_upper_bound_covers_exactly() -> None:
    """For small n, by enumeration: P(bound < rate) ≤ δ for every rate."""
    for n, delta in product((5, 12), (0.1, 0.3)):
        bounds = np.array([upper_bound(k, n, delta) for k in range(n + 1)])
        for rate in np.linspace(0.01, 0.99, 25):
            missed = binom.pmf(np.arange(n + 1), n, rate)[bounds < rate].sum()
            assert missed <= delta + 1e-9


@given(st.lists(st.sampled_from("abcde")), st.integers(0, 99))
def test_one_row_of_each_cluster(clusters: list[str], seed: int) -> None:
    """Every cluster once, rows in order."""
    chosen = one_of_each(clusters, np.random.default_rng(seed))
    assert sorted(clusters[index] for index in chosen) == sorted(set(clusters))
    assert list(chosen) == sorted(chosen)


def test_all_classes_hold_together_in_all_but_delta_of_the_draws() -> None:
    """2,000 draws of three classes with their own rates: a draw counts as violated where any class breaks its own."""
    rng, delta = np.random.default_rng(4), 0.1
    alphas = {"delete_*": 0.04, "get_*": 0.1, "*": 0.06}
    harm_at = {threshold: true_harm(threshold) for threshold in np.arange(0, 101) / 100}
    violations = certified = 0
    for _ in range(DRAWS):
        scores, small, large = draw(rng, 900)
        classes = rng.choice(list(alphas), 900).tolist()
        made = certify_classes(scores, small, large, classes, alphas, delta=delta)
        found = {name: shown for name, shown in made.items() if shown is not None}
        certified += len(found)
        violations += any(harm_at[round(shown.threshold, 2)] > alphas[name] for name, shown in found.items())
        assert all(shown.delta == pytest.approx(delta / 3) for shown in found.values())
    assert certified > 0.9 * 3 * DRAWS
    assert violations <= DRAWS * delta + 3 * (DRAWS * delta * (1 - delta)) ** 0.5
    assert violations > 0.2 * DRAWS * delta, "a guarantee that is never used up is wasteful"


def test_a_class_counts_its_own_rows_only() -> None:
    """A hundred clean rows of one class certify it, whatever the other does."""
    scores, right = np.ones(200), np.arange(200) < 100
    classes = ["a"] * 100 + ["b"] * 100
    made = certify_classes(scores, right, np.ones(200), classes, {"a": 0.05, "b": 0.05}, delta=0.1)
    assert made["b"] is None
    assert made["a"] is not None
    assert (made["a"].rows, made["a"].errors) == (100, 0)


def test_several_thresholds_along_a_learned_order_hold_in_all_but_delta_of_the_draws() -> None:
    """2,000 draws: gate and threshold pairs, ordered on 200 rows, certified on 300 others (certificate C)."""
    rng, alpha, delta = np.random.default_rng(5), 0.06, 0.1
    pairs = list(product((0.0, 0.3, 0.5, 0.7), np.arange(0.4, 1.0, 0.05)))

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        """(pairs, n) accepted, (n,) harmed: a plan's doubt and a draft's, both of which tell of errors."""
        plan, last = rng.beta(3, 1, n), rng.beta(3, 1, n)
        accepted = np.array([(plan >= gate) & (last >= threshold) for gate, threshold in pairs])
        return accepted, rng.random(n) < 0.6 * (1 - plan * last)

    accepted, harmed = drawn(400_000)
    truth = (accepted & harmed).mean(axis=1)
    violations = certified = 0
    for _ in range(DRAWS):
        learned, wrong = drawn(200)
        harms, shares = (learned & wrong).mean(axis=1), learned.mean(axis=1)
        best, order = -1.0, []
        for index in np.lexsort((-shares, harms)):
            if shares[index] > best:
                best = shares[index]
                order.append(int(index))
        accepted, harmed = drawn(300)
        found = certify_along(
            [accepted[i] for i in order], harmed, [pairs[i][1] for i in order], alpha=alpha, delta=delta
        )
        if found is not None:
            certified += 1
            violations += truth[order[found[0]]] > alpha
            assert found[1].errors == (accepted[order[found[0]]] & harmed).sum()
    assert certified > 0.9 * DRAWS
    assert violations <= DRAWS * delta + 3 * (DRAWS * delta * (1 - delta)) ** 0.5
    assert violations > 0.1 * DRAWS * delta


@pytest.mark.parametrize("seed", range(4))
def test_mapie_certifies_the_same_threshold(seed: int) -> None:
    """An independent implementation of Learn then Test, given our loss: its p-value of a binary loss is the exact
    binomial one, so its loosest valid threshold is ours. Harm only: of a risk that does not rise steadily, such as that
    among the accepted, it walks no fixed sequence."""
    from mapie.risk_control import BinaryClassificationController, BinaryRisk, FWERFixedSequenceTesting

    scores, small, large = draw(np.random.default_rng(seed), 600)
    made = certify_harm(scores, small, large, alpha=0.06, delta=0.1)
    risk = BinaryRisk(lambda y, p: (p == 1) & (y == 0), lambda y, p: np.ones_like(p, dtype=bool), False)
    controller = BinaryClassificationController(
        lambda x: np.column_stack([1 - x[:, 0], x[:, 0]]),
        risk,
        0.06,
        confidence_level=0.9,
        best_predict_param_choice=risk,
        list_predict_params=np.unique(scores),
        fwer_method=FWERFixedSequenceTesting(),
    )
    controller.calibrate(scores[:, None], (small | ~large).astype(int))
    assert made is not None
    assert np.min(controller.valid_predict_params) == pytest.approx(made.threshold)
