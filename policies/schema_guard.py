"""Bounds on a hostile JSON Schema, checked before any compiler sees it.

Iterative: a schema of any depth costs time and memory in proportion to what is read until a bound is met. A schema that
passes refers to nothing outside itself; that its keywords make sense is for the compiler to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class SchemaBounds:
    """Limits of a tool's schema, all inclusive."""

    depth: int = 64
    nodes: int = 20_000
    """Objects, arrays and scalars together."""
    characters: int = 256_000
    """Keys and strings together."""
    pattern_characters: int = 1_000


DEFAULT_BOUNDS = SchemaBounds()


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why a schema cannot be judged here. `path` is a JSON pointer into the schema."""

    path: str
    message: str


def inspect(schema: Any, bounds: SchemaBounds = DEFAULT_BOUNDS) -> Unsupported | None:
    """The first bound that `schema` breaks, or None."""
    nodes = characters = 0
    stack: list[tuple[Any, str, int]] = [(schema, "", 0)]
    while stack:
        node, path, depth = stack.pop()
        nodes += 1
        if depth > bounds.depth:
            return Unsupported(_shown(path), f"nested deeper than {bounds.depth}")
        if isinstance(node, str):
            characters += len(node)
        elif isinstance(node, Mapping):
            found = _keywords(node, path, bounds)
            if found is not None:
                return found
            characters += sum(len(key) for key in node)
            stack += [(value, f"{path}/{key[:64]}", depth + 1) for key, value in node.items()]
        elif isinstance(node, list):
            stack += [(value, f"{path}/{index}", depth + 1) for index, value in enumerate(node)]
        if nodes + len(stack) > bounds.nodes:
            return Unsupported("", f"more than {bounds.nodes} values")
        if characters > bounds.characters:
            return Unsupported("", f"more than {bounds.characters} characters")
    return None


def _keywords(node: Mapping[str, Any], path: str, bounds: SchemaBounds) -> Unsupported | None:
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        reference = node.get(keyword)
        if isinstance(reference, str) and not reference.startswith("#"):
            return Unsupported(_shown(path), f"{keyword} leaves the document")
    pattern = node.get("pattern")
    if isinstance(pattern, str) and len(pattern) > bounds.pattern_characters:
        return Unsupported(_shown(path), f"a pattern over {bounds.pattern_characters} characters")
    return None


def _shown(path: str) -> str:
    return path if len(path) <= 200 else path[:200] + "…"
