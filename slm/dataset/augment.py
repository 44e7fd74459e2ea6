"""Variation of training examples: what a row offers and how it is worded, never what it asks.

Every function takes its random generator and leaves the request and the right answer as they are, but `without_gold`,
which takes the right tools away so that no call is the right answer. Each is a switch of the recipe.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slm.dataset.examples import Example
from slm.format.signature import DEFAULT_LIMITS, SignatureLimits

_SYLLABLES = "ba co di fu ge ho ja ki lo mu na pe qui ro sa te vu we xi yo zu tra ble sko plin mar".split()


def shuffled(group: Sequence[Example], rng: random.Random) -> list[Example]:
    """The tools that a group of rows shares in another order, the same for all."""
    order = rng.sample(range(len(group[0].tools)), len(group[0].tools))
    return [example.with_tools(example.tools[index] for index in order) for example in group]


def fewer_tools(example: Example, rng: random.Random, most: int) -> Example:
    """At most `most` tools, of which a random number stays; the called ones always, and those called before.

    Where the draft asks back, all stay: the row does not say which tool the missing value is for.
    """
    if example.kind == "ask":
        return example
    kept = {*example.gold_names, *called_before(example)}
    others = [tool for tool in example.tools if _name(tool) not in kept]
    room = max(0, most - len(kept & {_name(tool) for tool in example.tools}))
    least = 0 if kept else min(1, len(others))
    stay = rng.sample(range(len(others)), min(len(others), rng.randint(least, max(least, room))))
    names = kept | {_name(others[index]) for index in stay}
    return replace(example, tools=tuple(tool for tool in example.tools if _name(tool) in names))


def more_tools(group: Sequence[Example], rng: random.Random, pool: Sequence[Example], count: int) -> list[Example]:
    """Up to `count` tools of random rows of other sources put among the tools that a group of rows shares.

    A new tool might fit a request that none fits, or lack the value that is asked for: only groups in which every row
    makes a call get some, and none whose name shares a word with a called one's.
    """
    tools, source = list(group[0].tools), group[0].source
    if not tools or any(example.kind != "calls" for example in group):
        return list(group)
    names = {_name(tool) for tool in tools}
    called: set[str] = set().union(*(name_words(name) for example in group for name in example.gold_names))
    for other in rng.sample(pool, min(len(pool), 4 * count)):
        if count <= 0:
            break
        if other.source == source or not other.tools:
            continue
        tool = rng.choice(other.tools)
        if _name(tool) not in names and not called & name_words(_name(tool)):
            names.add(_name(tool))
            tools.insert(rng.randint(0, len(tools)), tool)
            count -= 1
    return [example.with_tools(tools) for example in group]


def can_lose_gold(example: Example) -> bool:
    """True if a request stays whole without the tools that it calls: it is a first message of the user.

    A tool that was called before would be missed in the history of a later one.
    """
    single = [message["role"] for message in example.messages if message["role"] != "system"] == ["user"]
    return example.kind == "calls" and single


def without_gold(example: Example) -> Example:
    """The same request without the tools that it calls: nothing fits, so the draft is `none`.

    A row that cannot lose them, or that offers no others, stays as it is.
    """
    others = tuple(tool for tool in example.tools if _name(tool) not in example.gold_names)
    if not others or not can_lose_gold(example):
        return example
    return replace(example, tools=others, kind="none", calls=())


def masked(example: Example, rng: random.Random) -> Example:
    """Tools and parameters that have a description under made-up names, the same everywhere in the example.

    The model must then read descriptions (Lin et al. 2024, "Hammer", arXiv 2410.04587). Nested fields keep their names.
    """
    taken = {_name(tool) for tool in example.tools if not tool["function"].get("description")}
    tools: dict[str, str] = {}
    parameters: dict[str, dict[str, str]] = {}
    for tool in example.tools:
        function = tool["function"]
        name = function["name"]
        tools[name] = _fresh(rng, taken) if function.get("description") else name
        properties = (function.get("parameters") or {}).get("properties") or {}
        described = {
            key for key, schema in properties.items() if isinstance(schema, Mapping) and schema.get("description")
        }
        own = properties.keys() - described
        parameters[name] = {key: _fresh(rng, own) if key in described else key for key in properties}
    return renamed(example, tools, parameters)


def renamed(example: Example, tools: Mapping[str, str], parameters: Mapping[str, Mapping[str, str]]) -> Example:
    """The example under other names: of tools, and of each tool's parameters by its old name.

    Definitions, earlier calls and the gold are renamed alike; the new names of one kind must be distinct.
    """
    return replace(
        example,
        tools=tuple(_renamed_tool(tool, tools, parameters) for tool in example.tools),
        messages=tuple(_renamed_message(message, tools, parameters) for message in example.messages),
        calls=tuple((tools[name], _renamed(arguments, parameters[name])) for name, arguments in example.calls),
    )


def varied_limits(rng: random.Random) -> SignatureLimits:
    """Bounds of a signature: the usual ones half of the time, else shorter descriptions."""
    if rng.random() < 0.5:
        return DEFAULT_LIMITS
    return replace(
        DEFAULT_LIMITS, description=rng.choice((48, 80, 120)), parameter_description=rng.choice((24, 40, 60))
    )


def name_words(name: str) -> set[str]:
    """The longer words of a tool's name in lower case, their plural s cut."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {word.lower().rstrip("s") for word in parts if len(word) > 3}


def _name(tool: Mapping[str, Any]) -> str:
    return str(tool["function"]["name"])


def called_before(example: Example) -> set[str]:
    """Names of the tools that are called in the conversation so far."""
    return {call["function"]["name"] for message in example.messages for call in message.get("tool_calls") or ()}


def _fresh(rng: random.Random, taken: set[str]) -> str:
    while True:
        name = "".join(rng.choices(_SYLLABLES, k=rng.randint(1, 2)))
        if rng.random() < 0.5:
            name += "_" + "".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(1, 3)))
        if name not in taken:
            taken.add(name)
            return name


def _renamed(arguments: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in arguments.items()}


def _renamed_tool(
    tool: Mapping[str, Any], tools: Mapping[str, str], parameters: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    function = dict(tool["function"])
    names = parameters[function["name"]]
    function["name"] = tools[function["name"]]
    if isinstance(schema := function.get("parameters"), Mapping) and isinstance(schema.get("properties"), Mapping):
        function["parameters"] = {
            **schema,
            "properties": _renamed(schema["properties"], names),
            "required": [names.get(key, key) for key in schema.get("required") or ()],
        }
    return {**tool, "function": function}


def _renamed_message(
    message: Mapping[str, Any], tools: Mapping[str, str], parameters: Mapping[str, Mapping[str, str]]
) -> Mapping[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = dict(call["function"])
        name = function["name"]
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            arguments = None
        if isinstance(arguments, dict):
            renamed = _renamed(arguments, parameters.get(name, {}))
            function["arguments"] = json.dumps(renamed, ensure_ascii=False)
        calls.append({**call, "function": {**function, "name": tools.get(name, name)}})
    return {**message, "tool_calls": calls}
