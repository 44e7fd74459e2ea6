"""Rates and budgets, counted in this process.

Rates are token buckets that hold one minute's worth: full at the start, refilled all the time. A request takes what it
is thought to need and gives back, or still owes, the difference once its tokens are known; one that is larger than the
whole bucket passes where the bucket is full.

A budget is open while what was spent and what requests under way hold is below it. So requests at once overspend it by
no more than one request that reaches across the line, and by what requests under way cost beyond what they reserved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from router.access.keys import VirtualKey, period_of

Limit = Literal["budget", "requests", "tokens"]


class Reservation(NamedTuple):
    """Tokens and money that a request is estimated to take."""

    tokens: int
    cost_nusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitStatus:
    """Where a key stands after a request asked to be let in."""

    refused: Limit | None = None
    """The limit that keeps it out."""
    retry_after_s: float = 0.0
    """Until a rate lets it in."""
    requests_left: int = 0
    requests_reset_s: float = 0.0
    """Until the bucket is full again."""
    tokens_left: int = 0
    tokens_reset_s: float = 0.0
    soft: bool = False
    """The soft budget is spent."""
    period: str
    """The budget's window that the request counts in."""
    local: bool = False
    """It was counted in this process."""


class CountersDownError(RuntimeError):
    """Spending cannot be known now, and requests are to be refused then."""


class Counters(Protocol):
    """Whatever counts."""

    async def take(self, key: VirtualKey, asked: Reservation, now: datetime) -> LimitStatus:
        """Let a request in and hold what it needs, or refuse it and hold nothing. Raises CountersDownError."""

    def settle(self, key: VirtualKey, reserved: Reservation, true: Reservation, taken: LimitStatus) -> None:
        """A request that was let in is over: free what it held, count what it took in truth, once for each `take`."""


@dataclass(slots=True)
class _Bucket:
    """Holds what may be taken at once; `level` is below zero where more was taken than was estimated."""

    level: float
    at: float
    """When it had that level, seconds."""

    def refill(self, capacity: int, now: float) -> None:
        self.level = min(capacity, self.level + (now - self.at) * capacity / 60)
        self.at = now

    def wait_s(self, need: float, capacity: int) -> float:
        """Until `need` is there, or the bucket is full."""
        return max(0.0, (min(need, capacity) - self.level) * 60 / capacity)


@dataclass(slots=True)
class _Account:
    requests: _Bucket
    tokens: _Bucket
    period: str
    spent_nusd: int = 0
    reserved_nusd: int = 0
    since_refresh: int = 0
    """The part of `spent_nusd` that was settled since the database was last asked."""


@dataclass(slots=True)
class LocalCounters:
    """Counts in this process. Spending begins with what the database knows and is corrected by each refresh; what
    other replicas spend meanwhile is not seen."""

    clock: Callable[[], float]
    """Seconds, monotonic."""
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _known: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    _arrivals: dict[str, _Bucket] = field(default_factory=dict)

    def arrive(self, key: VirtualKey) -> float:
        """Count a request before its body is read, in this process alone and whatever comes of it: seconds until its
        key's rate lets it in; 0: it is let in."""
        capacity = key.requests_per_minute
        if not capacity:
            return 0.0
        at = self.clock()
        bucket = self._arrivals.get(key.key_id)
        if bucket is None:
            bucket = self._arrivals[key.key_id] = _Bucket(capacity, at)
        bucket.refill(capacity, at)
        if bucket.level < 1:
            return bucket.wait_s(1, capacity)
        bucket.level -= 1
        return 0.0

    def forget(self, key: VirtualKey) -> None:
        """A request that arrived is not to have counted."""
        bucket = self._arrivals.get(key.key_id)
        if bucket is not None:
            bucket.level = min(key.requests_per_minute or 0, bucket.level + 1)

    async def take(self, key: VirtualKey, asked: Reservation, now: datetime) -> LimitStatus:
        """Implements `Counters.take` in this process."""
        account = self._account(key, now)
        at = self.clock()
        requests, tokens = key.requests_per_minute or 0, key.tokens_per_minute or 0
        account.requests.refill(requests, at)
        account.tokens.refill(tokens, at)
        refused, wait_s = self._refusal(key, account, asked)
        if refused is None:
            account.requests.level -= bool(requests)
            account.tokens.level -= asked.tokens if tokens else 0
            account.reserved_nusd += asked.cost_nusd
        return LimitStatus(
            refused=refused,
            retry_after_s=wait_s,
            requests_left=max(0, int(account.requests.level)),
            requests_reset_s=account.requests.wait_s(requests, requests) if requests else 0.0,
            tokens_left=max(0, int(account.tokens.level)),
            tokens_reset_s=account.tokens.wait_s(tokens, tokens) if tokens else 0.0,
            soft=key.soft_nusd is not None and account.spent_nusd >= key.soft_nusd,
            period=account.period,
            local=True,
        )

    def settle(self, key: VirtualKey, reserved: Reservation, true: Reservation, taken: LimitStatus) -> None:
        """Implements `Counters.settle` in this process."""
        account = self._accounts.get(key.key_id)
        if account is None:
            return
        account.reserved_nusd -= reserved.cost_nusd
        account.tokens.level = min(key.tokens_per_minute or 0, account.tokens.level + reserved.tokens - true.tokens)
        if taken.period == account.period:
            account.spent_nusd += true.cost_nusd
            account.since_refresh += true.cost_nusd

    def begin_refresh(self) -> None:
        """The database is about to be asked."""
        for account in self._accounts.values():
            account.since_refresh = 0

    def end_refresh(self, known: Mapping[str, Mapping[str, int]], keys: Mapping[str, VirtualKey]) -> None:
        """Take what the database knows, by key id and period. What was settled during the refresh is added: it may be
        counted twice until the next refresh, and never not at all."""
        self._known = known
        for key_id in self._accounts.keys() - keys.keys():
            del self._accounts[key_id]
        for key_id in self._arrivals.keys() - keys.keys():
            del self._arrivals[key_id]
        for key_id, account in self._accounts.items():
            account.spent_nusd = known.get(key_id, {}).get(account.period, 0) + account.since_refresh

    def known_nusd(self, key: VirtualKey, now: datetime) -> int:
        """Nano-dollars the key has spent in its window, as the database last said."""
        return self._known.get(key.key_id, {}).get(period_of(key.window, now), 0)

    def _account(self, key: VirtualKey, now: datetime) -> _Account:
        account, period = self._accounts.get(key.key_id), period_of(key.window, now)
        if account is None:
            at = self.clock()
            full = _Bucket(key.requests_per_minute or 0, at), _Bucket(key.tokens_per_minute or 0, at)
            account = self._accounts[key.key_id] = _Account(*full, period, self.known_nusd(key, now))
        elif account.period != period:
            account.period, account.spent_nusd, account.since_refresh = period, self.known_nusd(key, now), 0
        return account

    def _refusal(self, key: VirtualKey, account: _Account, asked: Reservation) -> tuple[Limit | None, float]:
        if key.hard_nusd is not None and account.spent_nusd + account.reserved_nusd >= key.hard_nusd:
            return "budget", 0.0
        if key.requests_per_minute and account.requests.level < 1:
            return "requests", account.requests.wait_s(1, key.requests_per_minute)
        if key.tokens_per_minute:
            wait_s = account.tokens.wait_s(asked.tokens, key.tokens_per_minute)
            if wait_s > 0:
                return "tokens", wait_s
        return None, 0.0
