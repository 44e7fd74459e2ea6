"""A tool as one compact line: `name(city, days?: integer, unit?: "c"|"f" = "c") What it does. [city: which city]`.

A type that is not written is string, and a parameter's description is left out where it only repeats the names. A raw
JSON Schema costs a small model three to five times the tokens and hides the names that it must copy. The schema is
hostile input: depth, enum length and text length are bounded, `$ref` is followed inside the document only, and what
its references multiply is bounded by `Room`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeGuard

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
    types: int = 1024
    """Types that are looked at for one signature; what comes behind them is `object`, `any` or `…`."""
    read: int = 256 * 1024
    """Characters of the schema that are read for one signature, each as often as a reference leads to it."""


DEFAULT_LIMITS = SignatureLimits()
REFERENCE_CHARS, REFERENCE_PARTS = 1024, 24
"""Largest length of a `$ref` that is followed, in characters and in parts."""


@dataclass(slots=True)
class Room:
    """The budget that is left for rendering: of one signature, or of all that share a prompt (`whole`)."""

    types: int = 32 * DEFAULT_LIMITS.types
    read: int = 16 * DEFAULT_LIMITS.read
    whole: Room | None = None

    @property
    def left(self) -> bool:
        return self.types > 0 and self.read > 0 and (self.whole is None or self.whole.left)

    def spend(self, types: int, read: int) -> None:
        """Take from the budget; it may go below zero."""
        self.types -= types
        self.read -= read
        if self.whole is not None:
            self.whole.spend(types, read)


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


def adds_nothing(description: str, *said: str) -> bool:
    """True if every content word of a description already occurs in the texts `said` (the names)."""
    return _words(description) - _EMPTY_WORDS <= set().union(*(_words(text) for text in said))


def resolve(schema: Any, root: Schema, hops: int = 8) -> Any:
    """Follow a `$ref` inside `root` (JSON pointer); a remote, missing, overlong or circular reference gives `{}`."""
    while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        reference = schema["$ref"]
        hops -= 1
        if not reference.startswith("#") or hops < 0 or len(reference) > REFERENCE_CHARS:
            return {}
        target: Any = root
        parts = reference[1:].split("/")[1:]
        if len(parts) > REFERENCE_PARTS:
            return {}
        for part in parts:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or key not in target:
                return {}
            target = target[key]
        schema = target
    return schema


class _Spelling:
    """The types of one tool's parameters, TypeScript-like."""

    def __init__(self, root: Schema, limits: SignatureLimits, room: Room) -> None:
        self._root, self._limits = root, limits
        self.room = Room(limits.types, limits.read, room)

    def fields(self, schema: Schema, depth: int) -> str:
        """An object's keys with their types, without its braces."""
        properties = schema.get("properties")
        if not isinstance(properties, Mapping):
            return ""
        names = self._required(schema)
        parts = []
        for name, raw in islice(properties.items(), self._limits.properties):
            if not self.room.left:
                break
            inner = resolve(raw, self._root)
            optional = "" if name in names else "?"
            default = ""
            if isinstance(inner, Mapping) and inner.get("default") not in (None, ""):
                default = " = " + self._literal(inner["default"])
            kind = self._type(inner, depth - 1)
            parts.append(f"{name}{optional}{'' if kind == 'string' else ': ' + kind}{default}")
            self.room.spend(0, len(name))
        if len(properties) > len(parts):
            parts.append("…")
        return ", ".join(parts)

    def _required(self, schema: Schema) -> set[str]:
        required = schema.get("required")
        if not isinstance(required, list):
            return set()
        self.room.spend(0, len(required))
        return set(required) if all(isinstance(name, str) for name in required) else set()

    def _type(self, schema: Any, depth: int) -> str:
        schema = resolve(schema, self._root)
        if not isinstance(schema, Mapping) or depth < 0 or not self.room.left:
            return "any"
        self.room.spend(1, 0)
        if "const" in schema:
            return self._literal(schema["const"])
        enum = schema.get("enum")
        if _listed(enum):
            shown = [self._literal(value) for value in enum[: self._limits.enum_values]]
            return "|".join(shown) + ("|…" if len(enum) > self._limits.enum_values else "")
        for keyword in ("anyOf", "oneOf"):
            options = schema.get(keyword)
            if _listed(options):
                return "|".join(dict.fromkeys(self._type(option, depth - 1) for option in options[:8]))
        return self._declared(schema.get("type"), schema, depth)

    def _declared(self, declared: Any, schema: Schema, depth: int) -> str:
        """The type that a schema without alternatives declares: one, or a list of them."""
        if depth < 0 or not self.room.left:
            return "any"
        if isinstance(declared, Sequence) and not isinstance(declared, str):
            kinds = [self._declared(kind, schema, depth - 1) for kind in declared[:8]]
            return "|".join(dict.fromkeys(kinds)) or "any"
        self.room.spend(1, 0)
        if declared == "array":
            inner = self._type(schema.get("items", {}), depth - 1)
            return f"({inner})[]" if "|" in inner else f"{inner}[]"
        if declared == "object" or "properties" in schema:
            if not isinstance(schema.get("properties"), Mapping) or depth <= 0 or not self.room.left:
                return "object"
            return "{" + self.fields(schema, depth) + "}"
        if not isinstance(declared, str):
            return "any"
        self.room.spend(0, len(declared))
        return declared

    def _literal(self, value: Any) -> str:
        """A JSON literal, cut."""
        if not self.room.left:
            return "…"
        try:
            text = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            return "…"
        self.room.spend(0, len(text))
        return one_line(text, self._limits.literal)


def _listed(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value)


def signature(
    name: str,
    description: str,
    parameters: Schema,
    limits: SignatureLimits = DEFAULT_LIMITS,
    room: Room | None = None,
) -> str:
    """One tool as one line; parameter descriptions follow the tool's own. `room`: of the prompt that it stands in."""
    resolved = resolve(parameters, parameters)
    root = resolved if isinstance(resolved, Mapping) else {}
    spelling = _Spelling(parameters, limits, room or Room())
    line = f"{name}({spelling.fields(root, limits.depth)})"
    about = one_line(description, limits.description)
    if about:
        line += f" {about}"
    notes = _notes(name, root, parameters, limits, spelling.room)
    return f"{line} [{'; '.join(notes)}]" if notes else line


def _notes(name: str, schema: Schema, root: Schema, limits: SignatureLimits, room: Room) -> list[str]:
    """Notes on the parameters whose descriptions say more than their names."""
    properties = schema.get("properties")
    notes = []
    for key, raw in islice(properties.items(), limits.properties) if isinstance(properties, Mapping) else ():
        inner = resolve(raw, root)
        full = str(inner.get("description", "")) if isinstance(inner, Mapping) and room.left else ""
        room.spend(0, len(full))
        text = one_line(full, limits.parameter_description)
        if text and not adds_nothing(text, key, name):
            notes.append(f"{key}: {text}")
    return notes
