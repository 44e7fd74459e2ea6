"""Text to tokens and back, for one tokenizer.

Only control segments become special tokens: text of a client that spells one out is divided like any other text.
A prompt's segments are tokenised one by one, and a draft by itself, both here and in training; that is exact for
byte-level tokenizers, the only ones accepted.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence

from llguidance import LLTokenizer
from tokenizers import Tokenizer

from slm.format.pattern import CHATML, PLAIN, Frame, Segment


class TokenizerError(ValueError):
    """Drafts cannot be written with this tokenizer."""


class Tokens:
    """One tokenizer, frozen. Not safe to share between threads while it encodes.

    Args:
        tokenizer: taken over; byte-level, with its special tokens marked as such.
        vocabulary: rows of the model's output; the tokenizer may use fewer.
        end_ids: tokens that end a text by the model's own configuration.
        bos_id: token that every prompt of this model begins with, if any.

    Raises:
        TokenizerError: it does not fit the model, or its control tokens cannot be distinguished from text.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, end_ids: Iterable[int], bos_id: int | None) -> None:
        if tokenizer.get_vocab_size(with_added_tokens=True) > vocabulary:
            raise TokenizerError("the tokenizer has more tokens than the model")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._bos_id = bos_id
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self._control = {added[id_].content: id_ for id_ in self.special_ids}
        self._spelt = re.compile("(" + "|".join(map(re.escape, sorted(self._control, key=len, reverse=True))) + ")")
        chatml = CHATML.open_control in self._control and CHATML.close_control in self._control
        self.frame: Frame = CHATML if chatml else PLAIN
        """The delimiters of turns for this model."""
        ends = set(end_ids) | ({self._control[CHATML.close_control]} if chatml else set())
        if not ends:
            raise TokenizerError("neither the model nor its tokenizer names an end-of-sequence token")
        self.end_ids = frozenset(ends)
        for control in (CHATML.open_control, CHATML.close_control):
            if len(self.encode(control)) == 1:
                raise TokenizerError(f"{control} is an ordinary token here: a client could open or close a turn")
        self.grammar_tokenizer = LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=sorted(ends))
        """The same tokenizer for `slm.format.grammar`."""
        if not self.grammar_tokenizer.is_canonical:
            raise TokenizerError("not a byte-level tokenizer: forced tokens would not be divided as in training")
        self._longest = max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str) -> list[int]:
        """Tokens of ordinary text, special tokens spelt out."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(self, segments: Sequence[Segment]) -> list[int]:
        """Tokens of a rendered prompt, with the model's beginning token where it has one.

        Raises:
            TokenizerError: a control segment is no special token of this tokenizer.
        """
        ids: list[int] = []
        for segment in segments:
            if not segment.control:
                ids += self.encode(segment.text)
            elif segment.text in self._control:
                ids.append(self._control[segment.text])
            else:
                raise TokenizerError(f"{segment.text!r} is no special token of this model")
        return ids if self._bos_id is None or ids[:1] == [self._bos_id] else [self._bos_id, *ids]

    def segments(self, text: str) -> list[Segment]:
        """A prompt as text, in which control tokens are spelt out, in the pieces that `prompt` reads."""
        parts = self._spelt.split(text) if self._control else [text]
        return [Segment(part, part in self._control) for part in parts if part]

    def at_least(self, segments: Sequence[Segment]) -> int:
        """A lower bound on the length of `prompt`, without tokenising: no token writes more than the longest one."""
        return sum(len(segment.text) for segment in segments) // self._longest

    def piece(self, token: int) -> bytes:
        """The bytes that a token writes; nothing for a special token."""
        if token not in self._pieces:
            special = token in self.special_ids
            self._pieces[token] = b"" if special else bytes(self.grammar_tokenizer.decode_bytes([token]))
        return self._pieces[token]


class TextStream:
    """Tokens of one draft to text: a character appears with the token that completes it, or not at all."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Text that this token completes; may be empty."""
        return self._decoder.decode(self._tokens.piece(token))
