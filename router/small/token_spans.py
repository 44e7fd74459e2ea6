"""Which part of a completion's text each of its tokens wrote.

A server may tell tokens that its text does not hold, tokens whose own texts are not whole, and text behind its tokens:
vLLM lists the end token, decodes tokens singly, so that a piece of a character is U+FFFD or nothing, and keeps back
what may be the beginning of a stop. The text is right, whatever the tokens are: it is divided among them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_HOLE = "\N{REPLACEMENT CHARACTER}"
"""Stands in a token's own text for bytes that are no whole character."""


@dataclass(slots=True)
class _Open:
    """A token behind whose text more may follow."""

    text: str
    torn: bool
    """True if the token may end inside a character."""


class TokenTexts:
    """Divides one completion's text among its tokens, in order; the parts join to the text.

    A token's part is its own text where that stands in the completion. What stands between such parts belongs to the
    last token before that is not whole, or is none that the text holds.
    """

    def __init__(self) -> None:
        self._left = ""
        """Text that no token has."""
        self._waiting: deque[str] = deque()
        """Tokens' own texts whose place is not known."""
        self._open: list[_Open] = []
        self._room = 0
        """Characters that the open tokens may have beside what they already have."""

    def add(self, text: str, tokens: Sequence[str]) -> list[str]:
        """More of the completion: the parts of those next tokens whose part is now known."""
        self._left += text
        self._waiting.extend(tokens)
        return self._divided(final=False)

    def end(self, *, cut: bool) -> list[str]:
        """The parts of the tokens at the end, of those that are in the text.

        Args:
            cut: the completion has reached its length: tokens at its end may begin a character that it does not hold.

        Raises:
            ValueError: there is more text than tokens.
        """
        parts = self._divided(final=True)
        if self._left:
            if not self._open:
                raise ValueError("text without tokens")
            torn = [one for one in self._open if one.torn]
            (torn or self._open)[-1].text += self._left
            self._left = ""
        while self._open and not self._open[-1].text and not (cut and self._open[-1].torn):
            self._open.pop()
        return parts + self._closed()

    def _divided(self, *, final: bool) -> list[str]:
        parts: list[str] = []
        while self._waiting:
            own = self._waiting[0]
            head, hole, rest = own.partition(_HOLE)
            known = head or rest.rpartition(_HOLE)[2]
            room = self._room if head else self._room + len(own)
            start, end = self._find(known, room, final=final) if known else (-1, -1)
            if known and start < 0 and not final and self._begins(known, room) is not None:
                break
            self._waiting.popleft()
            if start < 0:
                self._open.append(_Open("", torn=hole != "" or own == ""))
                self._room += max(1, len(own))
                continue
            before, part, self._left = self._left[:start], self._left[start:end], self._left[end:]
            if head and self._open:
                self._open[-1].text += before
            parts += self._closed()
            if head and hole:
                self._open, self._room = [_Open(part, torn=True)], len(own) - len(head)
            else:
                parts.append(part if head else before + part)
        return parts

    def _closed(self) -> list[str]:
        parts = [one.text for one in self._open]
        self._open, self._room = [], 0
        return parts

    def _find(self, known: str, room: int, *, final: bool) -> tuple[int, int]:
        """Where a known text stands in what is left, at most `room` characters on; at the end a stop may have cut it.

        (−1, −1) where it does not.
        """
        start = self._left.find(known, 0, room + len(known))
        if start >= 0:
            return start, start + len(known)
        begun = self._begins(known, room) if final else None
        return (-1, -1) if begun is None or begun == len(self._left) else (begun, len(self._left))

    def _begins(self, known: str, room: int) -> int | None:
        """The first place, at most `room` characters on, from which all that is left begins a known text."""
        places = range(min(room, len(self._left)) + 1)
        return next((place for place in places if known.startswith(self._left[place:])), None)
