"""A stream of completion chunks in the worker's words.

Log-probabilities come in either of the two forms in which servers tell them; what a server does not tell is NaN.
The draft's text is the tokens' where the server tells them exactly: llama.cpp by their bytes, our own endpoint by what
each completes. Elsewhere it is the completion's own text, divided among the tokens (`router.small.token_spans`).
"""

from __future__ import annotations

import codecs
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from router.small.token_spans import TokenTexts
from router.small.worker_client import SmallModelError
from slm import protocol
from slm.format import pattern
from slm.format.pattern import DraftSpan, PatternError, SpanTracker

_NAN = math.nan
_STOPPED = frozenset({"stop", "stop_sequence", "eos_token"})
"""Reasons of a whole completion, OpenAI's and text-generation-inference's."""
_ANSWER_CHARS_A_TOKEN = 64
"""More text than this for each token that was asked for is not a draft."""


async def parse_stream(stream: aiohttp.StreamReader, max_tokens: int) -> AsyncIterator[protocol.Event]:
    """The events of a stream of completion chunks. Raises SmallModelError."""
    telling = _Telling(max_tokens)
    try:
        async for line in stream:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            for event in telling.read(orjson.loads(data)):
                yield event
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SmallModelError("worker_lost", "the completion server's answer cannot be read") from error
    for event in telling.end():
        yield event


class _Telling:
    """Chunks of one completion in the worker's words."""

    def __init__(self, max_tokens: int) -> None:
        self._most = max_tokens * _ANSWER_CHARS_A_TOKEN
        self._began = time.monotonic()
        self._first_s: float | None = None
        self._text, self._tokens, self._spans = "", 0, SpanTracker()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._told_chars = 0
        self._texts = TokenTexts()
        self._waiting: deque[_Piece] = deque()
        """Tokens whose text is not known yet."""
        self._exact = False
        self._planned = False
        self._finish: str | None = None

    def read(self, chunk: Mapping[str, Any]) -> list[protocol.Event]:
        """Raises ValueError and its like where it is no chunk of a completion."""
        if "error" in chunk:
            raise ValueError("an error in the stream")
        events: list[protocol.Event] = []
        if self._first_s is None:
            self._first_s = time.monotonic() - self._began
            usage = chunk.get("usage") or {}
            events.append(
                protocol.Started(
                    prompt_tokens=int(usage.get("prompt_tokens") or 0),
                    cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
                    queue_s=0.0,
                    prefill_s=self._first_s,
                )
            )
        for choice in chunk.get("choices") or ():
            events += self._choice(str(choice.get("text") or ""), _pieces(choice))
            self._finish = choice.get("finish_reason") or self._finish
        return events

    def _choice(self, text: str, pieces: Sequence[_Piece]) -> list[protocol.Event]:
        if text and not pieces and not self._tokens and not self._waiting:
            raise SmallModelError("worker_failed", "the completion server tells no log-probabilities")
        self._told_chars += len(text)
        if self._told_chars > self._most:
            raise ValueError("more text than was asked for")
        self._exact = self._exact or any(piece.exact for piece in pieces)
        if self._exact:
            return [event for piece in pieces for event in self._exactly(piece)]
        self._waiting.extend(pieces)
        return self._divided(self._texts.add(text, [piece.text for piece in pieces]))

    def _exactly(self, piece: _Piece) -> list[protocol.Event]:
        if piece.raw == b"":  # An end token, or one that is kept back as the beginning of a stop: a newline.
            return self._token(piece, "", DraftSpan.SYNTAX)
        text = piece.text if piece.raw is None else self._decoder.decode(piece.raw)
        return self._token(piece, text, self._span(text))

    def _divided(self, texts: Sequence[str]) -> list[protocol.Event]:
        """The events of the tokens that wait for these texts."""
        return [event for text in texts for event in self._token(self._waiting.popleft(), text, self._span(text))]

    def _span(self, text: str) -> DraftSpan:
        """Return the span of a token's text. A token inside a character belongs where any other character would."""
        return self._spans.feed(text or "\N{REPLACEMENT CHARACTER}")

    def _token(self, piece: _Piece, text: str, span: DraftSpan) -> list[protocol.Event]:
        self._text += text
        self._tokens += 1
        if len(self._text) > self._most:
            raise ValueError("more text than was asked for")
        events: list[protocol.Event] = [
            protocol.Token(
                id=-1,
                text=text,
                logprob=min(piece.logprob, 0.0),
                margin=piece.margin,
                entropy=piece.entropy,
                feasible_mass=piece.feasible_mass,
                forced=piece.forced,
                span=int(span),
                layer_agreement=piece.layer_agreement,
            )
        ]
        if not self._planned and "\n" in self._text:
            self._planned = True
            with contextlib.suppress(PatternError):
                kind, names = pattern.parse_plan(self._text.partition("\n")[0])
                events.append(protocol.PlanMade(kind=kind, names=list(names)))
        return events

    def end(self) -> list[protocol.Event]:
        """The end of the draft. Raises SmallModelError where it broke off or ended for an unknown reason."""
        if self._finish is None or self._first_s is None:
            raise SmallModelError("worker_lost", "the completion has no end")
        if self._finish != "length" and self._finish not in _STOPPED:
            raise SmallModelError("worker_failed", "the completion ended neither by itself nor by its length")
        try:
            texts = self._texts.end(cut=self._finish == "length")
        except ValueError as error:
            raise SmallModelError("worker_failed", "the completion has text without log-probabilities") from error
        return [
            *self._divided(texts),
            protocol.Done(
                text=self._text.rstrip("\n"),
                finish="length" if self._finish == "length" else "stop",
                decode_s=time.monotonic() - self._began - self._first_s,
                steps=self._tokens,
                tokens=self._tokens,
            ),
        ]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One token; what the server does not send is NaN."""

    text: str
    logprob: float
    margin: float
    entropy: float = _NAN
    feasible_mass: float = _NAN
    forced: bool = False
    layer_agreement: float | None = None
    raw: bytes | None = None
    """The token's bytes, where it may end inside a character and the server sends them: its text is not whole then."""
    exact: bool = True
    """True if the tokens' texts or bytes join to the draft's text."""


