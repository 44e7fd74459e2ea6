"""Texts and digests of tools, and what the messages of a conversation say."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from policies.types import Tool

MAX_DESCRIPTION_CHARS = 1_000
MAX_CACHED_CHARS = 8_192
"""Hashes of larger tools are computed each time: 4,096 remembered ones must not fill the memory."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+")
_STOP = frozenset(
    "a an and any are as at be by can could do does for from get give has have how i in is it its me my of on or our "
    "please some that the their them then there these this to us want was we what when where which who will with would "
    "you your".split()
)


def json_sha256(value: Any) -> str:
    """SHA-256 of canonical JSON: keys sorted, no spaces, 1.0 written as 1. Order within lists stays.

    Raises:
        ValueError: not JSON: NaN, an infinity, a key that is not text, or a value of another type.
    """
    try:
        text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def tool_sha256(tool: Tool) -> str | None:
    """`json_sha256` of name, description and parameters; None where these are no JSON."""
    try:
        text = json.dumps([tool.name, tool.description, tool.parameters])
    except (TypeError, ValueError, RecursionError):
        return None
    return _hashed(text) if len(text) <= MAX_CACHED_CHARS else _hashed.__wrapped__(text)


@functools.lru_cache(maxsize=4096)
def _hashed(text: str) -> str | None:
    name, description, parameters = json.loads(text)
    try:
        return json_sha256({"name": name, "description": description, "parameters": parameters})
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key that is not text")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def words(text: str) -> frozenset[str]:
    """The words that carry meaning: `get_userNames` and "user names" share `user` and `name`; English stop words."""
    return frozenset(_stem(word.casefold()) for word in _WORD.findall(text)) - _STOP


def tool_words(tool: Tool) -> frozenset[str]:
    """The words of a tool's name and description (its first 1,000 characters)."""
    return _tool_words(tool.name, tool.description[:MAX_DESCRIPTION_CHARS])


@functools.lru_cache(maxsize=4096)
def _tool_words(name: str, description: str) -> frozenset[str]:
    return words(name) | words(description)


def _stem(word: str) -> str:
    for ending in ("ing", "es", "s", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def texts(content: Any, *, parts: int | None = None) -> Iterator[str]:
    """A content that is a text, or the texts among a list's first `parts` parts; none for anything else."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content[:parts]:
            text = part.get("text") if isinstance(part, Mapping) else None
            if isinstance(text, str):
                yield text
