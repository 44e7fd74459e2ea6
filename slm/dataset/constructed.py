"""Shared helpers of the constructed rows: rows with one message of the user, and values that occur in its words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from slm.dataset.examples import Example


def request_text(example: Example) -> str | None:
    """The user's words where they are all there is, but for system messages; else None."""
    others = [message for message in example.messages if message["role"] not in ("system", "developer")]
    if len(others) != 1 or others[0]["role"] != "user" or not isinstance(others[0].get("content"), str):
        return None
    return str(others[0]["content"])


def with_text(example: Example, text: str) -> Example:
    """The same row with other words of the user; for rows that have a `request_text`."""
    messages = tuple(
        {**message, "content": text} if message["role"] == "user" else message for message in example.messages
    )
    return replace(example, messages=messages)


def system_texts(example: Example) -> Sequence[Any]:
    """The contents of the system messages."""
    return [message.get("content") for message in example.messages if message["role"] in ("system", "developer")]


def parameters_of(example: Example, tool: str) -> Mapping[str, Any]:
    """The JSON Schema of an offered tool's parameters."""
    for offered in example.tools:
        if offered["function"]["name"] == tool:
            schema = offered["function"].get("parameters")
            return schema if isinstance(schema, Mapping) else {}
    return {}


def said(value: Any) -> str | None:
    """The text of a string or a number as a request would hold it; None for other values."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(value)
    return None


def places(value: str, text: str) -> list[re.Match[str]]:
    """Find a value in a text as whole words, ignoring case; None if it does not occur."""
    return list(re.finditer(rf"(?<![\w.]){re.escape(value)}(?!\w)(?!\.\d)", text, re.IGNORECASE))
