"""Is an argument's value among the acceptable ones: the value rules of BFCL's AST match, read from bfcl-eval 2026.3.23.

Strings are compared without case, spaces and `,./-_*^`, and with one kind of quote. Types are strict, as in BFCL: an
integer is taken for a declared number but not for a number *inside* an array, `5.0` is no integer, a boolean is never a
number. A value may have the type of an acceptable value instead of the declared one (the gold knows better).

Where this differs from BFCL, it is milder or plainer: strings are normalised at every depth (BFCL: the first level of a
list or an object only), and `true` never equals 1 (in BFCL it may, inside an object).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_IGNORED = str.maketrans({**dict.fromkeys(" ,./-_*^"), "'": '"'})
_TYPES: Mapping[str, frozenset[type]] = {
    "string": frozenset({str}),
    "integer": frozenset({int}),
    "number": frozenset({float}),
    "boolean": frozenset({bool}),
    "array": frozenset({list}),
    "object": frozenset({dict}),
    "null": frozenset({type(None)}),
}


def normal_string(text: str) -> str:
    """`text` as strings are compared: lower case, without spaces and `,./-_*^`, `'` as `"`."""
    return text.translate(_IGNORED).lower()


def has_type(value: Any, schema: Any, acceptable: Sequence[Any]) -> bool:
    """Return True if `value` has the schema's type or that of an acceptable value; array items one level deep.

    A schema without `type` allows every type; other keywords are ignored.
    """
    declared = _declared(schema)
    if not declared:
        return True
    if type(value) is int and float in declared:
        return True
    if type(value) not in declared:
        return type(value) in _option_types(acceptable)
    if not isinstance(value, list):
        return True
    items = _declared(schema.get("items"))
    if not items:
        return True
    return any(
        not isinstance(option, list) or {type(item) for item in value} <= items | _option_types(option)
        for option in acceptable
    )


def is_acceptable(value: Any, acceptable: Sequence[Any], *, choices_inside: bool) -> bool:
    """Return True if `value` equals one of the acceptable values.

    With `choices_inside` (BFCL's gold), an acceptable object, alone or in a list, holds for each key a list of
    acceptable values, `""` among them if the key may be absent.
    """
    return any(_matches(value, option, choices_inside) for option in acceptable)


def may_be_absent(acceptable: Sequence[Any]) -> bool:
    """Return True if a parameter with these acceptable values may be left out."""
    return any(isinstance(option, str) and option == "" for option in acceptable)


def _declared(schema: Any) -> frozenset[type]:
    """The Python types of the schema's `type`; empty if there is none or one that is not known."""
    named = schema.get("type") if isinstance(schema, Mapping) else None
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    types = [_TYPES[name] for name in names if isinstance(name, str) and name in _TYPES]
    return frozenset[type]().union(*types) if len(types) == len(names) else frozenset()


def _option_types(acceptable: Sequence[Any]) -> frozenset[type]:
    return frozenset(type(option) for option in acceptable if option != "")


def _matches(value: Any, option: Any, choices_inside: bool) -> bool:
    if choices_inside and isinstance(option, dict):
        return isinstance(value, dict) and _fits(value, option)
    if choices_inside and isinstance(option, list) and any(isinstance(item, dict) for item in option):
        return (
            isinstance(value, list)
            and len(value) == len(option)
            and all(_matches(item, wanted, choices_inside) for item, wanted in zip(value, option, strict=True))
        )
    return _equal(value, option)


def _fits(value: Mapping[str, Any], choices: Mapping[str, Any]) -> bool:
    for key, item in value.items():
        if key not in choices or not any(_equal(item, option) for option in choices[key]):
            return False
    return all(key in value or may_be_absent(options) for key, options in choices.items())


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, str) and isinstance(wanted, str):
        return normal_string(value) == normal_string(wanted)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_equal, value, wanted))
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(_equal(item, wanted[key]) for key, item in value.items())
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted)
