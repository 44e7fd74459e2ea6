"""A tool's parameters (a hostile JSON Schema) as a small schema that a grammar can be built from.

The result says how arguments may be *drafted*, not which are valid: that is for `policies.validation`, on the original.
It is narrower where a draft should not be free (keys that are not declared are forbidden where some are) and looser
where a keyword cannot be drafted by, is unknown, or is beyond a bound. Only what stands in the tables below passes, so
nothing of the client's reaches the grammar compiler unread. References are followed inside the document only and moved
to `$defs`; recursion through them stays recursion. Work and result are bounded by `SchemaLimits.nodes`, whatever
references multiply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from slm.format.pattern import canonical_json
from slm.format.signature import resolve

Schema = Mapping[str, Any]


class Detail(IntEnum):
    """The share of a schema that a grammar enforces; a lower level is used where the one above cannot be compiled."""

    ANY = 0
    """Any JSON object."""
    STRUCTURE = 1
    """Types, keys, required keys, enums and alternatives."""
    FULL = 2
    """Also patterns, formats, lengths and ranges."""


@dataclass(frozen=True, slots=True)
class SchemaLimits:
    """Bounds of a drafted schema; beyond one, the part in question becomes looser."""

    depth: int = 24
    nodes: int = 4000
    """Schemas that are looked at, each as often as it is; 16 keys or values of one, 256 characters of its names,
    patterns and enum, or one value of an enum that is no text, each value inside it too, count as much."""
    properties: int = 256
    alternatives: int = 32
    all_alternatives: int = 512
    """Alternatives of all `anyOf` and `oneOf`, each as often as it is visited, and of all lists and objects in enums,
    each value inside them too: what a grammar's parser keeps apart, 0.1 ms each to compile, and of some a step for each
    pair."""
    enum_values: int = 512
    literal_chars: int = 1024
    items: int = 64
    """Largest `minItems`, `minProperties` and tuple length; `maxItems` may be four times as large."""
    string_chars: int = 4096
    pattern_chars: int = 512


DEFAULT_LIMITS = SchemaLimits()


@dataclass(slots=True)
class Allowance:
    """Nodes that several schemas share."""

    nodes: int


_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_TYPES_LISTED = 32
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_RANGE = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_BESIDE = frozenset(
    """type properties required additionalProperties patternProperties allOf anyOf oneOf enum const items prefixItems
    minItems maxItems minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
    """.split()
)
"""Keywords that narrow what stands beside them; others are annotations."""
_UNDRAFTED = (
    "not", "if", "dependentRequired", "dependentSchemas", "dependencies", "propertyNames", "contains", "uniqueItems",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef",
)  # fmt: skip
_NOTHING = {"type": "object", "additionalProperties": False}
_NUMBER_BOUND = 10.0**15


def drafted_schema(
    parameters: Any,
    detail: Detail = Detail.FULL,
    limits: SchemaLimits = DEFAULT_LIMITS,
    allowance: Allowance | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The schema to draft a tool's arguments by, always of an object, and what was left out of it.

    Args:
        parameters: the tool's `parameters` as the client sent them. None, or a schema that declares an empty set of
            properties, is a tool without arguments; what is not a schema of an object gives any JSON object.
        allowance: bounds the nodes too, and loses those that were looked at.

    Returns:
        A fresh schema of keywords that the grammar compiler knows, and sentences without argument values.
    """
    if detail is Detail.ANY or not isinstance(parameters, Mapping | None) or parameters == {}:
        return {"type": "object"}, []
    if parameters is None:
        return dict(_NOTHING), []
    narrowing = _Narrowing(parameters, detail, limits)
    if allowance is None:
        return narrowing.arguments(), narrowing.notes()
    narrowing.left = before = min(limits.nodes, allowance.nodes)
    schema = narrowing.arguments()
    allowance.nodes -= before - narrowing.left
    return schema, narrowing.notes()


def _types(schema: Schema) -> list[str]:
    declared = schema.get("type")
    listed = [declared] if isinstance(declared, str) else declared[:_TYPES_LISTED] if isinstance(declared, list) else []
    known = [kind for kind in listed if isinstance(kind, str) and kind in _TYPES]
    if not known and not listed:
        if isinstance(schema.get("properties"), Mapping):
            return ["object"]
        if "items" in schema or "prefixItems" in schema:
            return ["array"]
    return list(dict.fromkeys(known))


