"""Conversations in OpenAI's fine-tuning format to examples: one for each answer of the assistant.

A line is `{"messages": [...], "tools": [...]}`; what stands before an assistant's message is its request. A message
with `weight: 0` is context only, and no answer is trained on behind a message that cannot be read. The first call of
parallel ones stands first in the draft. Calls must be of offered tools and fit their schemas. The format does not say
why a message makes no call: it is `ask` where its words ask for a value (`slm.dataset.examples.asks_back`) and `none`
otherwise.

A line is a conversation of its own, unless it names the one that it belongs to (`conversation`, 1 to 200 characters):
lines that hold turns of one conversation, in one file or in several, must say so to stay on one side of a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from slm.dataset.examples import BadRow, Example, asks_back, check_message, check_tools, schema_validator
from slm.format.pattern import Kind

_READABLE = frozenset({"system", "developer", "user", "assistant", "tool"})
_MAX_CONVERSATION = 200
"""Characters of a conversation's name."""

Calls = tuple[tuple[str, Mapping[str, Any]], ...]


def is_conversation(row: Mapping[str, Any]) -> bool:
    """True if a row is in this format and not in the project's own."""
    return "gold" not in row and isinstance(row.get("messages"), list)


def examples_of(row: Mapping[str, Any], source: str) -> Iterator[Example | BadRow]:
    """Yield the examples of one conversation in order; in place of one that cannot be trained on, the reason.

    `source` names where the conversation comes from. Raises BadRow where the row as a whole cannot be read.
    """
    messages, tools = row["messages"], row.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRow("malformed", "messages and tools must be lists of objects")
    check_tools(tools)
    if any(message.get("role") not in _READABLE for message in messages):
        raise BadRow("malformed", "a message of an unknown role")
    name = str(row.get("id") or hashlib.sha256(msgspec.json.encode(messages)).hexdigest()[:16])
    conversation = _named_conversation(row) or f"{source}/{name}"
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    found = False
    unread: BadRow | None = None
    for index, message in enumerate(messages):
        try:
            check_message(message)
        except BadRow as bad:
            unread = unread or bad
        before = messages[:index]
        if message["role"] != "assistant" or message.get("weight") == 0 or not _asks(before):
            continue
        found = True
        if unread is not None:
            yield unread
            continue
        try:
            kind, calls = _answer(message, before, tools, schemas)
        except BadRow as bad:
            yield bad
            continue
        yield Example(f"{name}/{index}", source, "conversation", conversation, tuple(before), tuple(tools), kind, calls)
    if not found:
        raise BadRow("no answer of an assistant to teach")


def _named_conversation(row: Mapping[str, Any]) -> str | None:
    """The conversation that a row says it belongs to, whatever its source; None where no name can be used."""
    name = row.get("conversation")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_CONVERSATION:
        return None
    return f"conversation/{name}"


def _asks(before: Sequence[Mapping[str, Any]]) -> bool:
    return bool(before) and before[-1]["role"] in ("user", "tool")


def _answer(
    message: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    schemas: Mapping[str, Any],
) -> tuple[Kind, Calls]:
    if made := message.get("tool_calls"):
        return "calls", tuple(_call(one, schemas) for one in made)
    text = message.get("content")
    return ("ask" if tools and isinstance(text, str) and asks_back(before, text) else "none"), ()


def _call(call: Any, schemas: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    try:
        name, text = call["function"]["name"], call["function"]["arguments"]
        arguments = msgspec.json.decode(text or "{}")
    except (KeyError, TypeError, msgspec.DecodeError, RecursionError) as exc:
        raise BadRow("malformed", "a call without a name or without arguments as JSON") from exc
    if name not in schemas:
        raise BadRow("gold calls a tool that is not offered", str(name))
    if not isinstance(arguments, dict) or not schema_validator(schemas[name], str(name)).is_valid(arguments):
        raise BadRow("a call that does not fit its schema", str(name))
    order = [key for key in schemas[name].get("properties") or {} if key in arguments]
    return name, {key: arguments[key] for key in (*order, *(key for key in arguments if key not in order))}
