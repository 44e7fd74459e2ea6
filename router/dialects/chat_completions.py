"""OpenAI's chat completions: a request read by hand.

Only what the gateway must understand is checked; every other field goes to the large model as it came. The JSON is
strict (RFC 8259): NaN, infinities and invalid UTF-8 are refused. A key that stands twice in one object takes its last
value, and that is also what goes upstream, so nobody downstream can read the body in another way; an integer beyond 64
bits becomes the nearest double.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from policies.policy import Request, Tool
from router.dialects.chat import ChatRequest, LargeOnly, Pin
from router.dialects.errors import wrong

DIALECT = "chat_completions"
MAX_DEPTH = 200
"""Nesting levels of a body. The JSON reader itself stops at 1,024."""
MAX_CONTAINERS = 500_000
"""Opening brackets in a body, those in its texts included: decoded, empty objects take twenty times their bytes."""
MAX_TOOLS = 4096
MAX_NAME_CHARS = 256
_PINS: Mapping[str, Pin] = {"smallcall/small": "small", "smallcall/large": "large"}
_INCLUDES = frozenset({"decision", "signals"})
_LARGE_ONLY = {
    "functions": "legacy_functions",
    "function_call": "legacy_functions",
    "audio": "audio",
    "logprobs": "logprobs",
    "top_logprobs": "logprobs",
    "web_search_options": "web_search",
}
"""Fields that, where they say anything, ask for what the small model does not do."""
_READABLE_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

ToolChoice = Literal["auto", "none", "required", "named"]


def read_request(raw: bytes) -> ChatRequest:
    """Parse and check a body.

    Raises:
        ClientError: 400, naming the field.
    """
    body = _decoded(raw)
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_NAME_CHARS:
        raise wrong("model", f"must be a name of 1 to {MAX_NAME_CHARS} characters")
    include = _include(body.pop("smallcall", None))
    messages = _messages(body.get("messages"))
    tools, unreadable_tool = _tools(body.get("tools"))
    choice, forced, unreadable_choice = _tool_choice(body.get("tool_choice"), tools, unreadable_tool)
    return ChatRequest(
        client_model=model,
        view=Request(messages, tools, choice, forced, _flag(body, "parallel_tool_calls", default=True)),
        body=body,
        size_bytes=len(raw),
        stream=_flag(body, "stream", default=False),
        include_usage=_include_usage(body.get("stream_options")),
        include_decision=bool(include),
        include_signals="signals" in include,
        pin=_PINS.get(model),
        large_only=unreadable_tool or unreadable_choice or _asks_for_more(body) or _unreadable_message(messages),
    )


def _decoded(raw: bytes) -> dict[str, Any]:
    if raw.count(b"{") + raw.count(b"[") > MAX_CONTAINERS:
        raise wrong(None, f"the body holds more than {MAX_CONTAINERS} objects and arrays")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise wrong(None, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(body, dict):
        raise wrong(None, "the body must be a JSON object")
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer) if type(inner) in (dict, list)]
        if not level:
            return body
    raise wrong(None, f"the body is nested deeper than {MAX_DEPTH}")


def _inside(outer: Any) -> Any:
    return outer.values() if type(outer) is dict else outer


def _include(extension: Any) -> frozenset[str]:
    if extension is None:
        return frozenset()
    if not isinstance(extension, dict) or not extension.keys() <= {"include"}:
        raise wrong("smallcall", "must be an object with the key include")
    include = extension.get("include", [])
    if not isinstance(include, list) or not all(isinstance(name, str) and name in _INCLUDES for name in include):
        raise wrong("smallcall.include", f"must be a list of {', '.join(sorted(_INCLUDES))}")
    return frozenset(include)


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "must be a list of at least one message")
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise wrong(f"{path}.role", "every message is an object with a role")
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise wrong(f"{path}.content", "must be text or a list of parts")
        for number, call in enumerate(_list(message.get("tool_calls"), f"{path}.tool_calls")):
            _past_call(call, f"{path}.tool_calls[{number}]")
    return messages


def _past_call(call: Any, path: str) -> None:
    if not isinstance(call, dict):
        raise wrong(path, "must be an object")
    if call.get("type", "function") != "function":
        return
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(f"{path}.function.name", "must be text")
    if not isinstance(function.get("arguments", ""), str):
        raise wrong(f"{path}.function.arguments", "must be JSON as text")


def _list(value: Any, path: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise wrong(path, "must be a list")
    return value


def _tools(raw: Any) -> tuple[tuple[Tool, ...], LargeOnly | None]:
    listed = _list(raw, "tools")
    if len(listed) > MAX_TOOLS:
        raise wrong("tools", f"at most {MAX_TOOLS} tools can be offered")
    tools: dict[str, Tool] = {}
    for index, tool in enumerate(listed):
        path = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise wrong(path, "must be an object")
        if tool.get("type") != "function":
            return (), LargeOnly("tool_type", f"{path}.type")
        made = _function(tool.get("function"), f"{path}.function")
        if made.name in tools:
            raise wrong(f"{path}.function.name", "another tool has the same name")
        tools[made.name] = made
    return tuple(tools.values()), None


def _function(function: Any, path: str) -> Tool:
    if not isinstance(function, dict):
        raise wrong(path, "must be an object")
    name, parameters, description = (function.get(key) for key in ("name", "parameters", "description"))
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        raise wrong(f"{path}.name", f"must be a name of 1 to {MAX_NAME_CHARS} characters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong(f"{path}.parameters", "must be a JSON Schema object")
    if description is not None and not isinstance(description, str):
        raise wrong(f"{path}.description", "must be text")
    return Tool(name, description or "", parameters or {})


def _tool_choice(
    choice: Any, tools: Sequence[Tool], unreadable: LargeOnly | None
) -> tuple[ToolChoice, str | None, LargeOnly | None]:
    if choice is None:
        return "auto", None, None
    if choice in ("auto", "none", "required"):
        return choice, None, None
    if not isinstance(choice, dict):
        raise wrong("tool_choice", "must be auto, none, required, or an object that names a function")
    if choice.get("type", "function") != "function":
        return "auto", None, LargeOnly("tool_choice_type", "tool_choice.type")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise wrong("tool_choice.function.name", "must be text")
    if unreadable is None and all(tool.name != name for tool in tools):
        raise wrong("tool_choice.function.name", "names a tool that is not offered")
    return "named", name, None


def _flag(body: Mapping[str, Any], field: str, *, default: bool) -> bool:
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise wrong(field, "must be true or false")
    return value


def _include_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong("stream_options", "must be an object")
    return _flag(options, "include_usage", default=False)


def _asks_for_more(body: Mapping[str, Any]) -> LargeOnly | None:
    for field, reason in _LARGE_ONLY.items():
        if body.get(field):
            return LargeOnly(reason, field)
    if body.get("n") not in (None, 1):
        return LargeOnly("several_choices", "n")
    if body.get("modalities") not in (None, ["text"]):
        return LargeOnly("modalities", "modalities")
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        return LargeOnly("response_format", "response_format")
    return None


def _unreadable_message(messages: Sequence[Mapping[str, Any]]) -> LargeOnly | None:
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message["role"] not in _READABLE_ROLES:
            return LargeOnly("message_role", f"{path}.role")
        if message.get("function_call"):
            return LargeOnly("legacy_functions", f"{path}.function_call")
        if any(call.get("type", "function") != "function" for call in message.get("tool_calls") or ()):
            return LargeOnly("tool_type", f"{path}.tool_calls")
        if any(not _is_text(part) for part in _parts(message.get("content"))):
            return LargeOnly("content_not_text", f"{path}.content")
    return None


def _parts(content: Any) -> Sequence[Any]:
    return content if isinstance(content, list) else ()


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
