"""OpenAI's chat completions: a request read by hand.

Only what the gateway must understand is checked; every other field goes to the large model as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from policies.types import Request, Tool
from router.dialects.chat_completions_answers import ChunkWriter, amend_completion
from router.dialects.errors import ClientError, wrong
from router.dialects.parsing import (
    MAX_CHOICES,
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


class ChatCompletions:
    """The dialect."""

    name: DialectName = "chat_completions"
    path = "/chat/completions"

    def read(self, raw: bytes, headers: Mapping[str, str]) -> ChatRequest:
        """See `Dialect.read`."""
        return read_request(raw)

    def whole(
        self, chat: ChatRequest, decision_id: str, completion: Mapping[str, Any], extras: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """See `Dialect.whole`."""
        amend_completion(completion)
        told = {**completion, "model": chat.client_model}
        return told if extras is None else {**told, "smallcall": extras}

    def amend(self, answer: dict[str, Any]) -> None:
        """See `Dialect.amend`."""
        amend_completion(answer)

    def writer(self, chat: ChatRequest, decision_id: str) -> Writer:
        """See `Dialect.writer`."""
        return ChunkWriter(chat)

    def error(self, error: ClientError) -> Mapping[str, Any]:
        """See `Dialect.error`."""
        return error.body()


def read_request(raw: bytes) -> ChatRequest:
    """Parse and check a body.

    Raises:
        ClientError: 400, naming the field.
    """
    body = decoded(raw)
    model, pin = model_name(body)
    include = included(body.pop("smallcall", None))
    messages = _messages(body.get("messages"))
    turns = adjacent(messages)
    tools, unreadable_tool = _tools(body.get("tools"))
    choice, forced, unreadable_choice = _tool_choice(body.get("tool_choice"), tools, unreadable_tool)
    return ChatRequest(
        client_model=model,
        view=Request(turns, tools, choice, forced, flag(body, "parallel_tool_calls", default=True)),
        body=body if turns is messages else {**body, "messages": turns},
        size_bytes=len(raw),
        stream=flag(body, "stream", default=False),
        include_usage=_include_usage(body.get("stream_options")),
        include_decision=bool(include),
        include_signals="signals" in include,
        include_explain="explain" in include,
        pin=pin,
        large_only=unreadable_tool
        or unreadable_choice
        or _asks_for_more(body)
        or _unreadable_message(messages)
        or unseen(turns),
        raw=raw,
        native=body,
    )


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
        if message.get("tool_call_id") is not None:
            text(message["tool_call_id"], f"{path}.tool_call_id")
        for number, call in enumerate(listed(message.get("tool_calls"), f"{path}.tool_calls")):
            _past_call(call, f"{path}.tool_calls[{number}]")
    return messages


def _past_call(call: Any, path: str) -> None:
    if not isinstance(call, dict):
        raise wrong(path, "must be an object")
    if call.get("id") is not None:
        text(call["id"], f"{path}.id")
    if call.get("type", "function") != "function":
        return
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise wrong(f"{path}.function.name", "must be text")
    if not isinstance(function.get("arguments", ""), str):
        raise wrong(f"{path}.function.arguments", "must be JSON as text")


def _tools(raw: Any) -> tuple[tuple[Tool, ...], LargeOnlyRequest | None]:
    tools: dict[str, Tool] = {}
    for index, tool in enumerate(listed_tools(raw)):
        if tool.get("type") != "function":
            return (), LargeOnlyRequest("tool_type", f"tools[{index}].type")
        path = f"tools[{index}].function"
        given = obj(tool.get("function"), path)
        put_tool(tools, function(given.get("name"), given.get("description"), given.get("parameters"), path), path)
    return tuple(tools.values()), None


def _tool_choice(
    choice: Any, tools: Sequence[Tool], unreadable: LargeOnlyRequest | None
) -> tuple[ToolChoice, str | None, LargeOnlyRequest | None]:
    if choice is None:
        return "auto", None, None
    if choice in ("auto", "none", "required"):
        return choice, None, None
    if not isinstance(choice, dict):
        raise wrong("tool_choice", "must be auto, none, required, or an object that names a function")
    if choice.get("type", "function") != "function":
        return "auto", None, LargeOnlyRequest("tool_choice_type", "tool_choice.type")
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise wrong("tool_choice.function.name", "must be text")
    if unreadable is None and all(tool.name != name for tool in tools):
        raise wrong("tool_choice.function.name", "names a tool that is not offered")
    return "named", name, None


def _include_usage(options: Any) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong("stream_options", "must be an object")
    return flag(options, "include_usage", default=False)


def _asks_for_more(body: Mapping[str, Any]) -> LargeOnlyRequest | None:
    for field, reason in _LARGE_ONLY.items():
        if body.get(field):
            return LargeOnlyRequest(reason, field)
    if _choices(body.get("n")) > 1:
        return LargeOnlyRequest("several_choices", "n")
    if body.get("modalities") not in (None, ["text"]):
        return LargeOnlyRequest("modalities", "modalities")
    response_format = body.get("response_format")
    if response_format is not None and response_format != {"type": "text"}:
        return LargeOnlyRequest("response_format", "response_format")
    return None


def _choices(n: Any) -> int:
    if n is None:
        return 1
    if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MAX_CHOICES:
        raise wrong("n", f"must be a whole number from 1 to {MAX_CHOICES}")
    return n


def _unreadable_message(messages: Sequence[Mapping[str, Any]]) -> LargeOnlyRequest | None:
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message["role"] not in _READABLE_ROLES:
            return LargeOnlyRequest("message_role", f"{path}.role")
        if message.get("function_call"):
            return LargeOnlyRequest("legacy_functions", f"{path}.function_call")
        if any(call.get("type", "function") != "function" for call in message.get("tool_calls") or ()):
            return LargeOnlyRequest("tool_type", f"{path}.tool_calls")
        if any(not _is_text(part) for part in _parts(message.get("content"))):
            return LargeOnlyRequest("content_not_text", f"{path}.content")
    return None


def _parts(content: Any) -> Sequence[Any]:
    return content if isinstance(content, list) else ()


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
