"""Which conversation a request belongs to: an explicit header, else what all its turns begin with; apart by key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from router.dialects.request import ChatRequest

CONVERSATION_HEADER = "x-smallcall-conversation"
_KEY_HEADERS = ("authorization", "x-api-key")


def asker_of(headers: Mapping[str, str], key_id: str | None) -> str | None:
    """Who asks: the id of the key that opened the gateway, else, where it stands open, the key that the request shows.
    Header names are lower case."""
    return key_id or next((headers[name] for name in _KEY_HEADERS if name in headers), None)


def conversation_of(chat: ChatRequest, headers: Mapping[str, str], key_id: str | None) -> bytes:
    """Return bytes that are the same in all turns of a conversation and differ between conversations and between keys.
    Not a digest: they may hold the messages up to the user's first."""
    owner = hashlib.sha256((asker_of(headers, key_id) or "").encode()).digest()
    named = headers.get(CONVERSATION_HEADER)
    return owner + (b"told:" + named.encode() if named else b"seen:" + _dumped(opening(chat.view.messages)))


def opening(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages up to the user's first, which all turns of a conversation share."""
    first = next((i for i, message in enumerate(messages) if message.get("role") == "user"), len(messages) - 1)
    return list(map(dict, messages[: first + 1]))


def _dumped(messages: Sequence[Mapping[str, Any]]) -> bytes:
    return orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)
