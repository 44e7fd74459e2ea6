"""OpenAI's Responses: a request read by hand and turned into chat completions.

The gateway keeps no responses: `background`, and ids of its own answers, are refused by name. What a provider may have
stored (`previous_response_id`, `conversation`, `prompt`, item references), and what has no counterpart in chat
completions, such as built-in tools, needs a large model that speaks Responses itself; a field that is unknown here
goes along as it came. Not carried over where the provider speaks another dialect: reasoning items, which only their
author can read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from policies.types import Request, Tool
from router.dialects.errors import ClientError, wrong
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
from router.dialects.responses_answers import ResponseWriter, amend_response, error_body, response
from router.dialects.small_side_limits import unseen

_STORED = ("previous_response_id", "conversation", "prompt")
_OWN_ID = re.compile(r"(?:resp|msg|fc)_[0-9a-hjkmnp-tv-z]{26}(?:_\d+)?")
"""Of a response that the gateway wrote, or of an item of one; a provider's are longer."""
_TRANSLATED = frozenset(
    """model input instructions tools tool_choice parallel_tool_calls stream stream_options max_output_tokens text
    reasoning store include truncation metadata smallcall max_tool_calls background""".split()
) | frozenset(_STORED)
"""Fields that are translated, concern stored state, or are only told again in the answer. All others go along."""


