"""Does each value of a call stand in the conversation: as it is, as the same number, date or time, or in parts?

A value that the user never said was made up, copied from a tool's result, or follows from what was said ("tomorrow");
so grounding is a signal and no verdict. Reads at most the newest 20,000 characters of a conversation and 64 values.
Not recognised: arithmetic, relative dates, numbers beyond single English number words, other languages' words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from policies.features.literals import NUMBER, as_float
from policies.features.literals import moments as moments_of
from policies.features.literals import numbers as numbers_of
from policies.texts import texts
from policies.types import Request

MAX_CONVERSATION_CHARS = 20_000
MAX_PARTS = 256
"""Parts of a message's content that are read."""
MAX_VALUES = 64
MAX_VALUE_CHARS = 500
"""The number of characters of a longer value that are searched for."""
MAX_WORDS = 32
"""The number of words that are searched for where a value does not stand as a whole."""
MAX_PLACES = 64
"""The number of places checked at which a value might stand."""


_WORD = re.compile(r"\w+")
_QUOTED = re.compile(r"(?:[\"“‘]|(?<!\w)')([^\"“”'‘’\n]{2,80})(?:[\"”’]|'(?!\w))")
_NAME = re.compile(r"(?<=[a-z,;:] )((?:[A-Z][\w’'-]{1,30})(?: [A-Z][\w’'-]{1,30}){0,4})")
_PLACEHOLDER = re.compile(
    r"string|text|value|unknown|none|null|n/?a|undefined|todo|tbd|example|placeholder|default|some[ _].{1,40}"
    r"|x{3,}|\.{3}|<.{1,60}>|\[.{1,60}\]|\{.{1,60}\}|your[ _-].{1,60}|(?:insert|enter)[ _].{1,60}"
)


class Ground(StrEnum):
    """The ways in which a value stands in a conversation, best first."""

    EXACT = "exact"
    """Word for word, whatever the case and white space."""
    NUMBER = "number"
    """As an equal number: `1000` and "1,000" or "one thousand"; `0.05` and "5%"."""
    DATE = "date"
    """As the same date or time of day, written otherwise; a year that is not said may be any."""
    ENUM = "enum"
    """One of few allowed values that is not said: a paraphrase, or a choice of the model's own."""
    FUZZY = "fuzzy"
    """Some of its words."""
    PLACEHOLDER = "placeholder"
    """A word that stands for a value: `string`, `unknown`, `<city>`."""
    EMPTY = "empty"
    """Empty text or null."""
    FREE = "free"
    """A truth value: nothing to look for."""
    NONE = "none"
    """Nothing of it is said."""


@dataclass(frozen=True, slots=True)
class Grounding:
    """One value and how it stands. `score` in [0, 1]: 1 where it is said, the share of its words where they are."""

    kind: Ground
    score: float
    in_last: bool = False
    """It stands in the last message of the user."""

    @property
    def judged(self) -> bool:
        """True if there was something to look for."""
        return self.kind not in (Ground.FREE, Ground.EMPTY)


class Text:
    """A text to look values up in."""

    def __init__(self, text: str) -> None:
        self.raw = text
        self.plain = normalised(text)

    @cached_property
    def words(self) -> frozenset[str]:
        """Its words."""
        return frozenset(_WORD.findall(self.plain))

    @cached_property
    def numbers(self) -> frozenset[float]:
        """Its numbers, in digits and as English words; a percentage also as a share."""
        return frozenset(numbers_of(self.plain))

    @cached_property
    def moments(self) -> frozenset[tuple[int, ...]]:
        """Its dates as (year or 0, month, day) and times as (hour, minute)."""
        return frozenset(reading for readings in moments_of(self.plain) for reading in readings)

    def says(self, value: str) -> bool:
        """Return True if `value`, normalised, stands there and is not a part of longer words."""
        at = self.plain.find(value)
        for _ in range(MAX_PLACES):
            if at < 0:
                return False
            end = at + len(value)
            before = at > 0 and self.plain[at - 1].isalnum() and value[0].isalnum()
            behind = end < len(self.plain) and self.plain[end].isalnum() and value[-1].isalnum()
            if not before and not behind:
                return True
            at = self.plain.find(value, at + 1)
        return False


@dataclass(frozen=True, slots=True)
class Conversation:
    """The text of a request's messages before the draft."""

    everything: Text
    """All messages, tool results too."""
    last: Text
    """The last message of the user."""

    @classmethod
    def of(cls, request: Request) -> Conversation:
        """Build it from a request's messages, the newest first up to the bound."""
        texts: list[str] = []
        left = MAX_CONVERSATION_CHARS
        last: str | None = None
        for message in reversed(request.messages):
            if left <= 0:
                break
            said = message_text(message)[:left]
            left -= len(said)
            texts.append(said)
            if last is None and message.get("role") == "user":
                last = said
        return cls(Text("\n".join(reversed(texts))), Text(last or ""))


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message in any dialect's form; empty for none."""
    said = texts(message.get("content"), parts=MAX_PARTS)
    return "\n".join(text[:MAX_CONVERSATION_CHARS] for text in said)


