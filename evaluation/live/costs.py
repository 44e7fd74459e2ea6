"""The money spent, and an estimate of what it would have cost to ask the large model always.

Spent is measured: the large model's reported usage by its price, the small model's seconds by its machine's price,
shadow audits by theirs; whole nano-dollars, so sums are exact. What answers must have cost that were cut short is an
estimate, and stands by itself.

**Always large** is an estimate wherever the small model answered. Such a request costs P·(p(1 − s) + c·s) + O·q, where
- P is its prompt in the large model's tokens: the body's bytes by the tokens a byte of the tenant's own large requests
  of that day;
- s is the share of cached prompt tokens in those, p and c the prices of uncached and cached ones;
- O is the mean number of tokens in which the tenant's large answers *that made a call* were written, q their price.
Prices are those that stood when the request was answered. A tenant with fewer than `MIN_ROWS` such answers that day is
estimated from all tenants' of the day; without any, a token is four bytes, nothing is cached, and the answer is as long
as the draft. Requests that the large model answered cost what they cost. Everything needed stands in the rows of one
day, so a day gives the same before and after its rows are rolled up.

Not guaranteed: that the large model would have been as brief; that the provider's cache would have held as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Literal

By = Literal["day", "hour", "key", "tenant", "tool", "model", "reason", "arm"]
MIN_ROWS = 20
"""Large answers with a call from which a tenant's own means are taken."""
_TOKENS_PER_BYTE = 0.25
_NANO_PER_USD_PER_MTOK = 1_000
"""A dollar per million tokens is so many nano-dollars a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostLine:
    """Decisions of one day that agree in all of this, summed. Empty text: none."""

    day: date
    key_id: str
    tool: str
    experiment: str
    arm: str
    side: str
    reason: str
    requests: int
    failed: int
    """With an HTTP status of 400 or more."""
    unpriced: int
    """Requests of unknown cost: the large model was asked and its usage or price is not known; or the small model
    answered and the large model's price is not known."""
    estimated: int
    """Requests that were cut short, with an estimate of the usage that was not reported."""
    large_prompt_tokens: int
    large_cached_tokens: int
    large_completion_tokens: int
    small_prompt_tokens: int
    small_completion_tokens: int
    large_nusd: int
    large_estimate_nusd: int
    small_nusd: int
    audit_nusd: int
    always_large_nusd: int
    model: str = ""
    """That answered, where the lines are of one model each."""
    hour: str = ""
    """Two digits, where the lines are of one hour each."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a key is, for people."""

    name: str
    tenant: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedLine:
    """Sums over requests that the small model answered while the large one's price was known."""

    bytes_by_input: float = 0.0
    """Σ bytes·p, in bytes·USD/Mtok."""
    bytes_by_cached: float = 0.0
    output_prices: float = 0.0
    """Σ q, USD/Mtok."""
    draft_tokens_by_output: float = 0.0
    """Σ tokens of the draft·q."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(PricedLine):
    """One line before its alternative is computed, and the sums from which that is done."""

    line: CostLine
    """`always_large_nusd` is what the large model was paid."""
    priced_small: int = 0
    """The number of requests that the sums of `PricedLine` are over."""
    told: int = 0
    """Requests that the large model answered and reported usage for; the sums below are theirs."""
    told_bytes: int = 0
    told_prompt_tokens: int = 0
    told_cached_tokens: int = 0
    called: int = 0
    """The number of those whose answer has a call."""
    called_tokens: int = 0
    """Their completion tokens."""


@dataclass(frozen=True, slots=True)
class Means:
    """Means over the large model's answers of one day; `answer_tokens` is None where there are too few."""

    tokens_per_byte: float = _TOKENS_PER_BYTE
    cached_share: float = 0.0
    answer_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """Lines under one label, summed. Money in whole nano-dollars."""

    label: str
    requests: int = 0
    small: int = 0
    """Answered by the small model."""
    large: int = 0
    failed: int = 0
    unpriced: int = 0
    estimated: int = 0
    large_prompt_tokens: int = 0
    large_cached_tokens: int = 0
    large_completion_tokens: int = 0
    small_prompt_tokens: int = 0
    small_completion_tokens: int = 0
    large_nusd: int = 0
    large_estimate_nusd: int = 0
    small_nusd: int = 0
    audit_nusd: int = 0
    always_large_nusd: int = 0

    @property
    def spent_nusd(self) -> int:
        """All that was paid, estimates included."""
        return self.large_nusd + self.large_estimate_nusd + self.small_nusd + self.audit_nusd

    @property
    def saved_nusd(self) -> int:
        """Against always asking the large model; negative where this cost more. An estimate."""
        return self.always_large_nusd - self.spent_nusd

    @property
    def share_small(self) -> float | None:
        """The share of answered requests that the small model answered; None where none was answered."""
        answered = self.small + self.large
        return self.small / answered if answered else None


