"""A request to `/v1/completions`: read, bounded, and refused by the path of the wrong field."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from router.dialects.errors import ClientError, wrong
from slm.format.gbnf import MAX_GRAMMAR_CHARS
from slm.protocol import CompleteCommand

MAX_TOKENS = 4096
MAX_STOPS = 4
STOP_CHARS = 64
ALTERNATIVES = 5
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"field `([^`]*)`$")

Stop = Annotated[str, Meta(min_length=1, max_length=STOP_CHARS)]
Grammar = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a stream reports its token usage: at its end, or in every chunk."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """vLLM's form of guided decoding, as far as we have it."""

    grammar: Grammar


class CompletionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The fields that are taken; any other is refused, since what it asks for would not be done."""

    model: str
    prompt: Annotated[str, Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] = 16
    temperature: Annotated[float, Meta(ge=0, le=0)] = 0.0
    """Decoding is greedy."""
    logprobs: Annotated[int, Meta(ge=0, le=ALTERNATIVES)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    grammar: Grammar | None = None
    """llama.cpp's form of guided decoding."""
    structured_outputs: StructuredOutputs | None = None
    n: Literal[1] = 1
    seed: int | None = None
    """Changes nothing."""
    user: str | None = None

    @property
    def stops(self) -> list[str]:
        """The texts that end the completion."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def command(self, deadline_s: float) -> CompleteCommand:
        """The command for the worker, with `deadline_s` seconds to finish."""
        guided = self.structured_outputs.grammar if self.structured_outputs else self.grammar
        return CompleteCommand(
            prompt=self.prompt,
            grammar=guided,
            stop=self.stops,
            alternatives=self.logprobs or 0,
            max_tokens=self.max_tokens,
            deadline_s=deadline_s,
        )


_decoder = msgspec.json.Decoder(CompletionBody)


def read_body(raw: bytes, model: str) -> CompletionBody:
    """Raises ClientError where it is no such request, or asks for another model."""
    try:
        body = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _named(str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise wrong(None, "the body is not JSON") from error
    if body.model != model:
        raise ClientError(404, f"the model here is {model!r}", "model_not_found", param="model")
    if body.grammar is not None and body.structured_outputs is not None:
        raise wrong("structured_outputs", "grammar says the same: only one of them")
    if body.stream_options is not None and not body.stream:
        raise wrong("stream_options", "only with stream")
    return body


def _named(text: str) -> ClientError:
    """msgspec's message with the field's path as ours have it."""
    at, message = _AT.search(text), _AT.sub("", text)
    field = _FIELD.search(message)
    param = ".".join(part for part in (at and at[1], field and field[1]) if part)
    return wrong(param or None, message)
