"""A tool as a compact signature and what its author wrote, one line a parameter:

    book(city, days?: integer, unit?: "c"|"f" = "c") What the tool does.
    - city: City and state, as 'Austin, TX'
    - days: Length of the stay (at least 1; at most 14)

A type that is not written is string. A parameter's line is left out where it would only repeat the names; else it shows
the whole description, with the bounds, format and examples that the schema declares. Nested fields are named by their
path (`guest.age`, `rooms[].beds`). A raw JSON Schema costs a small model three to five times the tokens and hides the
names that it must copy. A text is cut only at a generous bound, shown by `…`; where the tools of a prompt do not fit
together, each gets a fair share (`signatures`). The schema is hostile input: depth, enum length and text length are
bounded, `$ref` is followed inside the document only, and what its references multiply is bounded by `Room`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

    description: int = 1200
    parameter_description: int = 600
    enum_values: int = 64
    literal: int = 80
    depth: int = 4
    """Nesting levels of objects and arrays that are spelled out."""
    properties: int = 64
    types: int = 1024
    """Types that are looked at for one signature; what comes behind them is `object`, `any` or `…`."""
    read: int = 256 * 1024
    """Characters of the schema that are read for one signature, each as often as a reference leads to it."""


DEFAULT_LIMITS = SignatureLimits()
REFERENCE_CHARS, REFERENCE_PARTS = 1024, 24
"""Of a `$ref` that is followed, at most."""


@dataclass(slots=True)
class Room:
    """What may still be spelled out and read; of one signature, or of all that share a prompt (`whole`)."""

    types: int = 32 * DEFAULT_LIMITS.types
    read: int = 16 * DEFAULT_LIMITS.read
    whole: Room | None = None

    @property
    def left(self) -> bool:
        return self.types > 0 and self.read > 0 and (self.whole is None or self.whole.left)

    def spend(self, types: int, read: int) -> None:
        """May be more than is left."""
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


def tells_nothing_new(description: str, *said: str) -> bool:
    """Whether every content word of a description already stands in what is said anyway (the names)."""
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


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as it is rendered: its name as a draft writes it, its description, and its parameters' JSON Schema."""

    name: str
    description: str
    parameters: Schema


PROMPT_CHARS = 16_000
"""Characters of all signatures of a prompt; tools share them fairly."""
_TIGHTER = (
    (600, 300, 32, 80),
    (300, 150, 16, 48),
    (160, 80, 16, 48),
    (80, 40, 8, 32),
    (40, 0, 4, 24),
)
"""Bounds of description, parameter description, enum values and literals that are tried where tools do not fit."""


def signatures(tools: Sequence[Tool], limits: SignatureLimits = DEFAULT_LIMITS, chars: int = PROMPT_CHARS) -> list[str]:
    """The signatures of all tools of a prompt, which fit into `chars` where tighter bounds can bring that about.

    Every tool may take an equal share; what short ones leave is shared among the long ones (max-min fairness). A tool
    beyond its share gets the first tighter bounds under which it fits. Names and types always stay.
    """
    room = Room()
    made = [signature(tool.name, tool.description, tool.parameters, limits, room) for tool in tools]
    share = _fair_share([len(text) for text in made], chars)
    if share is None:
        return made
    again = Room()
    return [
        text if len(text) <= share else _tightened(tool, limits, share, again)
        for tool, text in zip(tools, made, strict=True)
    ]


def _fair_share(lengths: Sequence[int], whole: int) -> int | None:
    """The longest that one may be so that all fit together; None where they fit as they are."""
    if sum(lengths) <= whole:
        return None
    left, share = whole, 0
    for count, length in zip(range(len(lengths), 0, -1), sorted(lengths), strict=True):
        share = left // count
        if length > share:
            break
        left -= length
    return share


def _tightened(tool: Tool, limits: SignatureLimits, share: int, room: Room) -> str:
    text = ""
    for description, parameter, values, literal in _TIGHTER:
        tighter = replace(
            limits,
            description=min(limits.description, description),
            parameter_description=min(limits.parameter_description, parameter),
            enum_values=min(limits.enum_values, values),
            literal=min(limits.literal, literal),
        )
        text = signature(tool.name, tool.description, tool.parameters, tighter, room)
        if len(text) <= share:
            break
    return text


