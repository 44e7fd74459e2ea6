"""A wrong call and its tool's complaint before the right one: the draft puts the call right.

The wrong call is the right one with one fault that the tool's own schema forbids: a required argument left out, a value
of another type, or one that is not among the choices. The complaint names the fault as the schema has it, in one of the
ways in which services put it. So what is said is true of the call, and the right answer is what it was before.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from slm.dataset.constructed import parameters_of
from slm.dataset.examples import BadRow, Example, schema_validator

_MISSING = (
    "Error: missing required parameter '{key}'",
    '{{"error": "missing required argument: {key}"}}',
    '{{"status": 400, "message": "{key} is required"}}',
    "ValidationError: '{key}' is a required property",
)
_WRONG = (
    "Error: invalid value for parameter '{key}': expected {expected}",
    '{{"error": "invalid argument {key}: expected {expected}"}}',
    '{{"status": 422, "message": "{key} must be {expected}"}}',
    "ValidationError: {key} is not valid, it must be {expected}",
)
_TYPES = {"integer": "an integer", "number": "a number", "boolean": "a boolean", "array": "a list"}
_CHOICES_SHOWN = 6


def after_error(example: Example, rng: random.Random) -> Example | None:
    """The row with a failed call before its gold; None where the row makes other than one call, or none can fail."""
    if example.kind != "calls" or len(example.calls) != 1:
        return None
    name, arguments = example.calls[0]
    schema = parameters_of(example, name)
    faults = list(_faults(arguments, schema, rng))
    if not faults:
        return None
    wrong, complaint = rng.choice(faults)
    call_id = f"call_{len(example.messages)}"
    function = {"name": name, "arguments": json.dumps(wrong, ensure_ascii=False)}
    call = {"id": call_id, "type": "function", "function": function}
    return replace(
        example,
        messages=(
            *example.messages,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": complaint},
        ),
    )


def _faults(
    arguments: Mapping[str, Any], schema: Mapping[str, Any], rng: random.Random
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Wrong arguments and what the tool says of them; only such that the schema refuses."""
    try:
        validator = schema_validator(dict(schema), "the called tool")
    except BadRow:
        return
    properties = schema.get("properties") or {}
    required = schema.get("required") or ()
    for key, value in arguments.items():
        made = []
        if key in required:
            left = {name: other for name, other in arguments.items() if name != key}
            made.append((left, rng.choice(_MISSING).format(key=key)))
        inner = properties.get(key)
        fault = _fault(value, inner, rng) if isinstance(inner, Mapping) else None
        if fault is not None:
            made.append(({**arguments, key: fault[0]}, rng.choice(_WRONG).format(key=key, expected=fault[1])))
        yield from (one for one in made if not validator.is_valid(one[0]))


def _fault(value: Any, schema: Mapping[str, Any], rng: random.Random) -> tuple[Any, str] | None:
    """A wrong value and what was expected in its place."""
    choices = schema.get("enum")
    if isinstance(choices, list) and 1 < len(choices) <= _CHOICES_SHOWN and isinstance(value, str):
        return _misspelt(value, rng), "one of " + ", ".join(map(str, choices))
    expected = _TYPES.get(str(schema.get("type")))
    if expected is None:
        return None
    if isinstance(value, list):
        return (value[0], expected) if len(value) == 1 and not isinstance(value[0], list) else None
    return json.dumps(value), expected


def _misspelt(value: str, rng: random.Random) -> str:
    return rng.choice([value + "s", value.swapcase(), value.replace("_", " "), f"the {value}"])
