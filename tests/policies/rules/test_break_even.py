"""What a draft gains once the large model's prompt cache is reckoned in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.rules.break_even import TokenPrices, Turn, break_even_acceptance, draft_gain_usd, large_usd

PRICES = TokenPrices(input_usd=10e-6, cached_usd=1e-6, output_usd=40e-6)
tokens = st.floats(0, 1e6)
shares = st.floats(0, 1)
turns = st.builds(Turn, tokens, tokens, tokens, st.booleans())


def test_the_gain_is_the_saved_turn_less_the_lost_cache_and_the_draft() -> None:
    """By hand: 1,000 tokens of which 800 are cached, 100 of answer."""
    turn = Turn(1000, 800, 100, cache_outlives=True)
    assert large_usd(turn, PRICES) == pytest.approx(800e-6 + 2000e-6 + 4000e-6)
    gain = draft_gain_usd(turn, PRICES, accepted=0.5, later_large=0.5, draft_usd=0.001)
    assert gain == pytest.approx(0.5 * (0.0068 - 0.5 * 200 * 9e-6) - 0.001)
    cold = Turn(1000, 800, 100, cache_outlives=False)
    gain = draft_gain_usd(cold, PRICES, accepted=0.5, later_large=0.5, draft_usd=0.001)
    assert gain == pytest.approx(0.5 * (0.0068 - 0.5 * 1000 * 9e-6) - 0.001)


def test_a_long_cached_prompt_with_a_short_answer_is_never_worth_a_draft_where_the_cache_runs_out() -> None:
    """The one case in which a served draft costs more than the large model: however often it is served."""
    turn = Turn(100_000, 100_000, 20, cache_outlives=False)
    assert break_even_acceptance(turn, PRICES, later_large=0.5, draft_usd=0.0) == float("inf")
    assert break_even_acceptance(turn, PRICES, later_large=0.0, draft_usd=0.0) == 0.0


@given(turns, shares, st.floats(0, 1))
def test_the_gain_changes_its_sign_at_the_break_even_share(turn: Turn, later_large: float, draft_usd: float) -> None:
    share = break_even_acceptance(turn, PRICES, later_large=later_large, draft_usd=draft_usd)
    for accepted in (0.0, 0.25, 0.5, 0.75, 1.0):
        gain = draft_gain_usd(turn, PRICES, accepted=accepted, later_large=later_large, draft_usd=draft_usd)
        if accepted > share * (1 + 1e-9) + 1e-12:
            assert gain >= 0
        elif accepted < share * (1 - 1e-9):
            assert gain <= 0


@given(turns, shares, shares, shares)
def test_a_later_large_turn_and_a_cold_cache_never_make_a_draft_worth_more(
    turn: Turn, accepted: float, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    warm = Turn(turn.prompt_tokens, turn.cached_tokens, turn.answer_tokens, cache_outlives=True)
    cold = Turn(turn.prompt_tokens, turn.cached_tokens, turn.answer_tokens, cache_outlives=False)

    def gain(of: Turn, later_large: float) -> float:
        return draft_gain_usd(of, PRICES, accepted=accepted, later_large=later_large, draft_usd=0.0)

    assert gain(turn, more) <= gain(turn, less) + 1e-9
    assert gain(cold, one) <= gain(warm, one) + 1e-9


@given(turns, shares)
def test_where_the_cache_outlives_the_wait_a_served_draft_always_saves(turn: Turn, later_large: float) -> None:
    """What would be lost is at most what would be paid now."""
    warm = Turn(turn.prompt_tokens, turn.cached_tokens, turn.answer_tokens, cache_outlives=True)
    assert draft_gain_usd(warm, PRICES, accepted=1.0, later_large=later_large, draft_usd=0.0) >= -1e-9


def test_probabilities_are_probabilities() -> None:
    turn = Turn(1, 0, 1, cache_outlives=True)
    with pytest.raises(ValueError, match="accepted"):
        draft_gain_usd(turn, PRICES, accepted=1.1, later_large=0, draft_usd=0)
    with pytest.raises(ValueError, match="later_large"):
        draft_gain_usd(turn, PRICES, accepted=1, later_large=float("nan"), draft_usd=0)
