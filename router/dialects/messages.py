"""Anthropic's Messages: a request read by hand and turned into chat completions.

Only what the gateway must understand is checked. A field that is unknown here goes along as it came. What cannot be
said in chat completions at all, such as a provider's own tools, needs a large model that speaks Messages itself. Not
carried over where the provider speaks another dialect: how Anthropic's own models think, sample and are served;
thinking blocks of earlier turns, which only their author can read; and the flag `is_error`, which becomes the word
"Error" before the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from policies.types import Request, Tool
from router.dialects.errors import ClientError, wrong
from router.dialects.messages_answers import MessageWriter, amend_message, error_body, message
from router.dialects.parsing import (
    decoded,
    flag,
    function,
    included,
    listed,
    listed_tools,
    model_name,
    obj,
    put_tool,
    text,
)
from router.dialects.provider.adjacency import adjacent
from router.dialects.request import ChatRequest, DialectName, LargeOnlyRequest, Writer
from router.dialects.small_side_limits import unseen

_NATIVE_FIELDS = ("mcp_servers", "container", "context_management")
_ANTHROPICS = ("thinking", "top_k", "service_tier", "cache_control", "inference_geo", "speed")
"""Fields that other providers do not know, or know otherwise, and without which an answer is still one."""
_DROPPED = frozenset(
    """model messages system tools tool_choice stop_sequences metadata output_format output_config stream max_tokens
    smallcall betas""".split()
) | frozenset((*_NATIVE_FIELDS, *_ANTHROPICS))
"""Fields that are translated, left out, or ours. All others go along as they came."""
_HEADERS = ("anthropic-version", "anthropic-beta")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Messages:
    """The dialect."""

    name: DialectName = "messages"
    path = "/messages"

    def read(self, raw: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """See `Dialect.read`."""
        return read_request(raw, headers)

    def whole(
        self, chat: ChatRequest, decision_id: str, completion: Mapping[str, Any], extras: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """See `Dialect.whole`."""
        told = message(chat, decision_id, completion)
        return told if extras is None else {**told, "smallcall": extras}

    def amend(self, answer: dict[str, Any]) -> None:
        """See `Dialect.amend`."""
        amend_message(answer)

    def writer(self, chat: ChatRequest, decision_id: str) -> Writer:
        """See `Dialect.writer`."""
        return MessageWriter(chat, decision_id)

    def error(self, error: ClientError) -> Mapping[str, Any]:
        """See `Dialect.error`."""
        return error_body(error)


def read_request(raw: bytes, headers: Mapping[str, str], *, counting: bool = False) -> ChatRequest:
    """Parse and check a body; `counting`: one that is only to be counted, and so has no `max_tokens`.

    Raises:
        ClientError: 400, naming the field.
    """
    native = decoded(raw)
    model, pin = model_name(native)
    include = included(native.pop("smallcall", None))
    limit = native.get("max_tokens")
    if not counting and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise wrong("max_tokens", "must be a whole number of at least 1")
    turns = _Turns()
    turns.system(native.get("system"))
    given = native.get("messages")
    if not isinstance(given, list) or not given:
        raise wrong("messages", "must be a list of at least one message")
    for index, turn in enumerate(given):
        turns.add(obj(turn, f"messages[{index}]"), f"messages[{index}]")
    turns.messages = adjacent(turns.messages)
    tools, made, foreign = _tools(native.get("tools"))
    choice, forced, parallel, unreadable = _tool_choice(native.get("tool_choice"), tools, foreign)
    native_only = foreign or unreadable or turns.native_only or _native_field(native)
    body = _body(native, turns.messages, made)
    if native.get("tool_choice") is not None:
        body["tool_choice"] = {"type": "function", "function": {"name": forced}} if forced else choice
    if not parallel:
        body["parallel_tool_calls"] = False
    return ChatRequest(
        client_model=model,
        view=Request(turns.messages, tuple(tools.values()), choice, forced, parallel),
        body=body,
        size_bytes=len(raw),
        stream=flag(native, "stream", default=False),
        include_usage=True,
        include_decision=bool(include),
        include_signals="signals" in include,
        include_explain="explain" in include,
        pin=pin,
        large_only=native_only
        or turns.large_only
        or _asks_for_more(native, body)
        or unseen(turns.messages, "messages"),
        native_only=native_only,
        raw=raw,
        native=native,
        headers={name: headers[name] for name in _HEADERS if name in headers},
    )


class _Turns:
    """The conversation as chat messages, built turn by turn."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.large_only: LargeOnlyRequest | None = None
        self.native_only: LargeOnlyRequest | None = None

    def system(self, given: Any) -> None:
        """The field `system`: text, or text blocks."""
        if given is None:
            return
        if isinstance(given, str):
            if given:
                self.messages.append({"role": "system", "content": given})
            return
        parts = [
            self._text(obj(block, f"system[{index}]"), f"system[{index}]")
            for index, block in enumerate(listed(given, "system"))
        ]
        if parts:
            self.messages.append({"role": "system", "content": parts})

    def add(self, turn: Mapping[str, Any], path: str) -> None:
        """One message. Results of tools become messages of their own, before what else the user says."""
        role, content = turn.get("role"), turn.get("content")
        if role not in ("user", "assistant", "system"):
            raise wrong(f"{path}.role", "must be user, assistant or system")
        if isinstance(content, str):
            self.messages.append({"role": role, "content": content})
            return
        if not isinstance(content, list):
            raise wrong(f"{path}.content", "must be text or a list of blocks")
        parts: list[dict[str, Any]] = []
        calls: list[dict[str, Any]] = []
        for index, given in enumerate(content):
            where = f"{path}.content[{index}]"
            block = obj(given, where)
            if block.get("type") == "tool_use" and role == "assistant":
                calls.append(_call(block, where))
            elif block.get("type") == "tool_result" and role == "user":
                parts += self._result(block, where)
            else:
                parts += self._part(block, where)
        if calls:
            self.messages.append({"role": role, "content": _joined(parts), "tool_calls": calls})
        elif parts:
            self.messages.append({"role": role, "content": _joined(parts) if role == "assistant" else parts})

    def _result(self, block: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
        """A tool's result as a message; what of it is not text is given back, for the user's message."""
        call_id = text(block.get("tool_use_id"), f"{path}.tool_use_id")
        content = block.get("content")
        failed = flag(block, "is_error", default=False, path=f"{path}.is_error")
        if content is None or isinstance(content, str):
            texts, others = [content or ""], []
        else:
            parts: list[dict[str, Any]] = []
            for index, inner in enumerate(listed(content, f"{path}.content")):
                where = f"{path}.content[{index}]"
                parts += self._part(obj(inner, where), where)
            texts = [part["text"] for part in parts if part["type"] == "text"]
            others = [part for part in parts if part["type"] != "text"]
        said = "\n".join(texts)
        if failed and not said.lower().startswith("error"):
            said = f"Error: {said}"
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": said})
        return others

    def _part(self, block: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
        kind = block.get("type")
        if kind == "text":
            return [self._text(block, path)]
        if kind in ("thinking", "redacted_thinking"):
            self.large_only = self.large_only or LargeOnlyRequest("reasoning_unseen", f"{path}.type")
            return []
        plain = _plain_document(block) if kind == "document" else None
        if plain is not None:
            return [{"type": "text", "text": plain}]
        part = _image(block) if kind == "image" else _document(block) if kind == "document" else None
        if part is None:
            text(kind, f"{path}.type")
            self.native_only = self.native_only or LargeOnlyRequest("content_not_text", f"{path}.type")
            return []
        self.large_only = self.large_only or LargeOnlyRequest("content_not_text", f"{path}.type")
        return [part]

    def _text(self, block: Mapping[str, Any], path: str) -> dict[str, Any]:
        part: dict[str, Any] = {"type": "text", "text": text(block.get("text"), f"{path}.text")}
        if block.get("cache_control"):
            part["cache_control"] = block["cache_control"]
        return part


def _call(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    name = text(block.get("name"), f"{path}.name")
    call_id = text(block.get("id"), f"{path}.id")
    arguments = orjson.dumps(obj(block.get("input"), f"{path}.input")).decode()
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _joined(parts: Sequence[Mapping[str, Any]]) -> str | None:
    return "".join(part["text"] for part in parts if part["type"] == "text") or None


def _image(block: Mapping[str, Any]) -> dict[str, Any] | None:
    source = block.get("source")
    if not isinstance(source, dict):
        return None
    if source.get("type") == "base64":
        return {
            "type": "image_url",
            "image_url": {"url": f"data:{source.get('media_type')};base64,{source.get('data')}"},
        }
    if source.get("type") == "url":
        return {"type": "image_url", "image_url": {"url": source.get("url")}}
    return None


def _plain_document(block: Mapping[str, Any]) -> str | None:
    source = block.get("source")
    data = source.get("data") if isinstance(source, dict) and source.get("type") == "text" else None
    return data if isinstance(data, str) else None


def _document(block: Mapping[str, Any]) -> dict[str, Any] | None:
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") != "base64":
        return None
    data = f"data:{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "file", "file": {"filename": block.get("title") or "document.pdf", "file_data": data}}


def _tools(given: Any) -> tuple[dict[str, Tool], list[dict[str, Any]], LargeOnlyRequest | None]:
    """The tools by name, the same as chat completions have them, and the first that only its provider knows."""
    tools: dict[str, Tool] = {}
    made: list[dict[str, Any]] = []
    for index, tool in enumerate(listed_tools(given)):
        path = f"tools[{index}]"
        if tool.get("type") not in (None, "custom"):
            return {}, [], LargeOnlyRequest("tool_type", f"{path}.type")
        read = function(tool.get("name"), tool.get("description"), tool.get("input_schema"), path, "input_schema")
        put_tool(tools, read, path)
        told = {"name": read.name, "description": read.description, "parameters": tool.get("input_schema") or {}}
        if tool.get("strict") is not None:
            told["strict"] = tool["strict"]
        one: dict[str, Any] = {"type": "function", "function": told}
        if tool.get("cache_control"):
            one["cache_control"] = tool["cache_control"]
        made.append(one)
    return tools, made, None


def _tool_choice(
    given: Any, tools: Mapping[str, Tool], foreign: LargeOnlyRequest | None
) -> tuple[Any, str | None, bool, LargeOnlyRequest | None]:
    """The choice in chat completions' words, the one tool that must be called, whether several calls may be made, and
    why it cannot be read."""
    if given is None:
        return "auto", None, True, None
    choice = obj(given, "tool_choice")
    parallel = not flag(
        choice, "disable_parallel_tool_use", default=False, path="tool_choice.disable_parallel_tool_use"
    )
    kind = text(choice.get("type"), "tool_choice.type")
    if kind in _CHOICES:
        return _CHOICES[kind], None, parallel, None
    if kind != "tool":
        return "auto", None, parallel, LargeOnlyRequest("tool_choice_type", "tool_choice.type")
    name = text(choice.get("name"), "tool_choice.name")
    if foreign is None and name not in tools:
        raise wrong("tool_choice.name", "names a tool that is not offered")
    return "named", name, parallel, None


def _native_field(native: Mapping[str, Any]) -> LargeOnlyRequest | None:
    for field in _NATIVE_FIELDS:
        if native.get(field):
            return LargeOnlyRequest(field, field)
    return None


def _body(
    native: Mapping[str, Any], messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": native["model"], "messages": messages}
    if tools:
        body["tools"] = tools
    if native.get("max_tokens") is not None:
        body["max_tokens"] = native["max_tokens"]
    if native.get("stop_sequences"):
        body["stop"] = native["stop_sequences"]
    metadata = native.get("metadata")
    if isinstance(metadata, dict) and metadata.get("user_id"):
        body["user"] = metadata["user_id"]
    schema = _schema(native)
    if schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        }
    if isinstance(native.get("output_config"), dict) and native["output_config"].get("effort"):
        body["reasoning_effort"] = native["output_config"]["effort"]
    return body | {key: value for key, value in native.items() if key not in _DROPPED}


def _schema(native: Mapping[str, Any]) -> Any:
    """The JSON Schema that the answer must keep to, if there is one."""
    config = native.get("output_config")
    wanted = native.get("output_format") or (config.get("format") if isinstance(config, dict) else None)
    return wanted.get("schema") if isinstance(wanted, dict) and wanted.get("type") == "json_schema" else None


def _thinking(native: Mapping[str, Any]) -> str | None:
    thinking = native.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    return None if kind == "disabled" else kind


def _asks_for_more(native: Mapping[str, Any], body: Mapping[str, Any]) -> LargeOnlyRequest | None:
    if "response_format" in body:
        return LargeOnlyRequest(
            "response_format", "output_format" if native.get("output_format") else "output_config.format"
        )
    # With thinking on, the provider wants its own thinking before every call of the turn: a small call has none.
    return LargeOnlyRequest("thinking", "thinking") if _thinking(native) else None
