"""OpenAI's chat completions: reading a request by hand, writing answers whole and streamed.

Only what the gateway must understand is checked; every other field goes to the large model as it came. A key that
stands twice in one object of the body takes its last value, as in every common JSON reader.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Literal

import orjson

from policies.policy import DraftCall, Request, Tool
from router.dialects.chat import ChatRequest, ClientError, Pin

DIALECT = "chat_completions"
MAX_DEPTH = 200
MAX_TOOLS = 4096
_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
_PINS: dict[str, Pin] = {"smallcall/small": "small", "smallcall/large": "large"}
_LARGE_ONLY = {
    "functions": "legacy_functions",
    "function_call": "legacy_functions",
    "audio": "audio",
    "logprobs": "logprobs",
}


def read_request(raw: bytes) -> ChatRequest:
    """Parse and check a body.

    Raises:
        ClientError: 400, naming the field.
    """
    body = _decode(raw)
    model = body.get("model")
    if not isinstance(model, str) or not model or len(model) > 256:
        raise _wrong("model", "a model name is required")
    include = _include(body.pop("smallcall", None))
    messages = _messages(body)
    tools, reason = _tools(body)
    choice, forced = _tool_choice(body, tools)
    stream = _flag(body, "stream", default=False)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _wrong("stream_options", "must be an object")
    view = Request(
        messages=messages,
        tools=tools,
        tool_choice=choice,
        forced_tool=forced,
        parallel_tool_calls=_flag(body, "parallel_tool_calls", default=True),
    )
    return ChatRequest(
        client_model=model,
        view=view,
        body=body,
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        include_decision=bool(include),
        include_signals="signals" in include,
        pin=_PINS.get(model),
        large_reason=reason or _large_only(body, messages),
    )


def _decode(raw: bytes) -> dict[str, Any]:
    if _too_deep(raw):
        raise _wrong(None, f"the body is nested deeper than {MAX_DEPTH}")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _wrong(None, f"the body is not JSON: {error.msg} at character {error.pos}") from error
    if not isinstance(body, dict):
        raise _wrong(None, "the body must be a JSON object")
    return body


def _too_deep(raw: bytes) -> bool:
    depth = 0
    for piece in re.findall(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', raw):
        if piece in (b"[", b"{"):
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif piece in (b"]", b"}"):
            depth -= 1
    return False


def _include(extension: Any) -> list[str]:
    if extension is None:
        return []
    include = extension.get("include") if isinstance(extension, dict) else None
    if not isinstance(include, list) or not set(map(str, include)) <= {"decision", "signals"}:
        raise _wrong("smallcall.include", "must be a list of decision, signals")
    return include


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _wrong(f"messages[{index}].role", "every message is an object with a role")
        calls = message.get("tool_calls")
        if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
            raise _wrong(f"messages[{index}].tool_calls", "must be a list of objects")
    return messages


def _tools(body: dict[str, Any]) -> tuple[tuple[Tool, ...], str | None]:
    raw = body.get("tools")
    if raw is None:
        return (), None
    if not isinstance(raw, list) or len(raw) > MAX_TOOLS:
        raise _wrong("tools", f"must be a list of at most {MAX_TOOLS} tools")
    tools: list[Tool] = []
    for index, tool in enumerate(raw):
        if not isinstance(tool, dict):
            raise _wrong(f"tools[{index}]", "must be an object")
        if tool.get("type") != "function":
            return (), "tool_type"
        tools.append(_function(tool.get("function"), f"tools[{index}].function"))
    if len({tool.name for tool in tools}) != len(tools):
        raise _wrong("tools", "two tools have the same name")
    return tuple(tools), None


def _function(function: Any, path: str) -> Tool:
    if not isinstance(function, dict):
        raise _wrong(path, "must be an object")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.match(name):
        raise _wrong(f"{path}.name", "must be 1 to 64 letters, digits, underscores or dashes")
    if parameters is not None and not isinstance(parameters, dict):
        raise _wrong(f"{path}.parameters", "must be a JSON Schema object")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise _wrong(f"{path}.description", "must be text")
    return Tool(name, description or "", parameters or {})


def _tool_choice(
    body: dict[str, Any], tools: tuple[Tool, ...]
) -> tuple[Literal["auto", "none", "required", "named"], str | None]:
    choice = body.get("tool_choice")
    if choice is None or choice == "auto":
        return "auto", None
    if choice == "none":
        return "none", None
    if choice == "required":
        return "required", None
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        name = choice["function"].get("name")
        if tools and name not in {tool.name for tool in tools}:
            raise _wrong("tool_choice.function.name", "names a tool that is not offered")
        return "named", name
    raise _wrong("tool_choice", "must be auto, none, required or a named function")


def _flag(body: dict[str, Any], field: str, *, default: bool) -> bool:
    value = body.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _wrong(field, "must be true or false")
    return value


def _large_only(body: dict[str, Any], messages: list[dict[str, Any]]) -> str | None:
    for field, reason in _LARGE_ONLY.items():
        if body.get(field):
            return reason
    if body.get("n") not in (None, 1):
        return "several_choices"
    response_format = body.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") not in (None, "text"):
        return "response_format"
    for message in messages:
        content = message.get("content")
        if message["role"] not in ("system", "developer", "user", "assistant", "tool"):
            return "message_role"
        if isinstance(content, list) and any(not isinstance(p, dict) or p.get("type") != "text" for p in content):
            return "content_not_text"
    return None


def _wrong(param: str | None, message: str) -> ClientError:
    return ClientError(400, f"{param}: {message}" if param else message, "invalid_request", param=param)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def small_message(decision_id: str, calls: tuple[DraftCall, ...]) -> dict[str, Any]:
    """The assistant message of a served draft; without calls its content is empty."""
    if not calls:
        return {"role": "assistant", "content": ""}
    made = [
        {
            "id": f"call_{decision_id}_{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for index, call in enumerate(calls)
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def small_completion(
    decision_id: str, model: str, calls: tuple[DraftCall, ...], usage: dict[str, int]
) -> dict[str, Any]:
    """A whole answer of the small side."""
    choice = {
        "index": 0,
        "message": small_message(decision_id, calls),
        "finish_reason": "tool_calls" if calls else "stop",
        "logprobs": None,
    }
    head = {"id": f"chatcmpl-{decision_id}", "object": "chat.completion", "created": int(time.time()), "model": model}
    return {**head, "choices": [choice], "usage": usage}


def chunks_of(completion: dict[str, Any], *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """A whole small answer as the chunks of a stream: role, each call, the end, and usage where asked for."""
    head = {**{key: completion[key] for key in ("id", "created", "model")}, "object": "chat.completion.chunk"}
    choice = completion["choices"][0]
    message = choice["message"]
    yield {**head, "choices": [_delta({"role": "assistant", "content": message["content"]})]}
    for index, call in enumerate(message.get("tool_calls", ())):
        yield {**head, "choices": [_delta({"tool_calls": [{"index": index, **call}]})]}
    last = {**head, "choices": [_delta({}, choice["finish_reason"])]}
    if "smallcall" in completion:
        last["smallcall"] = completion["smallcall"]
    yield last
    if include_usage:
        yield {**head, "choices": [], "usage": completion["usage"]}


def _delta(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}


def sse(chunk: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


DONE = b"data: [DONE]\n\n"
