"""Prompt lookup: guesses of a draft's next tokens, which mostly repeat what the conversation already said.

A guess costs rows of a forward pass and never changes what is written: each guessed token is held against the model's
own choice. Two sources, in this order: a value that is being written is looked up in the conversation's text, and goes
on as the text goes on; else the draft's last tokens are looked up in prompt and draft, and go on as they went on there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

GUESS_TOKENS = 6
"""Most tokens guessed at once."""
GUESS_CHARS = 40
VALUE_CHARS = 256
"""A longer value is not looked up: its tokens are."""
PLACES = 8
"""Occurrences of a value that are looked at, from the last one backwards."""
GRAM = 3
"""Tokens that must agree where tokens are looked up."""


class PromptLookup:
    """Guesses the next tokens of one draft from its prompt and its own text.

    Args:
        text: the conversation as the model reads it, without the tools.
        encode: text to tokens.
    """

    def __init__(self, text: str, encode: Callable[[str], list[int]]) -> None:
        self._text, self._encode = text, encode
        self._after: dict[tuple[int, ...], int] = {}
        """Index of the token that last followed each run of `GRAM` tokens."""
        self._known = GRAM

    def guess(self, ids: Sequence[int], value: str) -> list[int]:
        """Return tokens that may follow `ids`, at most `GUESS_TOKENS`; often none.

        Args:
            ids: prompt and draft; must only have grown since the last call.
            value: the text of the value under way, empty outside one.
        """
        return (self._continued(value) or self._repeated(ids))[:GUESS_TOKENS]

    def _continued(self, value: str) -> list[int]:
        if not value.strip() or len(value) > VALUE_CHARS:
            return []
        end = len(self._text)
        for _ in range(PLACES):
            at = self._text.rfind(value, 0, end)
            if at < 0:
                break
            if at == 0 or not (self._text[at - 1].isalnum() and value[0].isalnum()):
                following = self._text[at + len(value) : at + len(value) + GUESS_CHARS]
                return self._encode(following.partition("\n")[0])
            end = at + len(value) - 1
        return []

    def _repeated(self, ids: Sequence[int]) -> list[int]:
        for place in range(self._known, len(ids)):
            self._after[tuple(ids[place - GRAM : place])] = place
        self._known = max(self._known, len(ids))
        before = self._after.get(tuple(ids[-GRAM:]))
        return [] if before is None else list(ids[before : before + GUESS_TOKENS])


def value_under_way(text: str) -> str:
    """The value that a draft's text breaks off in, from its first character; the caller knows that it does."""
    tail = text[text.rfind('"') + 1 :]
    return tail.lstrip(":,[{ ") if tail[:1] in (":", ",") else tail