def leaves(value: Any, schema: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """The scalars of a JSON value with their schemas, as far as `properties` and `items` give; at most MAX_VALUES."""
    stack = [(value, schema)]
    found = 0
    while stack and found < MAX_VALUES:
        node, about = stack.pop()
        about = about if isinstance(about, Mapping) else {}
        if isinstance(node, Mapping):
            properties = about.get("properties")
            known = properties if isinstance(properties, Mapping) else {}
            stack += [(inner, known.get(key)) for key, inner in reversed(list(node.items())[:MAX_VALUES])]
        elif isinstance(node, list):
            stack += [(inner, about.get("items")) for inner in reversed(node[:MAX_VALUES])]
        else:
            found += 1
            yield node, about


def ground(value: Any, schema: Mapping[str, Any], conversation: Conversation) -> Grounding:
    """Return how one scalar stands in a conversation."""
    if isinstance(value, bool):
        return Grounding(Ground.FREE, 1.0)
    if value is None or (isinstance(value, str) and not value.strip()):
        return Grounding(Ground.EMPTY, 0.0)
    kind, score = _stands(value, conversation.everything)
    if kind in (Ground.EXACT, Ground.NUMBER, Ground.DATE):
        in_last, _ = _stands(value, conversation.last)
        return Grounding(kind, score, in_last is kind)
    if _is_placeholder(value):
        return Grounding(Ground.PLACEHOLDER, 0.0)
    if _is_listed(value, schema):
        return Grounding(Ground.ENUM, max(score, 0.5))
    return Grounding(kind, score)


def used(said: Sequence[str], values: Sequence[Any]) -> float:
    """Share of the texts of `said` that some value holds; NaN where there is none."""
    if not said:
        return float("nan")
    held = " ".join(normalised(str(value)[:MAX_VALUE_CHARS]) for value in values[:MAX_VALUES])
    return sum(normalised(text) in held for text in said) / len(said)


def numbers_used(said: frozenset[float], values: Sequence[Any]) -> float:
    """Share of the numbers of `said` that some value holds; NaN where there is none."""
    if not said:
        return float("nan")
    held: set[float] = set()
    for value in values[:MAX_VALUES]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            held.add(as_float(value))
        elif isinstance(value, str):
            held.update(numbers_of(normalised(value[:MAX_VALUE_CHARS])))
    return len(said & held) / len(said)


def names(text: str) -> list[str]:
    """Quoted texts, and runs of capitalised words that do not begin a sentence; at most 16."""
    quoted = [match.group(1) for match in _QUOTED.finditer(text)]
    capital = [match.group(1) for match in _NAME.finditer(_QUOTED.sub(" ", text))]
    return list(dict.fromkeys([*quoted, *capital]))[:16]


def normalised(text: str) -> str:
    """Compatibility-normalised, case folded, white space as single blanks."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _stands(value: Any, text: Text) -> tuple[Ground, float]:
    if isinstance(value, int | float):
        return (Ground.NUMBER, 1.0) if as_float(value) in text.numbers else (Ground.NONE, 0.0)
    plain = normalised(str(value)[:MAX_VALUE_CHARS])
    if text.says(plain):
        return Ground.EXACT, 1.0
    if NUMBER.fullmatch(plain) and set(numbers_of(plain)) & text.numbers:
        return Ground.NUMBER, 1.0
    when = list(moments_of(plain))
    if when:
        said = all(any(_said(reading, text.moments) for reading in readings) for readings in when)
        return (Ground.DATE, 1.0) if said else (Ground.NONE, 0.0)
    own = _WORD.findall(plain)[:MAX_WORDS]
    if not own:
        return Ground.NONE, 0.0
    share = sum(_alike(word, text) for word in own) / len(own)
    return (Ground.FUZZY, 0.9 * share) if share else (Ground.NONE, 0.0)


def _alike(word: str, text: Text) -> bool:
    """The word itself, or a longer form of it from its fourth letter on."""
    return word in text.words or (len(word) >= 4 and text.plain.find(word) >= 0)


def _said(moment: tuple[int, ...], said: frozenset[tuple[int, ...]]) -> bool:
    if len(moment) == 2:
        return moment in said
    year, month, day = moment
    return moment in said or (0, month, day) in said or (not year and any(m[1:] == (month, day) for m in said))


def _is_placeholder(value: Any) -> bool:
    return isinstance(value, str) and bool(_PLACEHOLDER.fullmatch(normalised(value[:MAX_VALUE_CHARS])))


def _is_listed(value: Any, schema: Mapping[str, Any]) -> bool:
    allowed = schema.get("enum")
    return (isinstance(allowed, list) and value in allowed) or ("const" in schema and schema["const"] == value)
