"""Which conversation a request belongs to: an explicit header, else what all its turns begin with; apart by key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import orjson

from router.dialects.chat import ChatRequest

CONVERSATION_HEADER = "x-smallcall-conversation"
_KEY_HEADERS = ("authorization", "x-api-key")


def shown_key(headers: Mapping[str, str]) -> str | None:
    """The key that a request shows, ours or not. Header names are lower case."""
    return next((headers[name] for name in _KEY_HEADERS if name in headers), None)


def conversation_of(chat: ChatRequest, headers: Mapping[str, str]) -> bytes:
    """What is the same in all turns of a conversation and differs between conversations and between keys. Not a
    digest: it may hold the messages up to the user's first."""
    owner = hashlib.sha256((shown_key(headers) or "").encode()).digest()
    told = headers.get(CONVERSATION_HEADER)
    return owner + (b"told:" + told.encode() if told else b"seen:" + _opening(chat))


def _opening(chat: ChatRequest) -> bytes:
    """The messages up to the user's first."""
    messages = list(map(dict, chat.view.messages))
    first = next((i for i, message in enumerate(messages) if message.get("role") == "user"), len(messages) - 1)
    return orjson.dumps(messages[: first + 1], option=orjson.OPT_SORT_KEYS)
