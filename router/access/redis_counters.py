"""Rates and budgets counted in Redis, for all replicas: one script a request, one when it is settled.

The rules are those of `router.access.limits`, on Redis' own clock. What was spent is never below what the database
knows, so a Redis that was emptied, or missed a settlement, is put right by the next request. What a replica holds is
kept by replica and forgotten `HELD_S` after it last took or settled: one that dies gives its holdings back. A replica
counts what it holds itself, and writes all of it each time, numbered, so that none of its writes goes before a later
one: what a lost connection left wrong is put right by the key's next request or settlement.
"""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from router.access.keys import VirtualKey, period_of, window_left_s
from router.access.limits import CountersDownError, Limit, LimitStatus, LocalCounters, Reservation
from router.redis_link import RedisAnswer, RedisLink

HELD_S = 900
_RATE_S = 120
_DAY_S = 86_400
_LIMITS: tuple[Limit | None, ...] = (None, "budget", "requests", "tokens")

# KEYS: rates, spending, holdings. All numbers are whole; Lua's doubles hold them exactly up to 2^53.
_HEAD = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function whole(x) return string.format('%.0f', x) end
local function held_by_others(replica)
  local all = 0
  local name
  for i, part in ipairs(redis.call('HGETALL', KEYS[3])) do
    if i % 2 == 1 then name = part elseif name ~= replica then
      local amount, till = string.match(part, '^(%d+)|(%d+)|')
      if tonumber(till) < now then redis.call('HDEL', KEYS[3], name) else all = all + tonumber(amount) end
    end
  end
  return all
end
local function hold(replica, amount, turn)
  local kept = redis.call('HGET', KEYS[3], replica)
  if kept and tonumber(string.match(kept, '(%d+)$')) > turn then return end
  redis.call('HSET', KEYS[3], replica, whole(amount) .. '|' .. whole(now + HELD_MS) .. '|' .. whole(turn))
  redis.call('PEXPIRE', KEYS[3], HELD_MS)
end
""".replace("HELD_MS", str(HELD_S * 1000))
_TAKE = (
    _HEAD
    + """
local rpm, tpm = tonumber(ARGV[2]), tonumber(ARGV[3])
local tokens, cost = tonumber(ARGV[4]), tonumber(ARGV[5])
local hard, soft, known = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local spent = tonumber(redis.call('GET', KEYS[2]) or '0')
if spent < known then
  spent = known
  redis.call('SET', KEYS[2], whole(known), 'EX', ARGV[9])
end
local kept = redis.call('HMGET', KEYS[1], 'rl', 'tl', 'at')
local at = tonumber(kept[3] or now)
local gone = math.max(now - at, 0)
local rl = math.min(rpm, tonumber(kept[1] or rpm) + gone * rpm / 60000)
local tl = math.min(tpm, tonumber(kept[2] or tpm) + gone * tpm / 60000)
local refused, wait = 0, 0
if hard >= 0 and spent + held_by_others(ARGV[1]) + tonumber(ARGV[11]) >= hard then refused = 1
elseif rpm > 0 and rl < 1 then refused = 2; wait = (1 - rl) * 60000 / rpm
elseif tpm > 0 and tl < math.min(tokens, tpm) then refused = 3; wait = (math.min(tokens, tpm) - tl) * 60000 / tpm
end
if refused == 0 then
  if rpm > 0 then rl = rl - 1 end
  if tpm > 0 then tl = tl - tokens end
  if hard >= 0 then hold(ARGV[1], tonumber(ARGV[11]) + cost, tonumber(ARGV[12])) end
end
if rpm > 0 or tpm > 0 then
  redis.call('HSET', KEYS[1], 'rl', string.format('%.6f', rl), 'tl', string.format('%.6f', tl), 'at', whole(now))
  redis.call('EXPIRE', KEYS[1], ARGV[10])
end
local function reset(level, limit) if limit > 0 then return math.ceil((limit - level) * 60000 / limit) end return 0 end
local over = 0
if soft >= 0 and spent >= soft then over = 1 end
return {refused, math.ceil(wait), math.floor(math.max(rl, 0)), reset(rl, rpm),
        math.floor(math.max(tl, 0)), reset(tl, tpm), over}
"""
)
_SETTLE = (
    _HEAD
    + """
if tonumber(ARGV[2]) >= 0 then hold(ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[7])) end
if tonumber(ARGV[3]) > 0 then
  redis.call('INCRBY', KEYS[2], ARGV[3])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
local tpm, back = tonumber(ARGV[5]), tonumber(ARGV[6])
local level = redis.call('HGET', KEYS[1], 'tl')
if tpm > 0 and level and back ~= 0 then
  redis.call('HSET', KEYS[1], 'tl', string.format('%.6f', math.min(tpm, tonumber(level) + back)))
