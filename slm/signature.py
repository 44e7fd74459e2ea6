"""A tool as one compact line: `name(city, days?: integer, unit?: "c"|"f" = "c") What it does. [city: which city]`.

A type that is not written is string, and a parameter's description is left out where it only repeats the names. A raw
JSON Schema costs a small model three to five times the tokens and hides the names that it must copy. The schema is
hostile input: depth, enum length and text length are bounded, and `$ref` is followed inside the document only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]

_EMPTY_WORDS = frozenset(
    """a an and as at be by for from has have how in is it its of on or said than that the their this to used user
    users value which whether with flag boolean integer number string type desired given specified provided name
    """.split()
)


@dataclass(frozen=True, slots=True)
class SignatureLimits:
    """Bounds of a rendered signature, in characters unless said otherwise."""

    description: int = 160
    parameter_description: int = 80
    enum_values: int = 16
    literal: int = 48
    depth: int = 4
    """Nesting levels of objects and arrays that are spelled out."""
    properties: int = 64


DEFAULT_LIMITS = SignatureLimits()


def one_line(text: object, limit: int) -> str:
    """`text` with its white space collapsed, cut at a word boundary to at most `limit` characters."""
    flat = " ".join(str(text).split())
    if len(flat) <= limit:
        return flat
    cut = flat[: limit - 1]
    head, space, _ = cut.rpartition(" ")
    return (head if space and len(head) > limit // 2 else cut).rstrip(" ,;:") + "…"


def _words(text: str) -> set[str]:
    """Lower-case words with their plural s cut; camelCase and snake_case are split."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+", text)
    return {word[:-1] if len(word) > 3 and word.endswith("s") else word for word in (part.lower() for part in parts)}


def tells_nothing_new(description: str, *said: str) -> bool:
    """Whether every content word of a description already stands in what is said anyway (the names)."""
    return _words(description) - _EMPTY_WORDS <= set().union(*(_words(text) for text in said))


def literal(value: Any, limit: int) -> str:
    """A JSON literal, cut to `limit` characters."""
    return one_line(json.dumps(value, ensure_ascii=False), limit)


def resolve(schema: Any, root: Schema, hops: int = 8) -> Any:
    """Follow a `$ref` inside `root` (JSON pointer); a remote, missing or circular reference gives `{}`."""
    while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        reference = schema["$ref"]
        hops -= 1
        if not reference.startswith("#") or hops < 0:
            return {}
        target: Any = root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or key not in target:
                return {}
            target = target[key]
        schema = target
    return schema


def type_of(schema: Any, root: Schema, limits: SignatureLimits, depth: int | None = None) -> str:
    """A TypeScript-like type expression for a JSON Schema."""
    depth = limits.depth if depth is None else depth
    schema = resolve(schema, root)
    if not isinstance(schema, Mapping) or depth < 0:
        return "any"
    if "const" in schema:
        return literal(schema["const"], limits.literal)
    enum = schema.get("enum")
    if isinstance(enum, Sequence) and not isinstance(enum, str) and enum:
        shown = [literal(value, limits.literal) for value in enum[: limits.enum_values]]
        return "|".join(shown) + ("|…" if len(enum) > limits.enum_values else "")
    for keyword in ("anyOf", "oneOf"):
        options = schema.get(keyword)
        if isinstance(options, Sequence) and not isinstance(options, str) and options:
            return "|".join(dict.fromkeys(type_of(option, root, limits, depth - 1) for option in options[:8]))
    declared = schema.get("type")
    if isinstance(declared, Sequence) and not isinstance(declared, str):
        kinds = [type_of({**schema, "type": kind}, root, limits, depth - 1) for kind in declared[:8]]
        return "|".join(dict.fromkeys(kinds)) or "any"
    return _plain_type(declared, schema, root, limits, depth)


def _plain_type(declared: Any, schema: Schema, root: Schema, limits: SignatureLimits, depth: int) -> str:
    if declared == "array":
        inner = type_of(schema.get("items", {}), root, limits, depth - 1)
        return f"({inner})[]" if "|" in inner else f"{inner}[]"
    if declared == "object" or "properties" in schema:
        if not isinstance(schema.get("properties"), Mapping) or depth <= 0:
            return "object"
        return "{" + _fields(schema, root, limits, depth) + "}"
    return declared if isinstance(declared, str) else "any"


def _fields(schema: Schema, root: Schema, limits: SignatureLimits, depth: int) -> str:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return ""
    required = schema.get("required")
    names = set(required) if isinstance(required, list) and all(isinstance(r, str) for r in required) else set()
    parts = []
    for name, raw in list(properties.items())[: limits.properties]:
        inner = resolve(raw, root)
        optional = "" if name in names else "?"
        default = ""
        if isinstance(inner, Mapping) and inner.get("default") not in (None, ""):
            default = " = " + literal(inner["default"], limits.literal)
        kind = type_of(inner, root, limits, depth - 1)
        parts.append(f"{name}{optional}{'' if kind == 'string' else ': ' + kind}{default}")
    if len(properties) > limits.properties:
        parts.append("…")
    return ", ".join(parts)


def signature(name: str, description: str, parameters: Schema, limits: SignatureLimits = DEFAULT_LIMITS) -> str:
    """One tool as one line; parameter descriptions follow the tool's own."""
    resolved = resolve(parameters, parameters)
    root = resolved if isinstance(resolved, Mapping) else {}
    line = f"{name}({_fields(root, parameters, limits, limits.depth)})"
    about = one_line(description, limits.description)
    if about:
        line += f" {about}"
    properties = root.get("properties")
    notes = []
    for key, raw in list(properties.items())[: limits.properties] if isinstance(properties, Mapping) else ():
        inner = resolve(raw, parameters)
        text = (
            one_line(inner.get("description", ""), limits.parameter_description) if isinstance(inner, Mapping) else ""
        )
        if text and not tells_nothing_new(text, key, name):
            notes.append(f"{key}: {text}")
    return f"{line} [{'; '.join(notes)}]" if notes else line
