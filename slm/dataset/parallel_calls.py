"""Requests for several calls at once, made of rows that ask for one: the draft makes parallel calls.

Two ways. *Joined*: the words of two to four rows of a source, one after another; their calls likewise. Each of them was
asked beside all of the tools that the joined row offers, or beside tools that the source offers with the called one
elsewhere (as in `slm.dataset.grouping`), so no answer changes. *Listed*: one row asks the same of several values ("the
weather in Rome and in Oslo" of "the weather in Rome"); the other values come from rows that give the same parameter,
and the call is repeated for each.

Only rows of one message of the user are used. Not guaranteed: that a person would ask so much at once.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slm.dataset.constructed import parameters_of, places, request_text, said, system_texts, with_text
from slm.dataset.examples import Example
from slm.dataset.grouping import offered_beside

_TRIES = 12
"""Rows that are looked at for a partner."""
_COUNTS = (2, 2, 2, 3, 3, 4)


class Joiner:
    """Makes requests for several calls out of the rows that it is given."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._beside = offered_beside(examples)
        self._rows: dict[tuple[str, str], list[Example]] = defaultdict(list)
        self._values: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
        for example in examples:
            if request_text(example) is None or len(example.calls) != 1:
                continue
            name, arguments = example.calls[0]
            self._rows[example.source, name].append(example)
            for key, value in arguments.items():
                if isinstance(value, str):
                    self._values[example.source, key][value] = None

    def joined(self, example: Example, rng: random.Random) -> Example | None:
        """A row that asks for more than `example` does; None where it can be neither joined nor listed."""
        if request_text(example) is None or len(example.calls) != 1:
            return None
        ways = [self._after_one_another, self._listed]
        rng.shuffle(ways)
        return next((made for way in ways if (made := way(example, rng)) is not None), None)

    def _after_one_another(self, example: Example, rng: random.Random) -> Example | None:
        wanted = rng.choice(_COUNTS)
        pool = [row for name in sorted(_tools(example)) for row in self._rows[example.source, name]]
        chosen = [example]
        for partner in rng.sample(pool, min(len(pool), _TRIES)):
            if len(chosen) < wanted and self._fits(partner, example) and all(map(partner.calls.__ne__, _calls(chosen))):
                chosen.append(partner)
        if len(chosen) < 2:
            return None
        rng.shuffle(chosen)
        text = _run_together([request_text(row) or "" for row in chosen], rng)
        return replace(with_text(example, text), calls=tuple(row.calls[0] for row in chosen))

    def _fits(self, partner: Example, example: Example) -> bool:
        """True if the partner's answer stays right with the example's tools and system message."""
        own, offered = _tools(partner), _tools(example)
        (called,) = partner.gold_names
        harmless = self._beside[partner.source, called]
        same = all(own[name] == tool for name, tool in offered.items() if name in own)
        fine = all(name in own or name in harmless for name in offered)
        return same and fine and system_texts(partner) == system_texts(example) and request_text(partner) is not None

    def _listed(self, example: Example, rng: random.Random) -> Example | None:
        text = request_text(example) or ""
        name, arguments = example.calls[0]
        if not all(_stands_once(value, text) for value in arguments.values()):
            return None
        properties = parameters_of(example, name).get("properties") or {}
        keys = [
            key
            for key, value in arguments.items()
            if _is_plain_text(value, properties.get(key)) and _ends_a_phrase(value, text)
        ]
        rng.shuffle(keys)
        for key in keys:
            others = self._others(example.source, key, arguments[key], text, rng)
            if others:
                values = [arguments[key], *others]
                (place,) = places(arguments[key], text)
                listed = text[: place.start()] + _enumerated(values, _quote(text, place), rng) + text[place.end() :]
                calls = tuple((name, {**arguments, key: value}) for value in values)
                return replace(with_text(example, listed), calls=calls)
        return None

    def _others(self, source: str, key: str, value: str, text: str, rng: random.Random) -> list[str]:
        """Values of other rows that look like this one and are not in the text."""
        alike = [
            other
            for other in self._values[source, key]
            if _shape(other) == _shape(value) and not places(other, text) and _is_short(other)
        ]
        return rng.sample(alike, min(len(alike), rng.choice(_COUNTS) - 1))


