"""Conversations that went large stay large for a while: what is remembered of each, and what it says about its next
turn.

Kept in memory, bounded, or in Redis where replicas share one, so that the next turn may come to any of them. What is
lost costs money at worst: the conversation is then treated as a new one. Turns of one conversation that overlap may
overwrite each other's memory.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec

from policies.rules.break_even import TokenPrices, Turn, draft_gain_usd
from router.access.estimate import BYTES_PER_TOKEN, LargeRates
from router.constants import Constants
from router.dialects.request import ChatRequest
from router.selection.conversation import conversation_of
from router.settings import StickyMode
from router.upstream.estimates import PER_MTOK, UnitPrices
from router.upstream.large_model import Usage

if TYPE_CHECKING:
    from router.redis_link import RedisLink

MAX_REMEMBERED = 50_000
"""Conversations in memory; the one that was silent for longest is forgotten first."""
_ANSWER_TOKENS = 200.0
"""Tokens assumed of a large answer, until the conversation has seen one."""


class Memory(msgspec.Struct):
    """Memory of one conversation. Times are Unix seconds."""

    large_turns_left: int = 0
    """So many turns are still to go large."""
    drafted: int = 0
    served: int = 0
    """Number of the drafts that were served."""
    large_tokens: int = 0
    """Tokens of the prompt and answer of the last large turn: what the provider may hold in its cache."""
    large_at: float = 0.0
    answer_tokens: int = 0
    """Tokens of the last large answer."""
    turns: int = 0
    first_at: float = 0.0
    last_at: float = 0.0


class Memories(Protocol):
    """Where conversations are remembered, by a digest."""

    async def get(self, digest: str) -> Memory | None:
        """Return what is remembered; None: nothing."""

    async def put(self, digest: str, memory: Memory) -> None:
        """Remember it."""


@dataclass(slots=True)
class LocalMemories:
    """In this process."""

    forget_s: float
    now: Callable[[], float]
    _kept: OrderedDict[str, Memory] = field(default_factory=OrderedDict)

    async def get(self, digest: str) -> Memory | None:
        """Implements `Memories.get`."""
        memory = self._kept.get(digest)
        return memory if memory is not None and self.now() - memory.last_at < self.forget_s else None

    async def put(self, digest: str, memory: Memory) -> None:
        """Implements `Memories.put`."""
        self._kept[digest] = memory
        self._kept.move_to_end(digest)
        if len(self._kept) > MAX_REMEMBERED:
            self._kept.popitem(last=False)


class SharedMemories:
    """In Redis, for all replicas; in this process, too, for when it is down."""

    def __init__(self, redis: RedisLink, local: LocalMemories, forget_s: float) -> None:
        self._redis, self._local, self._forget_s = redis, local, forget_s

    async def get(self, digest: str) -> Memory | None:
        """Implements `Memories.get`."""
        answer = await self._redis.ask(lambda: self._redis.client.get(_name(digest)))
        if answer is None:
            return await self._local.get(digest)
        try:
            return None if answer.value is None else msgspec.json.decode(answer.value, type=Memory)
        except msgspec.DecodeError:  # of another version of ours
            return None

    async def put(self, digest: str, memory: Memory) -> None:
        """Implements `Memories.put`."""
        await self._local.put(digest, memory)
        kept, forget_s = msgspec.json.encode(memory), max(1, int(self._forget_s))
        await self._redis.ask(lambda: self._redis.client.set(_name(digest), kept, ex=forget_s))


def _name(digest: str) -> str:
    return f"smallcall:conversation:{digest}"


@dataclass(slots=True)
class Sticky:
    """One turn of a conversation that is remembered."""

    digest: str
    memory: Memory
    keeps_large: str | None
    """Why this turn goes large before anything is drafted: `sticky` or `sticky_cache`; None: it need not."""
    _owner: Stickiness

    async def ended(self, side: str, drafted: bool, usage: Usage | None, status: int) -> None:
        """Remember how the turn ended. One that was not answered changes nothing but what was drafted.

        Args:
            side: whose words the client got.
            drafted: whether there was a draft to be judged.
            status: of the answer; 499 where the client left.
        """
        await self._owner.remember(self, side, drafted, usage, status)


class Stickiness:
    """Decides with what is remembered.

    Args:
        mode: `conversations.sticky`.
        now: Unix seconds.
    """

    def __init__(
        self,
        mode: StickyMode,
        constants: Constants,
        memories: Memories,
        rates: LargeRates,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._mode, self._constants, self._memories = mode, constants, memories
        self._rates, self._now = rates, now

    def digest(self, chat: ChatRequest, headers: Mapping[str, str], key_id: str | None) -> str | None:
        """Return the digest a conversation is remembered by; None where nothing is. `key_id`: see
        `router.selection.conversation`."""
        if self._mode == "none":
            return None
        return hashlib.sha256(conversation_of(chat, headers, key_id)).hexdigest()

    async def turn(self, chat: ChatRequest, digest: str | None) -> Sticky | None:
        """The turn that a request of that conversation is."""
        if digest is None:
            return None
        memory = await self._memories.get(digest) or Memory(first_at=self._now())
        why: str | None = None
        if self._mode == "after_escalation":
            why = "sticky" if memory.large_turns_left > 0 else None
        elif memory.large_tokens:
            rates = await self._rates.known()
            why = "sticky_cache" if rates is not None and not self._worth_drafting(chat, memory, rates) else None
        return Sticky(digest, memory, why, self)

    def _worth_drafting(self, chat: ChatRequest, memory: Memory, rates: UnitPrices) -> bool:
        """By `policies.rules.break_even`. The share of drafts that are served is the conversation's own, with one
        served and one not served added; a later turn is taken to go large as often as a draft is not served; the next
        turn is expected after the conversation's mean pause."""
        constants, now = self._constants, self._now()
        served = (memory.served + 1) / (memory.drafted + 2)
        pause_s = (memory.last_at - memory.first_at) / (memory.turns - 1) if memory.turns > 1 else 0.0
        warm = now - memory.large_at < constants.cache_ttl_s
        prompt = chat.size_bytes / BYTES_PER_TOKEN
        turn = Turn(
            prompt_tokens=prompt,
            cached_tokens=min(memory.large_tokens, prompt) if warm else 0.0,
            answer_tokens=memory.answer_tokens or _ANSWER_TOKENS,
            cache_outlives=warm and now + pause_s - memory.large_at < constants.cache_ttl_s,
        )
        prices = TokenPrices(*(price / PER_MTOK for price in rates))
        gain = draft_gain_usd(turn, prices, accepted=served, later_large=1 - served, draft_usd=constants.draft_usd)
        return gain > 0

    async def remember(self, turn: Sticky, side: str, drafted: bool, usage: Usage | None, status: int) -> None:
        """Implements `Sticky.ended`: update the conversation's memory."""
        memory, now = turn.memory, self._now()
        memory.turns += 1
        memory.last_at = now
        memory.drafted += drafted
        memory.served += drafted and side == "small"
        if side == "large" and status in (200, 499):
            left = memory.large_turns_left
            memory.large_turns_left = left - 1 if turn.keeps_large else self._constants.sticky_turns
            memory.large_at = now
            if usage is not None:
                memory.large_tokens = usage.prompt_tokens + usage.completion_tokens
                memory.answer_tokens = usage.completion_tokens
        await self._memories.put(turn.digest, memory)
