"""Changed tools, shifted signals, moved error rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from evaluation.live.drift import audits_needed, changes, psi, shifts, tool_sha256, trusted
from evaluation.metrics import MetricError

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"days": {"maximum": 7.0}, "city": {"enum": ["Köln", "Rom"]}}},
    },
}


def test_the_hash_of_a_tool_is_fixed() -> None:
    """A change of this value voids every hash kept so far."""
    assert tool_sha256(TOOL) == "d83ee6ecba7786ce93f32ada46278f46ca6c38a5da077f8bafa77466837c55cb"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def _shuffled(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shuffled(value[key]) for key in reversed(value)}
    return [_shuffled(one) for one in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(), _json, max_size=5))
def test_the_order_of_keys_does_not_matter_and_no_json_is_refused(tool: dict[str, object]) -> None:
    shuffled = _shuffled(tool)
    assert isinstance(shuffled, dict)
    assert tool_sha256(shuffled) == tool_sha256(tool)


def test_what_the_model_reads_otherwise_has_another_hash_and_what_it_reads_alike_has_not() -> None:
    def with_days(days: object) -> str:
        return tool_sha256({"name": "t", "parameters": {"days": days}})

    assert with_days({"maximum": 7}) == with_days({"maximum": 7.0})
    others = [{"maximum": 8}, {"maximum": "7"}, {"maximum": True}, {"enum": [1, 2]}, {"enum": [2, 1]}, {}]
    assert len({with_days({"maximum": 7}), *map(with_days, others)}) == 7
    assert with_days({"maximum": 1}) != with_days({"maximum": True})


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, {1, 2}, b"x"])
def test_what_is_not_json_has_no_hash(value: object) -> None:
    with pytest.raises(MetricError, match="tool"):
        tool_sha256({"name": value})


def test_forty_five_clean_audits_show_five_per_cent_at_ninety() -> None:
    assert audits_needed(0.05, 0.9) == 45
    assert 0.95**45 <= 0.1 < 0.95**44


@pytest.mark.parametrize("errors", [0, 1, 3])
def test_the_number_of_audits_is_the_least_that_shows_it(errors: int) -> None:
    n = audits_needed(0.03, 0.95, errors=errors)
    assert binom.cdf(errors, n, 0.03) <= 0.05 < binom.cdf(errors, n - 1, 0.03)


def test_trust_is_earned_by_the_first_audits_and_not_by_waiting_for_a_clean_run() -> None:
    assert not trusted([True] * 44)
    assert trusted([True] * 45)
    assert trusted([True] * 45 + [False])
    assert not trusted([False] + [True] * 500)
    assert not trusted([])


def test_a_bad_tool_is_trusted_no_more_often_than_said() -> None:
    calls = np.random.default_rng(1).random((2000, 300)) >= 0.05
    assert sum(trusted(one) for one in calls) <= binom.ppf(0.999, 2000, 0.1)


def test_psi_is_small_by_chance_large_after_a_shift_and_as_counted_by_hand() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=5000), rng.normal(size=5000)
    assert psi(a, b) < 0.01
    assert psi(a, b + 0.8) > 0.25
    then, now = np.repeat([0.0, 1.0], [4, 4]), np.repeat([0.0, 1.0], [1, 7])
    p, q = np.array([4.5, 4.5]) / 9, np.array([1.5, 7.5]) / 9
    assert psi(then, now, bins=2) == pytest.approx(float(((q - p) * np.log(q / p)).sum()))
    assert psi(np.ones(500), np.ones(900)) < 0.001


def test_only_shifted_signals_are_told_and_missing_ones_are_counted() -> None:
    rng = np.random.default_rng(3)
    then = {f"s{i}": rng.normal(size=400) for i in range(20)}
    now = {f"s{i}": rng.normal(size=400) + (0.5 if i < 2 else 0.0) for i in range(20)}
    now["s5"][:100] = np.nan
    then["none"] = np.full(400, np.nan)
    now["none"] = np.zeros(400)
    found = shifts(then, now)
    assert {shift.name for shift in found[:2]} == {"s0", "s1"}
    assert [shift.q_value < 0.05 for shift in found] == [True] * 2 + [False] * 18
    assert {shift.name: (shift.missing_then, shift.missing_now) for shift in found}["s5"] == (0.0, 0.25)
    with pytest.raises(MetricError, match="none"):
        shifts({"none": [1.0]}, {})
    assert shifts({}, {}) == ()


def test_without_any_shift_something_is_told_at_most_as_often_as_said() -> None:
    """All hypotheses true: Benjamini and Hochberg's level is the chance of any false alarm."""
    rng = np.random.default_rng(4)
    false = sum(
        any(
            shift.q_value < 0.1
            for shift in shifts(
                {str(i): rng.normal(size=100) for i in range(8)}, {str(i): rng.normal(size=100) for i in range(8)}
            )
        )
        for _ in range(300)
    )
    assert false <= binom.ppf(0.999, 300, 0.1)


def _stream(seed: int, before: float, after: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.random(1000) < before, rng.random(1000) < after]).astype(np.float64)


RIVER = {  # (before, after): values read when river 0.26.1's ADWIN(delta=.002, clock=1, grace_period=1) told of it
    (1, 0.05, 0.15): 1387,
    (2, 0.05, 0.30): 1063,
    (3, 0.20, 0.10): 1477,
}


@pytest.mark.parametrize("case", RIVER)
def test_a_moved_error_rate_is_seen_about_as_soon_as_river_sees_it(case: tuple[int, float, float]) -> None:
    found = changes(_stream(*case))
    assert len(found) == 1
    (change,) = found
    assert abs(change.seen_at - RIVER[case]) < 200
    assert abs(change.began - 1000) < 200
    assert change.before == pytest.approx(case[1], abs=0.03)


def test_a_steady_stream_is_left_alone() -> None:
    rng = np.random.default_rng(5)
    assert (
        sum(bool(changes((rng.random(1000) < rate).astype(np.float64))) for rate in (0.05, 0.5) for _ in range(50)) <= 1
    )


@pytest.mark.parametrize("errors", [[0.5, 1.5], [-0.1], [np.nan]])
def test_values_outside_zero_to_one_are_refused(errors: list[float]) -> None:
    with pytest.raises(MetricError):
        changes(errors)