class Responses:
    """The dialect."""

    name: DialectName = "responses"
    path = "/responses"

    def read(self, raw: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """See `Dialect.read`."""
        return read_request(raw)

    def whole(
        self, chat: ChatRequest, decision_id: str, completion: Mapping[str, Any], extras: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """See `Dialect.whole`."""
        told = response(chat, decision_id, completion)
        return told if extras is None else {**told, "smallcall": extras}

    def amend(self, answer: dict[str, Any]) -> None:
        """See `Dialect.amend`."""
        amend_response(answer)

    def writer(self, chat: ChatRequest, decision_id: str) -> Writer:
        """See `Dialect.writer`."""
        return ResponseWriter(chat, decision_id)

    def error(self, error: ClientError) -> Mapping[str, Any]:
        """See `Dialect.error`."""
        return error_body(error)


def read_request(raw: bytes) -> ChatRequest:
    """Parse and check a body.

    Raises:
        ClientError: 400, naming the field.
    """
    native = decoded(raw)
    model, pin = model_name(native)
    include = included(native.pop("smallcall", None))
    turns = _Turns()
    stored = turns.native_only = _stored(native)
    if native.get("instructions"):
        turns.messages.append({"role": "system", "content": text(native["instructions"], "instructions")})
    if native.get("input") is not None or stored is None:
        _read_input(native.get("input"), turns)
    tools, made, foreign = _tools(native.get("tools"))
    choice, forced, unreadable = _tool_choice(native.get("tool_choice"), tools, foreign)
    native_only = foreign or unreadable or turns.native_only
    body = _body(native, turns.messages, made)
    if native.get("tool_choice") is not None:
        body["tool_choice"] = {"type": "function", "function": {"name": forced}} if forced else choice
    return ChatRequest(
        client_model=model,
        view=Request(
            turns.messages, tuple(tools.values()), choice, forced, flag(native, "parallel_tool_calls", default=True)
        ),
        body=body,
        size_bytes=len(raw),
        stream=flag(native, "stream", default=False),
        include_usage=True,
        include_decision=bool(include),
        include_signals="signals" in include,
        include_explain="explain" in include,
        pin=pin,
        large_only=native_only or turns.large_only or _asks_for_more(native, body) or unseen(turns.messages, "input"),
        native_only=native_only,
        raw=raw,
        native=native,
    )


def _stored(native: Mapping[str, Any]) -> LargeOnlyRequest | None:
    """The first field that refers to what a provider has stored."""
    if native.get("background"):
        raise wrong("background", "the gateway gives no answers later: ask without it")
    for field in _STORED:
        if native.get(field):
            return _kept_elsewhere(native[field], field)
    return None


def _kept_elsewhere(stored_id: Any, path: str) -> LargeOnlyRequest:
    if isinstance(stored_id, str) and _OWN_ID.fullmatch(stored_id):
        raise wrong(path, "this answer was not stored: send the whole conversation in input")
    return LargeOnlyRequest("stored_state", path)


def _read_input(given: Any, turns: _Turns) -> None:
    if isinstance(given, str) and given:
        turns.messages.append({"role": "user", "content": given})
        return
    if not isinstance(given, list) or not given:
        raise wrong("input", "must be text or a list of at least one item")
    for index, item in enumerate(given):
        turns.add(obj(item, f"input[{index}]"), f"input[{index}]")
    turns.end_outputs()
    turns.messages = adjacent(turns.messages)


class _Turns:
    """The conversation as chat messages, built item by item."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.large_only: LargeOnlyRequest | None = None
        self.native_only: LargeOnlyRequest | None = None
        self._shown: list[dict[str, Any]] = []
        """What of the last outputs is not text. The results of parallel calls must stand together, so it follows them
        as the user's."""

    def end_outputs(self) -> None:
        """A run of outputs is over."""
        if self._shown:
            self.messages.append({"role": "user", "content": self._shown})
            self._shown = []

    def add(self, item: Mapping[str, Any], path: str) -> None:
        """One item of the input."""
        kind = item.get("type")
        if kind is None:
            kind = "item_reference" if "id" in item and "role" not in item else "message"
        match kind:
            case "message":
                self._message(item, path)
            case "function_call":
                self._call(item, path)
            case "function_call_output":
                self._output(item, path)
            case "reasoning":
                self.large_only = self.large_only or LargeOnlyRequest("reasoning_unseen", f"{path}.type")
            case "item_reference":
                self.native_only = self.native_only or _kept_elsewhere(item.get("id"), path)
            case other:
                text(other, f"{path}.type")
                self.native_only = self.native_only or LargeOnlyRequest("item_type", f"{path}.type")

    def _message(self, item: Mapping[str, Any], path: str) -> None:
        role, content = item.get("role"), item.get("content")
        if role not in ("user", "assistant", "system", "developer"):
            raise wrong(f"{path}.role", "must be user, assistant, system or developer")
        self.end_outputs()
        if isinstance(content, str):
            self.messages.append({"role": role, "content": content})
            return
        if not isinstance(content, list):
            raise wrong(f"{path}.content", "must be text or a list of parts")
        parts = [
            part
            for index, given in enumerate(content)
            for part in self._part(obj(given, f"{path}.content[{index}]"), f"{path}.content[{index}]")
        ]
        if role == "assistant":
            self.messages.append({"role": role, "content": "".join(part.get("text", "") for part in parts)})
        else:
            self.messages.append({"role": role, "content": parts})

    def _call(self, item: Mapping[str, Any], path: str) -> None:
        function = {
            "name": text(item.get("name"), f"{path}.name"),
            "arguments": text(item.get("arguments"), f"{path}.arguments"),
        }
        call = {"id": text(item.get("call_id"), f"{path}.call_id"), "type": "function", "function": function}
        self.end_outputs()
        last = self.messages[-1] if self.messages else None
        if last is not None and last["role"] == "assistant":
            last.setdefault("tool_calls", []).append(call)
        else:
            self.messages.append({"role": "assistant", "content": None, "tool_calls": [call]})

    def _output(self, item: Mapping[str, Any], path: str) -> None:
        call_id, output = text(item.get("call_id"), f"{path}.call_id"), item.get("output")
        if not isinstance(output, str):
            parts: list[dict[str, Any]] = []
            for index, given in enumerate(listed(output, f"{path}.output")):
                parts += self._part(obj(given, f"{path}.output[{index}]"), f"{path}.output[{index}]")
            output = "\n".join(part["text"] for part in parts if part["type"] == "text")
            self._shown += [part for part in parts if part["type"] != "text"]
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": output})

    def _part(self, part: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
        kind = part.get("type")
        if kind in ("input_text", "output_text"):
            return [{"type": "text", "text": text(part.get("text"), f"{path}.text")}]
        if kind == "refusal":
            return [{"type": "text", "text": text(part.get("refusal"), f"{path}.refusal")}]
        made = _image(part) if kind == "input_image" else _file(part) if kind == "input_file" else None
        if made is None:
            text(kind, f"{path}.type")
            self.native_only = self.native_only or LargeOnlyRequest("content_not_text", f"{path}.type")
            return []
        self.large_only = self.large_only or LargeOnlyRequest("content_not_text", f"{path}.type")
        return [made]


def _image(part: Mapping[str, Any]) -> dict[str, Any] | None:
    if not isinstance(part.get("image_url"), str):
        return None
    detail = {"detail": part["detail"]} if part.get("detail") else {}
    return {"type": "image_url", "image_url": {"url": part["image_url"], **detail}}


def _file(part: Mapping[str, Any]) -> dict[str, Any] | None:
    if not isinstance(part.get("file_data"), str):
        return None
    return {"type": "file", "file": {"filename": part.get("filename") or "file", "file_data": part["file_data"]}}


def _tools(given: Any) -> tuple[dict[str, Tool], list[dict[str, Any]], LargeOnlyRequest | None]:
    """The tools by name, the same as chat completions have them, and the first that only its provider knows."""
    tools: dict[str, Tool] = {}
    made: list[dict[str, Any]] = []
    for index, tool in enumerate(listed_tools(given)):
        path = f"tools[{index}]"
        if tool.get("type") != "function":
            return {}, [], LargeOnlyRequest("tool_type", f"{path}.type")
        read = function(tool.get("name"), tool.get("description"), tool.get("parameters"), path)
        put_tool(tools, read, path)
        told = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
        made.append({"type": "function", "function": told})
    return tools, made, None


def _tool_choice(
    given: Any, tools: Mapping[str, Tool], foreign: LargeOnlyRequest | None
) -> tuple[Any, str | None, LargeOnlyRequest | None]:
    if given is None:
        return "auto", None, None
    if given in ("auto", "none", "required"):
        return given, None, None
    choice = obj(given, "tool_choice")
    if choice.get("type") != "function":
        return "auto", None, LargeOnlyRequest("tool_choice_type", "tool_choice.type")
    name = text(choice.get("name"), "tool_choice.name")
    if foreign is None and name not in tools:
        raise wrong("tool_choice.name", "names a tool that is not offered")
    return "named", name, None


def _body(
    native: Mapping[str, Any], messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": native["model"], "messages": messages}
    if tools:
        body["tools"] = tools
        if native.get("parallel_tool_calls") is not None:
            body["parallel_tool_calls"] = native["parallel_tool_calls"]
    if native.get("max_output_tokens") is not None:
        body["max_completion_tokens"] = native["max_output_tokens"]
    written = native.get("text")
    if isinstance(written, dict):
        wanted = written.get("format")
        if isinstance(wanted, dict) and wanted.get("type") != "text":
            body["response_format"] = _response_format(wanted)
        if written.get("verbosity"):
            body["verbosity"] = written["verbosity"]
    reasoning = native.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort"):
        body["reasoning_effort"] = reasoning["effort"]
    return body | {key: value for key, value in native.items() if key not in _TRANSLATED and value is not None}


def _response_format(wanted: Mapping[str, Any]) -> dict[str, Any]:
    if wanted.get("type") != "json_schema":
        return dict(wanted)
    schema = {key: wanted[key] for key in ("name", "description", "schema", "strict") if wanted.get(key) is not None}
    return {"type": "json_schema", "json_schema": schema}


def _asks_for_more(native: Mapping[str, Any], body: Mapping[str, Any]) -> LargeOnlyRequest | None:
    if "response_format" in body:
        return LargeOnlyRequest("response_format", "text.format")
    included = native.get("include")
    logprobs = isinstance(included, list) and "message.output_text.logprobs" in included
    if native.get("top_logprobs") or logprobs:
        return LargeOnlyRequest("logprobs", "top_logprobs" if native.get("top_logprobs") else "include")
    return None
