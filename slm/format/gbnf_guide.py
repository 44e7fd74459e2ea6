"""Constrains a completion by a grammar in llama.cpp's format (GBNF) that a client sent.

Hostile like a tool's schema: its size is bounded before it is read, compilation and each step run under the same
limits. There is nothing to fall back to: where such a grammar fails, so does its completion.
"""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from slm.format.gbnf import MAX_GRAMMAR_CHARS, MAX_GRAMMAR_SYMBOLS, symbols
from slm.format.grammar import LIMITS, GrammarError, Mask, leading, mask_of


class GbnfGuide:
    """A `slm.format.grammar.Guide` over a client's grammar. Not safe to share between threads.

    Raises:
        GrammarError: it is no such grammar or exceeds a limit; from any method, where it fails at a token.
    """

    def __init__(self, grammar: str, tokenizer: LLTokenizer) -> None:
        self.warnings: list[str] = []
        self._vocabulary = tokenizer.vocab_size
        lark = _lark(grammar)
        self._matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=LIMITS)
        self._checked()

    @property
    def ended(self) -> bool:
        """True if the completion is complete and only its end may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def forced(self) -> list[int]:
        """Return the tokens that must come next; empty where there is a choice."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self._checked()
        return tokens

    def allowed(self) -> Mask:
        """Return the mask of tokens that may come next, shape (vocabulary,)."""
        bits = self._matcher.compute_bitmask()
        self._checked()
        return mask_of(bits, self._vocabulary)

    def possible(self, tokens: Sequence[int]) -> list[int]:
        """Return the longest prefix of `tokens` that the grammar allows here."""
        return leading(self._matcher, tokens)

    def write(self, token: int) -> None:
        """Advance the grammar by a token."""
        self._matcher.consume_token(token)
        self._checked()

    def _checked(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"failed: {self._matcher.get_error()[:200]}")


def _lark(grammar: str) -> str:
    """The grammar in llguidance's form. Raises: GrammarError."""
    if len(grammar) > MAX_GRAMMAR_CHARS:
        raise GrammarError(f"more than {MAX_GRAMMAR_CHARS} characters")
    if symbols(grammar) > MAX_GRAMMAR_SYMBOLS:
        raise GrammarError(f"more than {MAX_GRAMMAR_SYMBOLS} symbols")
    try:
        lark: str = gbnf_to_lark(grammar)
    except Exception as exc:  # The reader raises it for undefined rules, a missing root and rules defined twice.
        raise GrammarError(f"cannot be read: {str(exc)[:200] or type(exc).__name__}") from exc
    return lark