_SUMMED = [field.name for field in fields(Total) if field.name not in ("label", "small", "large")]


def lines(groups: Sequence[Group]) -> list[CostLine]:
    """The groups of one or more whole days, each with what always asking the large model would have cost."""
    own: dict[tuple[date, str], list[Group]] = {}
    all_of: dict[date, list[Group]] = {}
    for group in groups:
        own.setdefault((group.line.day, group.line.key_id), []).append(group)
        all_of.setdefault(group.line.day, []).append(group)
    of_day = {day: means(found, minimum=1) for day, found in all_of.items()}
    of_key = {key: means(found, minimum=MIN_ROWS) for key, found in own.items()}
    return [
        replace(
            group.line,
            always_large_nusd=group.line.always_large_nusd
            + alternative_nusd(group, of_key[group.line.day, group.line.key_id] or of_day[group.line.day] or Means()),
        )
        for group in groups
    ]


def means(groups: Iterable[Group], *, minimum: int) -> Means | None:
    """Return the means over all these groups; None where fewer than `minimum` large answers made a call."""
    told_bytes = prompt = cached = called = tokens = 0
    for group in groups:
        told_bytes += group.told_bytes
        prompt += group.told_prompt_tokens
        cached += group.told_cached_tokens
        called += group.called
        tokens += group.called_tokens
    if called < minimum or not told_bytes or not prompt:
        return None
    return Means(prompt / told_bytes, cached / prompt, tokens / called)


def alternative_nusd(group: PricedLine, typical: Means) -> int:
    """Return the nano-dollars that the large model would have charged for what the small one answered (see module)."""
    share = typical.cached_share
    prompt = typical.tokens_per_byte * ((1 - share) * group.bytes_by_input + share * group.bytes_by_cached)
    tokens = typical.answer_tokens
    answer = group.draft_tokens_by_output if tokens is None else tokens * group.output_prices
    return round((prompt + answer) * _NANO_PER_USD_PER_MTOK)


def totals(found: Iterable[CostLine], by: By, owners: Mapping[str, Owner] | None = None) -> list[Total]:
    """Sums by label, in the order of the labels.

    Args:
        owners: of the keys, by their ids; one that is not among them stands by its id, and has no tenant.
    """
    sums: dict[str, dict[str, int]] = {}
    for line in found:
        into = sums.setdefault(_label(line, by, owners or {}), dict.fromkeys((*_SUMMED, "small", "large"), 0))
        for name in _SUMMED:
            into[name] += getattr(line, name)
        if line.side in ("small", "large") and line.requests:
            into[line.side] += line.requests
    return [Total(label, **into) for label, into in sorted(sums.items())]


def total(parts: Iterable[Total]) -> Total:
    """All of it."""
    into: Mapping[str, int] = dict.fromkeys((*_SUMMED, "small", "large"), 0)
    for part in parts:
        into = {name: value + getattr(part, name) for name, value in into.items()}
    return Total("total", **into)


def _label(line: CostLine, by: By, owners: Mapping[str, Owner]) -> str:
    owner = owners.get(line.key_id)
    match by:
        case "day":
            return line.day.isoformat()
        case "hour":
            return f"{line.day} {line.hour}:00" if line.hour else f"{line.day} (rolled up)"
        case "key":
            return _named(line.key_id, owners) or "(no key)"
        case "tenant":
            return (owner and owner.tenant) or "(no tenant)"
        case "tool":
            return line.tool or "(no call)"
        case "model":
            return line.model or "(none, or rolled up)"
        case "reason":
            return line.reason
        case "arm":
            return f"{line.experiment}:{line.arm}" if line.experiment else "(no experiment)"


def _named(key_id: str, owners: Mapping[str, Owner]) -> str:
    """The key's name; with its id, where several keys share the name."""
    if key_id not in owners:
        return key_id
    name = owners[key_id].name
    shared = sum(owner.name == name for owner in owners.values()) > 1
    return f"{name} ({key_id})" if shared else name