def _strings(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _drafted(schema: Any) -> bool:
    """True unless the schema is `false`, which forbids a key, an item or an alternative."""
    return schema is not False


def _parts(text: str) -> int:
    """At least the values in canonical JSON, inner ones too; 0 of a string."""
    return 0 if text[0] == '"' else 1 + sum(map(text.count, "[{,:"))


def _count(value: Any, largest: int) -> int | None:
    """A non-negative integer up to `largest`, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not 0 <= value <= largest:
        return None
    return int(value) if value == int(value) else None


class _Narrowing:
    """One walk over one document."""

    def __init__(self, root: Schema, detail: Detail, limits: SchemaLimits) -> None:
        self._root, self._full, self._limits = root, detail is Detail.FULL, limits
        self.left = limits.nodes
        """Nodes that may still be looked at."""
        self._alternatives = limits.all_alternatives
        """Alternatives that the parser may still have to keep apart."""
        self._names: dict[int, str] = {}
        """Names of reference targets by identity; the document outlives the walk."""
        self._definitions: dict[str, Any] = {}
        self._ignored: dict[str, None] = {}

    def notes(self) -> list[str]:
        return [f"not followed while drafting: {', '.join(self._ignored)}"] if self._ignored else []

    def arguments(self) -> dict[str, Any]:
        root = resolve(self._root, self._root)
        if not isinstance(root, Mapping) or (_types(root) and "object" not in _types(root)):
            self._ignored["type of the parameters"] = None
            return {"type": "object"}
        schema = self._node({**root, "type": "object"}, 0)
        if not schema:
            return {"type": "object"}
        if schema == {"type": "object"} and root.get("properties") == {} and not root.get("additionalProperties"):
            return dict(_NOTHING)
        if self._definitions:
            schema["$defs"] = self._definitions
        return schema

    def _merged(self, left: Schema, right: Any) -> dict[str, Any]:
        """Both schemas at once, as far as a draft needs it: keys are united; of other keywords the left one stands."""
        if not isinstance(right, Mapping) or self.left < 0:
            return dict(left)
        self._charge(left, right, left.get("required"), right.get("required"))
        merged = {**right, **left}
        keys, more = left.get("properties"), right.get("properties")
        if isinstance(keys, Mapping) and isinstance(more, Mapping):
            self._charge(keys, more)
            both = {key: {"allOf": [keys[key], more[key]]} for key in keys if key in more}
            merged["properties"] = {**keys, **more, **both}
        required = dict.fromkeys(_strings(left.get("required")) + _strings(right.get("required")))
        if required:
            merged["required"] = list(required)
        return merged

    def _charge(self, *parts: Any, chars: int = 0) -> None:
        """Count keys and values that are gone through, and characters that are taken over."""
        self.left -= sum(len(part) for part in parts if isinstance(part, Mapping | list)) // 16 + chars // 256

    def _granted(self, alternatives: int) -> bool:
        """True if the budget has room for that many alternatives, which are then taken from it."""
        if alternatives > self._alternatives:
            return False
        self._alternatives -= alternatives
        return True

    def _loose(self, reason: str) -> dict[str, Any]:
        self._ignored[reason] = None
        return {}

    def _node(self, schema: Any, depth: int) -> dict[str, Any]:
        """`{}` is any value. A `false` schema must not get here (see `_drafted`)."""
        if not isinstance(schema, Mapping):
            return {}
        self.left -= 1
        self._charge(schema)
        if self.left < 0 or depth > self._limits.depth:
            return self._loose("parts beyond a size or depth limit")
        self._ignored.update((keyword, None) for keyword in _UNDRAFTED if schema.get(keyword))
        if "$ref" in schema:
            return self._reference(schema, depth)
        if isinstance(schema.get("allOf"), list):
            return self._all_of(schema, depth)
        if "const" in schema:
            return self._enum([schema["const"]], schema)
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._enum(schema["enum"], schema)
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list) and schema[keyword]:
                return self._any_of(schema, keyword, depth)
        return self._typed(schema, depth)

    def _reference(self, schema: Schema, depth: int) -> dict[str, Any]:
        target = resolve(schema, self._root)
        if not isinstance(target, Mapping) or not target:
            return self._loose("a $ref that is remote, missing or circular")
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        if not _BESIDE.isdisjoint(beside):
            return self._node(self._merged(beside, target), depth + 1)
        if id(target) not in self._names:
            self._names[id(target)] = name = f"d{len(self._names)}"
            self._definitions[name] = self._node(target, depth + 1)
        return {"$ref": f"#/$defs/{self._names[id(target)]}"}

    def _all_of(self, schema: Schema, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        if len(schema["allOf"]) > self._limits.alternatives:
            return self._loose("a long allOf")
        for part in schema["allOf"]:
            merged = self._merged(merged, resolve(part, self._root))
        return self._node(merged, depth + 1)

    def _any_of(self, schema: Schema, keyword: str, depth: int) -> dict[str, Any]:
        self._charge(schema[keyword])
        options = [option for option in schema[keyword] if _drafted(option)]
        if len(options) > self._limits.alternatives or not options:
            return self._loose(f"a long or empty {keyword}")
        if not self._granted(len(options)):
            return self._loose("alternatives beyond a limit")
        beside = {key: value for key, value in schema.items() if key != keyword and key in _BESIDE}
        if beside:  # Objects are closed, so each alternative must itself hold the keys that stand beside it.
            options = [self._merged(beside, resolve(option, self._root)) for option in options]
        return {"anyOf": [self._node(option, depth + 1) for option in options]}

    def _enum(self, values: Sequence[Any], schema: Schema) -> dict[str, Any]:
        limits = self._limits
        try:
            texts = [canonical_json(value) for value in values[: limits.enum_values]]
        except (ValueError, RecursionError):
            return self._loose("an enum that is no JSON")
        sizes, parts = [len(text) for text in texts], [_parts(text) for text in texts]
        self._charge(sizes, chars=sum(sizes))
        self.left -= sum(parts)
        if (
            len(values) > limits.enum_values
            or max(sizes) > limits.literal_chars
            or not self._granted(sum(part for text, part in zip(texts, parts, strict=True) if text[0] in "[{"))
        ):
            self._ignored["a long enum"] = None
            return {"type": _types(schema)} if _types(schema) else {}
        return {"enum": list(values)}

    def _typed(self, schema: Schema, depth: int) -> dict[str, Any]:
        types = _types(schema)
        made: dict[str, Any] = {"type": types[0] if len(types) == 1 else types} if types else {}
        if "object" in types:
            made.update(self._object(schema, depth))
        if "array" in types:
            made.update(self._array(schema, depth))
        if self._full and "string" in types:
            made.update(self._string(schema))
        if self._full and ("number" in types or "integer" in types):
            made.update(self._number(schema))
        return made

    def _object(self, schema: Schema, depth: int) -> dict[str, Any]:
        declared = schema.get("properties")
        self._charge(declared, schema.get("required"))
        required = list(dict.fromkeys(_strings(schema.get("required"))))
        properties = dict(declared) if isinstance(declared, Mapping) else {}
        properties.update((key, {}) for key in required if key not in properties)
        if len(properties) > self._limits.properties:
            return self._loose("an object of too many keys")
        self._charge(chars=sum(len(str(key)) for key in properties))
        extra = schema.get("additionalProperties")
        if not properties:
            return self._map(schema, extra, depth)
        made: dict[str, Any] = {
            "properties": {
                str(key): self._node(value, depth + 1) for key, value in properties.items() if _drafted(value)
            },
            "additionalProperties": False,
        }
        if isinstance(extra, Mapping) and extra:
            made["additionalProperties"] = self._node(extra, depth + 1)
        if required:
            made["required"] = [key for key in required if key in made["properties"]]
        return made

    def _map(self, schema: Schema, extra: Any, depth: int) -> dict[str, Any]:
        """An object that declares no key."""
        made: dict[str, Any] = {}
        if isinstance(extra, Mapping):
            made["additionalProperties"] = self._node(extra, depth + 1)
        elif extra is False:
            made["additionalProperties"] = False
        patterns = schema.get("patternProperties")
        if self._full and isinstance(patterns, Mapping) and len(patterns) <= self._limits.alternatives:
            self._charge(chars=sum(len(str(key)) for key in patterns))
            made["patternProperties"] = {
                str(key): self._node(value, depth + 1)
                for key, value in patterns.items()
                if _drafted(value) and len(str(key)) <= self._limits.pattern_chars
            }
        if self._full:
            made.update(self._counts(schema, "minProperties", "maxProperties", self._limits.items))
        return made

    def _array(self, schema: Schema, depth: int) -> dict[str, Any]:
        items, head = schema.get("items"), schema.get("prefixItems")
        if isinstance(items, list):
            items, head = schema.get("additionalItems"), items
        made: dict[str, Any] = {}
        if isinstance(head, list) and len(head) <= self._limits.items and all(map(_drafted, head)):
            made["prefixItems"] = [self._node(item, depth + 1) for item in head]
        if items is False:
            made["items"] = False
        elif isinstance(items, Mapping):
            made["items"] = self._node(items, depth + 1)
        if self._full:
            made.update(self._counts(schema, "minItems", "maxItems", self._limits.items))
        return made

    def _counts(self, schema: Schema, least: str, most: str, largest: int) -> dict[str, int]:
        bounds = {least: _count(schema.get(least), largest), most: _count(schema.get(most), 4 * largest)}
        self._ignored.update((key, None) for key, bound in bounds.items() if bound is None and key in schema)
        return {key: bound for key, bound in bounds.items() if bound is not None}

    def _string(self, schema: Schema) -> dict[str, Any]:
        made: dict[str, Any] = dict(self._counts(schema, "minLength", "maxLength", self._limits.string_chars // 4))
        pattern, layout = schema.get("pattern"), schema.get("format")
        if isinstance(pattern, str) and len(pattern) <= self._limits.pattern_chars:
            self._charge(chars=len(pattern))
            made["pattern"] = pattern
        elif pattern is not None:
            self._ignored["pattern"] = None
        if isinstance(layout, str) and layout in _FORMATS:
            made["format"] = layout
        return made

    def _number(self, schema: Schema) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key in (*_RANGE, "multipleOf"):
            value = schema.get(key)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bounded = abs(value) <= _NUMBER_BOUND  # false for NaN
            if bounded and (key != "multipleOf" or 0.001 <= value <= 1000):
                made[key] = value
            else:
                self._ignored[key] = None
        return made
