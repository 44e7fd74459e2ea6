"""A request that lacks a required value, made of one that has it: the right draft asks back.

A value is taken out only as a whole phrase, preposition and all ("the weather in Paris on Monday" → "the weather on
Monday"), and only where rules that can be checked say that what is left is a sentence which needs the value:

- the row is one message of the user and makes one call; the parameter is required, has no default, no choices of
  which one could be meant, and its value stands in the message once, word for word;
- the phrase follows a word that does not need it (no form of *to be*, no participle, no adverb, no pronoun) and ends
  a sentence or stands before another preposition;
- no word of the value stands anywhere else, and no other tool on offer shares a word of its name with the called one
  unless it requires a parameter of the same name, so that none might do without the value.

Most rows fail one of them. Not guaranteed: that the value cannot be guessed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from slm.dataset.augment import name_words
from slm.dataset.constructed import parameters_of, places, request_text, said, system_texts, with_text
from slm.dataset.examples import Example

_PREPOSITIONS = "in at for to from on by with of about near under using named called titled".split()
_PHRASE = re.compile(rf"(\S+)(\s+(?:{'|'.join(_PREPOSITIONS)})\s+(?:(?:the|a|an)\s+)?['\"“‘]?)$", re.IGNORECASE)
_BEHIND = re.compile(
    rf"['\"”’]?(?=[.?!]|$|\s+(?:{'|'.join(word for word in _PREPOSITIONS if word != 'of')})\s)", re.IGNORECASE
)
_NEEDS_MORE = frozenset(
    """is are was were am be been being what's it's i'm that's who's there's he's she's we're you're i me you we
    us it they them that this these those which who what where when how there here interested mood go going went
    come comes look looking looks listen talk speak wait live lives stay held kept found made set based
    depending and or but not to in at for from on by with of as than want need like would could can will shall
    may might do does did have has had get gets say says said""".split()
)
_LEAST_WORDS = 4


def without_value(example: Example, rng: random.Random) -> Example | None:
    """The row with a required value taken out and `ask` as its draft; None where no value may be taken out."""
    text = request_text(example)
    if text is None or example.kind != "calls" or len(example.calls) != 1:
        return None
    elsewhere = " ".join(str(content) for content in system_texts(example))
    left = [
        rest
        for key, value in _required_values(example)
        if (rest := _cut(text, value, elsewhere)) is not None and not _has_rival(example, key)
    ]
    if not left:
        return None
    return replace(with_text(example, rng.choice(left)), kind="ask", calls=())


def _required_values(example: Example) -> Iterator[tuple[str, str]]:
    """Parameters that could be missed, with their values as they are said."""
    name, arguments = example.calls[0]
    schema = parameters_of(example, name)
    properties = schema.get("properties") or {}
    for key in schema.get("required") or ():
        inner = properties.get(key)
        value = said(arguments.get(key))
        if value is None or not isinstance(inner, Mapping) or _goes_without(inner):
            continue
        yield key, value


def _goes_without(schema: Mapping[str, Any]) -> bool:
    known = "default" in schema or "enum" in schema or "const" in schema
    return known or "default" in str(schema.get("description", "")).lower()


def _cut(text: str, value: str, elsewhere: str) -> str | None:
    found = places(value, text)
    if len(found) != 1:
        return None
    start, end = found[0].span()
    before, behind = _PHRASE.search(text[:start]), _BEHIND.match(text[end:])
    if before is None or behind is None or not _stands_alone(before[1]):
        return None
    rest = text[: before.start(2)] + text[end + behind.end() :]
    content = {word for word in re.findall(r"\w+", value.lower()) if len(word) > 3 or word.isdigit()}
    if content & set(re.findall(r"\w+", f"{rest} {elsewhere}".lower())) or len(rest.split()) < _LEAST_WORDS:
        return None
    return rest


def _stands_alone(word: str) -> bool:
    """True if a word before a phrase makes sense without it: roughly, whether it is a noun."""
    plain = word.lower().strip("'\"“”‘’,;:")
    return plain not in _NEEDS_MORE and not plain.endswith(("ed", "ly", "ing", "n't", "born")) and word[-1] not in ",;:"


def _has_rival(example: Example, key: str) -> bool:
    """True if a tool of a similar name is offered that does not require a parameter `key`."""
    (called,) = example.gold_names
    words = name_words(called)
    names = [str(tool["function"]["name"]) for tool in example.tools]
    alike = [name for name in names if name != called and words & name_words(name)]
    return any(key not in (parameters_of(example, name).get("required") or ()) for name in alike)
