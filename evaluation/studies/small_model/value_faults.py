"""Classifies how a wrong value differs from the acceptable ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from enum import Enum, auto
from typing import Any

from evaluation.cases.value_match import normal_string
from policies.features.grounding import Conversation, Text, ground, leaves, normalised

_REPEATED = re.compile(r"(\S.{3,79}?)\1{2,}", re.DOTALL)
_LOOKED_AT = 2_000
_ALIKE = 0.8
"""Share of characters in common from which a text is the same in another spelling."""
_SAID = 0.5
"""Score of grounding from which a value counts as said: half of its words, or all of it."""
_WORD = re.compile(r"\w+")
_SCALES = (-1.0, 60.0, 100.0, 1000.0)


class ValueFault(Enum):
    """The ways in which a value of the right type can be wrong."""

    REPEATS = auto()
    TOO_LONG = auto()
    """It holds an acceptable text, or all of an acceptable list's items, and more."""
    TOO_SHORT = auto()
    """An acceptable text holds it, or an acceptable list all of its items."""
    OTHERWISE = auto()
    """The same numbers, dates, words or nearly the same letters; a number in another unit or of another sign."""
    OTHER_CHOICE = auto()
    """Another value of an enum, or the other truth value."""
    MADE_UP = auto()
    """Something in it stands nowhere in the conversation."""
    OTHER_SAID = auto()
    """All of it stands in the conversation."""


def repeats(text: str) -> bool:
    """Return True if a piece of four to eighty characters stands in `text` three times in a row."""
    return _REPEATED.search(text[-_LOOKED_AT:]) is not None


def is_said(value: Any, schema: Mapping[str, Any], conversation: Conversation) -> bool:
    """Return True if each part of `value` is a truth value or stands in `conversation`, half of its words at least."""
    return all(ground(leaf, about, conversation).score >= _SAID for leaf, about in leaves(value, schema))


def same_apart_from_type(value: Any, acceptable: Sequence[Any]) -> bool:
    """Return True if the value reads like an acceptable one: `"5"` for 5, `["a"]` for `"a"`."""
    return any(normal_string(_bare(value)) == normal_string(_bare(option)) for option in acceptable if option != "")


def value_fault(
    value: Any, acceptable: Sequence[Any], schema: Mapping[str, Any], conversation: Conversation
) -> ValueFault:
    """Return the fault of a value that is none of the acceptable ones."""
    if isinstance(value, str) and repeats(value):
        return ValueFault.REPEATS
    if isinstance(value, bool) or "enum" in schema:
        return ValueFault.OTHER_CHOICE
    for option in acceptable:
        if option != "" and (found := _beside(value, option)):
            return found
    return ValueFault.OTHER_SAID if is_said(value, schema, conversation) else ValueFault.MADE_UP


def _bare(value: Any) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return str(value)


def _beside(value: Any, option: Any) -> ValueFault | None:
    if isinstance(value, str) and isinstance(option, str):
        return _texts(value, option)
    if isinstance(value, list) and isinstance(option, list):
        return _lists({normal_string(str(item)) for item in value}, {normal_string(str(item)) for item in option})
    if isinstance(value, int | float) and isinstance(option, int | float) and not isinstance(option, bool):
        scaled = (value * scale == option or value == option * scale for scale in _SCALES)
        return ValueFault.OTHERWISE if any(scaled) else None
    return None


def _lists(items: set[str], wanted: set[str]) -> ValueFault | None:
    if items == wanted:
        return ValueFault.OTHERWISE
    if items > wanted:
        return ValueFault.TOO_LONG
    return ValueFault.TOO_SHORT if items < wanted else None


def _texts(value: str, option: str) -> ValueFault | None:
    own, wanted = Text(value), Text(option)
    if not own.plain or not wanted.plain:
        return None
    if own.moments or wanted.moments:
        if own.moments & wanted.moments:
            return ValueFault.OTHERWISE
    elif own.words == wanted.words or (own.numbers and _only_numbers(value, option) and own.numbers & wanted.numbers):
        return ValueFault.OTHERWISE
    if own.says(wanted.plain):
        return ValueFault.TOO_LONG
    if wanted.says(own.plain):
        return ValueFault.TOO_SHORT
    alike = SequenceMatcher(None, own.plain, wanted.plain).ratio() >= _ALIKE
    return ValueFault.OTHERWISE if alike and own.numbers == wanted.numbers else None


def _only_numbers(value: str, option: str) -> bool:
    """Return True if one of the texts is a number and little else."""
    return min(len(_WORD.findall(normalised(text))) for text in (value, option)) == 1
