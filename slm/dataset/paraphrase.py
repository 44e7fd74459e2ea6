"""Signatures in other words: descriptions reworded by a table, names written in another style.

The table holds words that stand for one another at the beginning of a tool's description, and phrases that do so
anywhere. What a tool does stays the same as far as such a table can know; no model has a hand in it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from slm.dataset.augment import renamed
from slm.dataset.examples import Example

_VERBS = (
    "get retrieve fetch",
    "search find",
    "calculate compute",
    "create make",
    "delete remove",
    "update change modify",
    "book reserve",
    "show display",
    "begin start",
    "analyze examine",
    "check verify",
    "buy purchase",
    "list enumerate",
)
"""Imperatives that may stand for one another as a description's first word; so may their forms with `s`."""

_PHRASES = (
    ("the specified", "the given"),
    ("the given", "the specified"),
    ("a specified", "a given"),
    ("a given", "a specified"),
    ("e.g.", "for example"),
    ("for example", "e.g."),
    ("such as", "like"),
    ("must be", "has to be"),
    ("based on", "according to"),
    ("information about", "details of"),
    ("in order to", "to"),
    ("whether to", "if true,"),
    ("The name of", "Name of"),
    ("The number of", "How many"),
    ("the number of", "how many"),
    ("The date of", "Date of"),
    ("The ID of", "ID of"),
    ("maximum", "greatest"),
    ("minimum", "least"),
    ("allows you to", "lets you"),
)
"""Phrases that may replace one another anywhere in a description."""

Style = Callable[[list[str]], str]


def paraphrased(example: Example, rng: random.Random) -> Example:
    """The same row with its tools described in other words; the same generator state gives the same tools for every
    row."""
    tool_style, parameter_style = rng.choice(_TOOL_STYLES), rng.choice(_PARAMETER_STYLES)
    worded = tuple(_reworded_tool(tool, rng) for tool in example.tools)
    names: dict[str, str] = _in_style([str(tool["function"]["name"]) for tool in worded], tool_style)
    parameters = {
        str(tool["function"]["name"]): _in_style(_properties(tool["function"]), parameter_style) for tool in worded
    }
    return renamed(replace(example, tools=worded), names, parameters)


def reworded(text: str, rng: random.Random) -> str:
    """A description in other words: each place that the table knows is changed half of the time."""
    first, space, rest = text.partition(" ")
    text = _other_verb(first, rng) + space + rest
    changed = [(before, after) for before, after in _PHRASES if rng.random() < 0.5]
    for before, after in changed:
        text = re.sub(rf"(?<![\w.]){re.escape(before)}(?!\w)", after, text)
    return text[:1].upper() + text[1:] if first[:1].isupper() else text


def _other_verb(word: str, rng: random.Random) -> str:
    bare = word.lower()
    for line in _VERBS:
        verbs = line.split()
        for ending in ("", "s"):
            forms = [verb + ("es" if ending and verb.endswith(("ch", "sh")) else ending) for verb in verbs]
            if bare in forms and rng.random() < 0.5:
                return rng.choice(forms)
    return word


def _reworded_tool(tool: Mapping[str, Any], rng: random.Random) -> Mapping[str, Any]:
    function = dict(tool["function"])
    if isinstance(about := function.get("description"), str):
        function["description"] = reworded(about, rng)
    schema = function.get("parameters")
    if isinstance(schema, Mapping) and isinstance(schema.get("properties"), Mapping):
        properties = {key: _reworded_property(inner, rng) for key, inner in schema["properties"].items()}
        function["parameters"] = {**schema, "properties": properties}
    return {**tool, "function": function}


def _reworded_property(schema: Any, rng: random.Random) -> Any:
    if isinstance(schema, Mapping) and isinstance(about := schema.get("description"), str):
        return {**schema, "description": reworded(about, rng)}
    return schema


def _properties(function: Mapping[str, Any]) -> Iterable[str]:
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else ()


def _in_style(names: Iterable[str], style: Style | None) -> dict[str, str]:
    """Old name → new name, distinct; a name that is no row of plain words, or whose new one is taken, stays."""
    old = list(names)
    if style is None:
        return {name: name for name in old}
    made: dict[str, str] = {}
    taken = set(old)
    for name in old:
        words = _words(name)
        new = style(words) if words else name
        if new != name and (new in taken or len(new) > 64):
            new = name
        made[name] = new
        taken.add(new)
    return made


def _words(name: str) -> list[str]:
    """The lower-case words of `snake_case`, `kebab-case` or `camelCase`; none where a name holds anything else."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([_-][A-Za-z0-9]+)*", name):
        return []
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [part.lower() for part in parts]


def _snake(words: list[str]) -> str:
    return "_".join(words)


def _kebab(words: list[str]) -> str:
    return "-".join(words)


def _camel(words: list[str]) -> str:
    return words[0] + "".join(word[:1].upper() + word[1:] for word in words[1:])


def _pascal(words: list[str]) -> str:
    return "".join(word[:1].upper() + word[1:] for word in words)


_TOOL_STYLES: tuple[Style | None, ...] = (None, None, _snake, _camel, _kebab, _pascal)
_PARAMETER_STYLES: tuple[Style | None, ...] = (None, None, _snake, _camel)