def signature(
    name: str,
    description: str,
    parameters: Schema,
    limits: SignatureLimits = DEFAULT_LIMITS,
    room: Room | None = None,
) -> str:
    """One tool: its signature and description on a line, then a line for each parameter that has more to say.

    Args:
        name: as a draft writes it.
        parameters: JSON Schema of the arguments; hostile input.
        room: what may still be spelled out and read, shared by all tools of a prompt.

    Returns:
        Lines without a final newline.
    """
    resolved = resolve(parameters, parameters)
    root = resolved if isinstance(resolved, Mapping) else {}
    spelling = _Spelling(parameters, limits, room or Room())
    line = f"{name}({spelling.fields(root, limits.depth)})"
    about = one_line(description, limits.description)
    if about:
        line += f" {about}"
    notes = _Notes(name, parameters, limits, spelling.room)
    notes.read(root, "", limits.depth)
    return "\n".join([line, *notes.lines])


class _Notes:
    """What the parameters' schemas say beside names and types, a line each."""

    def __init__(self, tool: str, root: Schema, limits: SignatureLimits, room: Room) -> None:
        self._tool, self._root, self._limits, self._room = tool, root, limits, room
        self.lines: list[str] = []

    def read(self, schema: Any, path: str, depth: int) -> None:
        """Add the notes of an object's fields; `path` ends with a dot below the top."""
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        if not isinstance(properties, Mapping) or depth <= 0:
            return
        for key, raw in islice(properties.items(), self._limits.properties):
            if not self._room.left:
                return
            inner = resolve(raw, self._root)
            if isinstance(inner, Mapping):
                self._field(inner, f"{path}{key}", key)
                self._below(inner, f"{path}{key}", depth)

    def _below(self, schema: Schema, path: str, depth: int) -> None:
        """The notes of what a field holds: an object's fields, a list's items."""
        if isinstance(schema.get("properties"), Mapping):
            self.read(schema, f"{path}.", depth - 1)
        elif isinstance(items := resolve(schema.get("items"), self._root), Mapping):
            self.read(items, f"{path}[].", depth - 1)

    def _field(self, schema: Schema, path: str, key: str) -> None:
        self._room.spend(1, 0)
        told = str(schema.get("description") or "")
        items = resolve(schema.get("items"), self._root)
        if not told and isinstance(items, Mapping):
            told = str(items.get("description") or "")
        self._room.spend(0, len(told))
        text = one_line(told, self._limits.parameter_description)
        if tells_nothing_new(text, key, self._tool):
            text = ""
        facts = "; ".join(self._facts(schema)) if self._limits.parameter_description else ""
        if text or facts:
            self.lines.append(f"- {path}: {text}{' ' if text and facts else ''}{f'({facts})' if facts else ''}")

    def _facts(self, schema: Schema) -> Iterator[str]:
        """Bounds, format and examples that a schema declares."""
        low = _bound(schema, "minimum", "at least {}") or _bound(schema, "exclusiveMinimum", "more than {}")
        high = _bound(schema, "maximum", "at most {}") or _bound(schema, "exclusiveMaximum", "less than {}")
        yield from filter(None, (low, high))
        for keyword in ("format", "pattern"):
            if isinstance(schema.get(keyword), str):
                self._room.spend(0, len(schema[keyword]))
                yield f"{keyword} {one_line(schema[keyword], self._limits.literal)}"
        for few, many, noun in (("minItems", "maxItems", "items"), ("minLength", "maxLength", "characters")):
            least, most = (_count(schema, key) for key in (few, many))
            if least or most is not None:
                yield f"{least or 0} to {most} {noun}" if most is not None else f"at least {least} {noun}"
        examples = schema.get("examples")
        if _listed(examples):
            yield "e.g. " + ", ".join(self._example(value) for value in examples[:3])

    def _example(self, value: Any) -> str:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (RecursionError, TypeError, ValueError):
            return "…"
        self._room.spend(0, len(text))
        return one_line(text, self._limits.literal)


def _bound(schema: Schema, key: str, words: str) -> str | None:
    value = schema.get(key)
    return words.format(f"{value:.12g}") if isinstance(value, int | float) and not isinstance(value, bool) else None


def _count(schema: Schema, key: str) -> int | None:
    value = schema.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None
