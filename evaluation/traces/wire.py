"""Responses of an OpenAI-compatible endpoint, as far as a study reads them: whole, in chunks, and a gateway's extras.

Unknown keys are ignored; a known key of a wrong type makes the response a bad one.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class TextCall(msgspec.Struct, frozen=True):
    """One call; `arguments` is JSON text exactly as it was written."""

    name: str
    arguments: str = ""


class WireSignals(msgspec.Struct, frozen=True):
    """Token signals as the gateway reports them; see `policies.types.TokenSignals`."""

    logprob: list[float]
    margin: list[float]
    entropy: list[float]
    feasible_mass: list[float]
    forced: list[bool]
    span: list[int]
    layer_agreement: list[float | None] | None = None
    hidden: list[list[float] | None] | None = None
    """One row a `policies.types.HiddenPlace`, None where the draft has no such place."""


class SmallDraft(msgspec.Struct, frozen=True):
    """The small model's draft as the gateway reports it."""

    outcome: str
    plan: list[str] = []
    calls: list[TextCall] = []
    complete: bool = True
    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    steps: int | None = None
    signals: WireSignals | None = None


class Extras(msgspec.Struct, frozen=True):
    """The `smallcall` object of a gateway's response; unknown keys are ignored."""

    decision_id: str | None = None
    side: str | None = None
    reason: str | None = None
    policy: str | None = None
    stage: str | None = None
    score: float | None = None
    threshold: float | None = None
    findings: list[str] = []
    cost_usd: float | None = None
    small: SmallDraft | None = None


class WireUsage(msgspec.Struct, frozen=True):
    """Tokens as the endpoint counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class ToolCall(msgspec.Struct):
    """A call of a message."""

    function: TextCall


class Message(msgspec.Struct):
    """The assistant's message."""

    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class WireChoice(msgspec.Struct):
    """One answer of a completion."""

    message: Message
    finish_reason: str | None = None


class ErrorBody(msgspec.Struct):
    """Why there is no answer."""

    message: str | None = None
    code: str | int | None = None
    type: str | None = None


class Completion(msgspec.Struct):
    """A whole response, or an error's."""

    choices: list[WireChoice] = []
    usage: WireUsage | None = None
    error: ErrorBody | None = None
    smallcall: Extras | None = None


class FunctionDelta(msgspec.Struct):
    """A piece of a call."""

    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct):
    """A piece of the call at `index`."""

    index: int = 0
    function: FunctionDelta | None = None


class Delta(msgspec.Struct):
    """A piece of the message."""

    content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(msgspec.Struct):
    """One answer's piece."""

    delta: Delta | None = None
    finish_reason: str | None = None


class WireChunk(msgspec.Struct):
    """One event of a stream."""

    choices: list[ChunkChoice] = []
    usage: WireUsage | None = None
    error: ErrorBody | None = None
    smallcall: Extras | None = None


class Assembly:
    """Puts a stream's chunks together. Calls are ordered by their index; a call without a name is no call."""

    def __init__(self) -> None:
        self.extras: Extras | None = None
        self.usage: WireUsage | None = None
        self.error: ErrorBody | None = None
        self.finish_reason: str | None = None
        self._text: list[str] = []
        self._names: dict[int, list[str]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._chose = False

    def add(self, chunk: WireChunk) -> bool:
        """Take one chunk in; True if it brought text or a piece of a call."""
        self.extras = chunk.smallcall or self.extras
        self.usage = chunk.usage or self.usage
        self.error = chunk.error or self.error
        if not chunk.choices:
            return False
        self._chose = True
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        if choice.delta is None:
            return False
        if choice.delta.content:
            self._text.append(choice.delta.content)
        for piece in choice.delta.tool_calls or ():
            names = self._names.setdefault(piece.index, [])
            arguments = self._arguments.setdefault(piece.index, [])
            if piece.function is not None:
                names.extend(n for n in (piece.function.name,) if n)
                arguments.extend(a for a in (piece.function.arguments,) if a)
        return bool(choice.delta.content or choice.delta.tool_calls)

    def completion(self) -> Completion:
        """Return the completion that the stream amounts to."""
        calls = [
            ToolCall(TextCall("".join(self._names[i]), "".join(self._arguments[i])))
            for i in sorted(self._names)
            if self._names[i]
        ]
        message = Message("".join(self._text) or None, calls or None)
        choices = [WireChoice(message, self.finish_reason)] if self._chose else []
        return Completion(choices, self.usage, self.error, self.extras)


def texts(calls: Iterable[ToolCall] | None) -> tuple[TextCall, ...]:
    """The calls of a message."""
    return tuple(call.function for call in calls or ())
