"""The texts of a message's content, in any dialect's form; whatever else stands there is read over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def texts(content: Any, *, parts: int | None = None) -> Iterator[str]:
    """A content that is a text, or the texts among a list's first `parts` parts; none for anything else."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content[:parts]:
            text = part.get("text") if isinstance(part, Mapping) else None
            if isinstance(text, str):
                yield text
