"""A completion in OpenAI's words: the worker's events in, chunks or one answer out.

Text is held back as long as it may be the beginning of a stop; a stop itself is never sent. Log-probabilities are those
of the whole distribution, before any grammar. Beside them, in `smallcall`, stands what else the worker knows of each
token; clients that do not look for it need not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from router.completions.body import CompletionBody
from slm.protocol import Done, Started, Token


class Telling:
    """One completion; belongs to one request."""

    def __init__(self, body: CompletionBody) -> None:
        self._body, self._stops = body, body.stops
        self._head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }
        self._started: Started | None = None
        self._all = ""
        self._told = 0
        self._tokens = 0
        self._waiting: list[Token] = []
        """All tokens of a completion that is sent whole."""

    def start(self, event: Started) -> None:
        """The prompt is read."""
        self._started = event

    def chunk(self, token: Token) -> Mapping[str, Any] | None:
        """The stream's chunk for one token; None if there is neither text to send nor a probability."""
        self._tokens += 1
        before = len(self._all)
        self._all += token.text
        text = self._releasable()
        if not text and self._body.logprobs is None:
            return None
        return self._chunk(text, self._logprobs([token], [before]), None, self._signals([token]))

    def last(self, done: Done) -> list[Mapping[str, Any]]:
        """The stream's last chunks: the rest of the text with the reason, and the usage where it is wanted."""
        chunks: list[Mapping[str, Any]] = [self._chunk(self._rest(), None, self._reason(done), None)]
        options = self._body.stream_options
        if options is not None and options.include_usage:
            chunks.append({**self._head, "choices": [], "usage": self._usage()})
        return chunks

    def add(self, token: Token) -> None:
        """Keep a token of a completion that is sent whole."""
        self._tokens += 1
        self._all += token.text
        self._waiting.append(token)

    def whole(self, done: Done) -> Mapping[str, Any]:
        """The completion as one answer."""
        offsets, place = [], 0
        for token in self._waiting:
            offsets.append(place)
            place += len(token.text)
        choice = self._choice(self._rest(), self._logprobs(self._waiting, offsets), self._reason(done))
        if signals := self._signals(self._waiting):
            choice["smallcall"] = signals
        return {**self._head, "choices": [choice], "usage": self._usage()}

    def _cut(self) -> int | None:
        """Where the first stop begins."""
        found = [place for stop in self._stops if (place := self._all.find(stop)) >= 0]
        return min(found, default=None)

    def _reason(self, done: Done) -> str:
        return "length" if done.finish == "length" and self._cut() is None else "stop"

    def _releasable(self) -> str:
        end = self._cut()
        if end is None:
            end = len(self._all) - max((_overlap(self._all, stop) for stop in self._stops), default=0)
        text = self._all[self._told : end]
        self._told = max(self._told, end)
        return text

    def _rest(self) -> str:
        text = self._all[self._told : self._cut()]
        self._told = len(self._all)
        return text

    def _chunk(
        self, text: str, logprobs: Mapping[str, Any] | None, reason: str | None, signals: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        choice = self._choice(text, logprobs, reason)
        if signals:
            choice["smallcall"] = signals
        made = {**self._head, "choices": [choice]}
        options = self._body.stream_options
        if options is not None and options.continuous_usage_stats:
            made["usage"] = self._usage()
        return made

    @staticmethod
    def _choice(text: str, logprobs: Mapping[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[Token], offsets: Sequence[int]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [dict(token.alternatives) for token in tokens] if self._body.logprobs else None,
            "text_offset": list(offsets),
        }

    def _signals(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        return {
            "margin": [token.margin for token in tokens],
            "entropy": [token.entropy for token in tokens],
            "feasible_mass": [token.feasible_mass for token in tokens],
            "forced": [token.forced for token in tokens],
            "layer_agreement": [token.layer_agreement for token in tokens],
        }

    def _usage(self) -> dict[str, Any]:
        started = self._started
        prompt, cached = (started.prompt_tokens, started.cached_tokens) if started else (0, 0)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._tokens,
            "total_tokens": prompt + self._tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of `text` that may begin `stop`."""
    return next((count for count in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:count])), 0)