def _tools(example: Example) -> Mapping[str, Mapping[str, Any]]:
    return {str(tool["function"]["name"]): tool for tool in example.tools}


def _calls(rows: Sequence[Example]) -> list[tuple[tuple[str, Mapping[str, Any]], ...]]:
    return [row.calls for row in rows]


def _stands_once(value: Any, text: str) -> bool:
    """True if a value is the text's own; one that follows from another value would have to change with it."""
    words = said(value)
    return words is not None and len(places(words, text)) == 1


def _is_plain_text(value: Any, schema: Any) -> bool:
    free = isinstance(schema, Mapping) and schema.get("type", "string") == "string" and "enum" not in schema
    return free and isinstance(value, str) and value == value.strip() and _is_short(value)


def _is_short(value: str) -> bool:
    return (
        1 < len(value) <= 40
        and len(value.split()) <= 4
        and not {"and", "or", ","} & set(value.replace(",", " , ").split())
    )


def _shape(value: str) -> tuple[bool, bool, bool]:
    """Capital first, digits, more than two words: what must agree for two values to stand in one place."""
    return value[:1].isupper(), any(character.isdigit() for character in value), len(value.split()) > 2


def _ends_a_phrase(value: str, text: str) -> bool:
    """True if a value could be one of several in its place: "in Rome on Monday", but not "a comedy film"."""
    (place,) = places(value, text)
    before, behind = text[: place.start()], text[place.end() :].lstrip("'\"”’")
    return _BEFORE.search(before) is not None and _BEHIND.match(behind) is not None


def _quote(text: str, place: re.Match[str]) -> str:
    """The text between a quoted value and the next one: the closing and the opening quote."""
    before, behind = text[: place.start()][-1:], text[place.end() :][:1]
    return f"{behind}\0{before}" if before in _QUOTES and behind in _QUOTES and before else "\0"


def _enumerated(values: Sequence[str], quote: str, rng: random.Random) -> str:
    *most, last = values
    links = [" and ", ", and ", " and also "] if len(most) > 1 else [" and ", " and also ", " as well as "]
    comma, link = (quote.replace("\0", words) for words in (", ", rng.choice(links)))
    return comma.join(most) + link + last


def _run_together(texts: Sequence[str], rng: random.Random) -> str:
    """Requests one after another, joined in one way."""
    link = rng.choice(_LINKS)
    made = texts[0].strip()
    for text in texts[1:]:
        made = _linked(made, link, _GREETING.sub("", text.strip()))
    return made


def _linked(before: str, link: str, text: str) -> str:
    """A link that goes on with a sentence becomes one that begins another behind a question."""
    if before.endswith("?") and link[0] in ",; " and link != " ":
        link = " Also, "
    if link[0] in ",;" or link == " and also ":
        return before.rstrip(".! ") + link + _lower_first(text)
    if link in (" Also, ", " Then "):
        return before + ("" if before[-1:] in ".?!" else ".") + link + _lower_first(text)
    return before + ("." if link == " " and before[-1:] not in ".?!" else "") + link + text


def _lower_first(text: str) -> str:
    """The first letter made small, but for names, abbreviations and I."""
    word = text.split(" ", 1)[0]
    plain = word[:1].isupper() and word[1:].islower() and word.lower() in _SENTENCE_STARTS
    return text[:1].lower() + text[1:] if plain else text


_LINKS = (" ", ", and ", " and also ", "\n", " Also, ", " Then ", "; ")
_QUOTES = "'\"“”‘’"
_GREETING = re.compile(r"^(hi|hello|hey)( there)?[,.!]*\s+", re.IGNORECASE)
_BEFORE = re.compile(r"(^|\s|(\s|^)['\"“‘])$")
_BEHIND = re.compile(r"[.?!,]|$|\s+(in|at|for|to|from|on|by|with|using|and|please|is|are|has)\b", re.IGNORECASE)
_SENTENCE_STARTS = frozenset(
    """please can could would what where when who how is are will do does give get find show tell set play add book
    make create delete remove search check calculate retrieve list remind turn send the a my please update start stop
    put rate let open provide schedule order look""".split()
)