end
return 0
"""
)


@dataclass(slots=True)
class _Holding:
    """The part of a key's budget that this replica holds."""

    nusd: int = 0
    """Nano-dollars of requests under way, and of those that ask to be let in."""
    turn: int = 0
    """Number of the last write."""


class RedisCounters:
    """Counts in Redis; where it is down, in this process or not at all. See `router.access.limits.Counters`.

    Args:
        on_down: `allow`: each replica counts by itself meanwhile; `refuse`: `take` raises CountersDownError.
    """

    def __init__(self, link: RedisLink, local: LocalCounters, *, on_down: Literal["allow", "refuse"]) -> None:
        self._link, self._local, self._on_down = link, local, on_down
        self._take, self._settle = link.client.register_script(_TAKE), link.client.register_script(_SETTLE)
        self._replica, self._turns = secrets.token_hex(8), itertools.count(1)
        self._holdings: dict[str, _Holding] = {}

    async def take(self, key: VirtualKey, asked: Reservation, now: datetime) -> LimitStatus:
        """Implements `Counters.take`. Raises CountersDownError."""
        left_s, period = window_left_s(key.window, now), period_of(key.window, now)
        holding = self._holdings.setdefault(key.key_id, _Holding())
        turn = holding.turn = next(self._turns)
        arguments = (
            self._replica,
            key.requests_per_minute or 0,
            key.tokens_per_minute or 0,
            asked.tokens,
            asked.cost_nusd,
            -1 if key.hard_nusd is None else key.hard_nusd,
            -1 if key.soft_nusd is None else key.soft_nusd,
            self._local.known_nusd(key, now),
            _kept_s(left_s),
            _RATE_S,
            holding.nusd,
            turn,
        )
        holding.nusd += asked.cost_nusd
        answer: RedisAnswer[object] | None = None
        let_in = False
        try:
            answer = await self._link.ask(lambda: self._take(keys=_names(key, period), args=arguments))
            let_in = answer is not None and cast(list[int], answer.value)[0] == 0
        finally:
            if not let_in:
                self._free(key, asked.cost_nusd)
                if key.hard_nusd is not None and (answer is None or holding.turn != turn):
                    # Redis may have counted what is not held.
                    self._report(key, period)
        if answer is None:
            if self._on_down == "refuse":
                raise CountersDownError
            return await self._local.take(key, asked, now)
        refused, wait_ms, requests_left, requests_ms, tokens_left, tokens_ms, soft = map(
            int, cast(list[int], answer.value)
        )
        return LimitStatus(
            refused=_LIMITS[refused],
            retry_after_s=wait_ms / 1000,
            requests_left=requests_left,
            requests_reset_s=requests_ms / 1000,
            tokens_left=tokens_left,
            tokens_reset_s=tokens_ms / 1000,
            soft=bool(soft),
            period=period,
        )

    def settle(self, key: VirtualKey, reserved: Reservation, true: Reservation, taken: LimitStatus) -> None:
        """Implements `Counters.settle`. What Redis misses of spending it learns from the database at a later `take`."""
        if taken.local:
            self._local.settle(key, reserved, true, taken)
            return
        self._free(key, reserved.cost_nusd)
        self._report(key, taken.period, true.cost_nusd, reserved.tokens - true.tokens)

    def _free(self, key: VirtualKey, nusd: int) -> None:
        holding = self._holdings.get(key.key_id)
        if holding is not None:
            holding.nusd -= nusd

    def _report(self, key: VirtualKey, period: str, spent_nusd: int = 0, back: int = 0) -> None:
        """Report to Redis what is held, and beside it what was spent and how many tokens come back."""
        kept_s = _kept_s(None if key.window == "total" else _DAY_S * (1 if key.window == "day" else 31))
        holding = self._holdings.setdefault(key.key_id, _Holding())
        turn = holding.turn = next(self._turns)
        nusd = -1 if key.hard_nusd is None else holding.nusd
        arguments = (self._replica, nusd, spent_nusd, kept_s, key.tokens_per_minute or 0, back, turn)
        self._link.ask_in_background(lambda: self._settle(keys=_names(key, period), args=arguments))


def _names(key: VirtualKey, period: str) -> list[str]:
    """The braces keep a key's counters on one node of a cluster, as a script needs them."""
    head = f"smallcall:{{{key.key_id}}}"
    return [f"{head}:rate", f"{head}:spent:{period}", f"{head}:holdings"]


def _kept_s(left_s: float | None) -> int:
    """Seconds a window's spending is kept: beyond its end, for requests under way; the life's is read again."""
    return 7 * _DAY_S if left_s is None else int(left_s) + _DAY_S
