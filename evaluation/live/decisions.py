"""Decisions of a ledger as the rows of a study: which drafts are known to have been right, and which speak for all.

A draft that was served is known by what somebody said of it (feedback), by a tool that refused its call for what it
asked, else by an audit: whether the large model said the same. One that went large is known where it was compared with
the large model's answer. Labels that are weaker, and results for which the environment is at fault, say nothing here.

Two ways to choose among the known:
- `sample`: every decision has the same chance p₀ to be among the rows, so rows may be counted as they are, and exact
  bounds hold. Served drafts of which nobody said anything are known with the probability e(x) with which they were to
  be audited, all others for certain; each is kept with probability p₀/e, p₀ the least e there is. Which ones follows
  from their ids: the same ledger gives the same rows. Decisions that without a chance of an audit are left out, for a
  reason that does not hang on the request (`router.outcomes.shadow_audits`).
- `told`: served drafts that somebody or a tool spoke of, as they are. Nothing makes them like the others.

The large model's answer is taken to be right unless somebody said otherwise: audits hold drafts against it. So harm is
counted where the two differ, which is never too little for that model.

Not guaranteed: that the large model is right; that those whose audit failed are like the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Labels = Literal["sample", "told"]
NO_TOOL = "(no call)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One judged decision whose draft was whole, and what is known of it."""

    decision_id: str
    created_at: datetime
    small: bool
    """True if the draft was served; else the large model answered."""
    judge: str
    """Name of the judge that gave the score: scores of two judges cannot be compared."""
    reason: str
    outcome: str
    valid: bool
    score: float | None
    """None: the draft could not be served, or its policy gives no score."""
    probability: float | None
    tool: str | None
    """The first that the client's answer calls."""
    told: bool | None = None
    """True if the client's answer was right, by feedback or a tool's refusal; None: nobody said."""
    propensity: float | None = None
    """With which the draft was to be held against the large model; None: it could not be."""
    compared: bool = False
    agreed: bool | None = None
    """The result of that comparison; None where it was not made or came to nothing."""
    small_model: str | None = None
    large_model: str | None = None
    small_usd: float | None = None
    large_usd: float | None = None
    """The cost of the large model's answer, or what it would have been, as `evaluation.live.costs` estimates it."""
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    latency_s: float = 0.0
    """Seconds that the whole request took."""
    audit_s: float | None = None

    @property
    def passes(self) -> tuple[bool, bool] | None:
        """(draft right, large model's answer right); None where that of the draft is not known."""
        if self.small:
            right = self.told if self.told is not None else self.agreed
            return None if right is None else (right, right if self.agreed else True)
        large = self.told is not False
        if self.agreed:
            return large, large
        return (False, True) if self.agreed is False and large else None

    @property
    def known_with(self) -> float | None:
        """The probability with which `passes` came to be known; None where nothing could make it known."""
        if self.propensity is None:
            return None
        return 1.0 if self.small and self.told is not None else self.propensity


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows of a study, and how many decisions are none of them, by reason."""

    rows: Sequence[Observed]
    left_out: Mapping[str, int]
    unseen: int = 0
    """In a sample: decisions for which the rows stand, though they are not among them."""
    share: float = 1.0
    """p₀: every decision's chance to be among the rows."""


@dataclass(slots=True)
class _Sieve:
    left_out: Counter[str] = field(default_factory=Counter)

    def keep(self, rows: Sequence[Observed], reason: str, kept: Sequence[bool]) -> list[Observed]:
        self.left_out[reason] += kept.count(False)
        return [row for row, stays in zip(rows, kept, strict=True) if stays]


def choose(rows: Sequence[Observed], labels: Labels, *, given_up: int = 0) -> Chosen:
    """The rows that a study may count.

    Args:
        rows: in the order of time; the newest one's judge is the one that counts.
        given_up: decisions beside them whose draft was never whole.
    """
    sieve = _Sieve()
    sieve.left_out["given up before the draft was whole"] = given_up
    judge = rows[-1].judge if rows else ""
    found = sieve.keep(rows, "scored by another judge than the newest", [row.judge == judge for row in rows])
    if labels == "told":
        found = sieve.keep(
            found, "gone large, and nobody said whether the draft was right", [row.small for row in found]
        )
        found = sieve.keep(
            found,
            "answered small, and nobody said whether that was right",
            [row.told is not None for row in found],
        )
        return _priced(found, sieve)
    kept = [row.small or row.compared for row in found]
    found = sieve.keep(found, "gone large, and nothing compared the draft with the answer", kept)
    found = sieve.keep(found, "without a chance of an audit", [row.known_with is not None for row in found])
    share = min((row.known_with or 1.0 for row in found), default=1.0)
    # What could be known and is not: an audit that failed, or a large model that was wrong where the draft differed.
    lost = "held against the large model, which showed nothing"
    found = sieve.keep(found, lost, [not row.compared or row.passes is not None for row in found])
    drawn = [row for row in found if row.passes is not None and _place(row) * (row.known_with or 1.0) < share]
    return _priced(drawn, sieve, unseen=len(found) - len(drawn), share=share)


def _priced(rows: Sequence[Observed], sieve: _Sieve, *, unseen: int = 0, share: float = 1.0) -> Chosen:
    kept = sieve.keep(rows, "where the large model's cost is not known", [row.large_usd is not None for row in rows])
    return Chosen(kept, {reason: n for reason, n in sieve.left_out.items() if n}, unseen, share)


def _place(row: Observed) -> float:
    """In [0, 1), by the decision's id alone."""
    digest = hashlib.sha256(f"sample\x00{row.decision_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
