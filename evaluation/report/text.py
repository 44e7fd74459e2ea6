"""Figures in words, alike on the page and in the terminal. An en dash stands for what is not defined."""

from __future__ import annotations

from evaluation.replay.figures import Estimate


def percent(estimate: Estimate) -> str:
    """`84.2 % (81.0–87.1)`."""
    if estimate.value is None:
        return "–"
    text = f"{100 * estimate.value:.1f} %"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"


def number(estimate: Estimate) -> str:
    """`0.612 (0.551–0.660)`."""
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"