def _pieces(choice: Mapping[str, Any]) -> list[_Piece]:
    """A chunk's tokens, in either of the two forms in which servers send log-probabilities of completions."""
    logprobs = choice.get("logprobs") or {}
    if logprobs.get("content"):  # llama.cpp: as chat completions tell them
        return [_chat_piece(one) for one in logprobs["content"]]
    if logprobs.get("tokens"):  # OpenAI's own form and vLLM's
        return _our_pieces(logprobs, choice["smallcall"]) if choice.get("smallcall") else _plain_pieces(logprobs)
    return []


def _chat_piece(one: Mapping[str, Any]) -> _Piece:
    raw, margin = one.get("bytes"), _margin([top["logprob"] for top in one["top_logprobs"]])
    return _Piece(str(one["token"]), float(one["logprob"]), margin, raw=None if raw is None else bytes(raw))


def _plain_pieces(logprobs: Mapping[str, Any]) -> list[_Piece]:
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
    return [
        _Piece(str(token), float(logprob), _margin(_alternatives(logprob, top or {})), exact=False)
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]


def _our_pieces(logprobs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[_Piece]:
    """Return the tokens with what our own endpoint sends beside the log-probabilities."""
    names = ("margin", "entropy", "feasible_mass", "forced", "layer_agreement")
    rows = zip(logprobs["tokens"], logprobs["token_logprobs"], *(ours[name] for name in names), strict=True)
    return [
        _Piece(
            str(token), float(logprob), float(margin), float(entropy), float(mass), bool(forced),
            None if agreement is None else float(agreement),
        )
        for token, logprob, margin, entropy, mass, forced, agreement in rows
    ]  # fmt: skip


def _alternatives(logprob: float, top: Mapping[str, float]) -> list[float]:
    """Log-probabilities, the chosen token's among them: another one of the same text may stand in its place."""
    shown = list(top.values())
    return shown if logprob in shown else [*shown, logprob]


def _margin(logprobs: Sequence[float]) -> float:
    """p1 − p2 of the two most probable tokens."""
    best = sorted((float(one) for one in logprobs), reverse=True)
    return math.exp(best[0]) - math.exp(best[1]) if len(best) > 1 else _NAN
