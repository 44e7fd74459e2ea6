"""What all dialects read alike: strict and bounded JSON, our extension, and fields checked by hand.

The JSON is strict (RFC 8259): NaN, infinities and invalid UTF-8 are refused. A key that stands twice in one object
takes its last value; an integer beyond 64 bits becomes the nearest double.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from policies.types import Tool
from router.dialects.errors import wrong
from router.dialects.request import Pin

MAX_DEPTH = 200
"""Nesting levels of a body. The JSON reader itself stops at 1,024."""
MAX_CONTAINERS = 500_000
"""Opening brackets in a body, those in its texts included: decoded, empty objects take twenty times their bytes."""
MAX_TOOLS = 4096
MAX_CHOICES = 128
"""Answers to one request."""
MAX_NAME_CHARS = 256
PINS: Mapping[str, Pin] = {"smallcall/small": "small", "smallcall/large": "large"}
"""Names by which a client asks for one side; any other is the client's own."""
_INCLUDES = frozenset({"decision", "explain", "signals"})


def decoded(raw: bytes) -> dict[str, Any]:
    """The object in a body. Raises ClientError."""
    containers = raw.count(b"{") + raw.count(b"[")
    if containers > MAX_CONTAINERS:
        raise wrong(None, f"the body holds more than {MAX_CONTAINERS} objects and arrays")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise wrong(None, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(body, dict):
        raise wrong(None, "the body must be a JSON object")
    if containers <= MAX_DEPTH:
        return body
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer) if type(inner) in (dict, list)]
        if not level:
            return body
    raise wrong(None, f"the body is nested deeper than {MAX_DEPTH}")


def _inside(outer: Any) -> Any:
    return outer.values() if type(outer) is dict else outer


def model_name(body: Mapping[str, Any]) -> tuple[str, Pin | None]:
    """The model that the client names, and the side that this pins. Raises ClientError."""
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_NAME_CHARS:
        raise wrong("model", f"must be a name of 1 to {MAX_NAME_CHARS} characters")
    return model, PINS.get(model)


def included(extension: Any) -> frozenset[str]:
    """What the `smallcall` object of a body asks for. Raises ClientError."""
    if extension is None:
        return frozenset()
    if not isinstance(extension, dict) or not extension.keys() <= {"include"}:
        raise wrong("smallcall", "must be an object with the key include")
    include = extension.get("include", [])
    if not isinstance(include, list) or not all(isinstance(name, str) and name in _INCLUDES for name in include):
        raise wrong("smallcall.include", f"must be a list of {', '.join(sorted(_INCLUDES))}")
    return frozenset(include)


def flag(body: Mapping[str, Any], field: str, *, default: bool, path: str = "") -> bool:
    """A boolean field; null counts as missing. Raises ClientError."""
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(path or field, "must be true or false")
    return value


def listed(value: Any, path: str) -> Sequence[Any]:
    """A list; null counts as empty. Raises ClientError."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong(path, "must be a list")
    return value


def listed_tools(value: Any) -> Sequence[Any]:
    """The offered tools, each an object. Raises ClientError."""
    tools = listed(value, "tools")
    if len(tools) > MAX_TOOLS:
        raise wrong("tools", f"at most {MAX_TOOLS} tools can be offered")
    for index, tool in enumerate(tools):
        obj(tool, f"tools[{index}]")
    return tools


def obj(value: Any, path: str) -> dict[str, Any]:
    """An object. Raises ClientError."""
    if not isinstance(value, dict):
        raise wrong(path, "must be an object")
    return value


def text(value: Any, path: str) -> str:
    """A text. Raises ClientError."""
    if not isinstance(value, str):
        raise wrong(path, "must be text")
    return value


def function(name: Any, description: Any, parameters: Any, path: str, schema_field: str = "parameters") -> Tool:
    """One tool that can be called by name. Raises ClientError."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        raise wrong(f"{path}.name", f"must be a name of 1 to {MAX_NAME_CHARS} characters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong(f"{path}.{schema_field}", "must be a JSON Schema object")
    if description is not None and not isinstance(description, str):
        raise wrong(f"{path}.description", "must be text")
    return Tool(name, description or "", parameters or {})


def put_tool(tools: dict[str, Tool], tool: Tool, path: str) -> None:
    """Add a tool to those read so far. Raises ClientError where another has its name."""
    if tool.name in tools:
        raise wrong(f"{path}.name", "another tool has the same name")
    tools[tool.name] = tool
