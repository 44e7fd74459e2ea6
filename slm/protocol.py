"""The messages on the worker's Unix socket: one JSON object per line, one connection per draft.

The client sends one `Command`; the worker answers with `Event`s and closes. Closing the connection is how a client
cancels. Lines are bounded by `MAX_LINE_BYTES` in both directions. Importing this module imports no model library.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

PROTOCOL_VERSION = 1
MAX_LINE_BYTES = 16 * 1024 * 1024

ToolChoice = Literal["auto", "required", "named"]
Finish = Literal["stop", "length", "deadline"]


class DraftCommand(msgspec.Struct, tag="draft", tag_field="op", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Draft the assistant's next message. `messages` and `tools` are OpenAI chat-completions JSON."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    tool_choice: ToolChoice = "auto"
    forced_tool: str | None = None
    parallel_tool_calls: bool = True
    max_tokens: int = 512
    """Bound on the draft's own tokens, forced ones included."""
    deadline_s: float = 30.0
    """Seconds from the worker's receipt of the command, queueing included."""
    grammar: bool = True


class CompleteCommand(
    msgspec.Struct, tag="complete", tag_field="op", frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Continue a text by greedy decoding. The answer consists of the events of a draft; their plans and spans are
    meaningful only if the text follows the pattern."""

    prompt: str
    """May hold the model's control tokens, spelt out."""
    grammar: str | None = None
    """Grammar of the completion in llama.cpp's format (GBNF); None for no grammar."""
    stop: list[str] = []
    """Stop texts: the completion ends with the token that completes one of them, and its text includes it."""
    alternatives: int = 0
    """Number of most probable tokens reported with each token."""
    max_tokens: int = 16
    deadline_s: float = 30.0


class InfoCommand(msgspec.Struct, tag="info", tag_field="op", frozen=True, forbid_unknown_fields=True):
    """Ask for the loaded model; the answer is an `Info`."""


Command = DraftCommand | CompleteCommand | InfoCommand


class Info(msgspec.Struct, tag="info", tag_field="event", frozen=True, kw_only=True):
    """The loaded model, with the hashes that a certificate is bound to."""

    protocol: int
    model: str
    weights_sha256: str
    adapter_sha256: str | None
    pattern_version: str
    architecture: str
    dtype: str
    context_tokens: int


class Started(msgspec.Struct, tag="started", tag_field="event", frozen=True, kw_only=True):
    """The prompt has been read and decoding starts. Seconds are wall-clock."""

    prompt_tokens: int
    cached_tokens: int
    queue_s: float
    prefill_s: float


class Token(msgspec.Struct, tag="token", tag_field="event", frozen=True, kw_only=True):
    """One token of the draft, in order. Field meanings and units: `policies.types.TokenSignals`.

    `text` concatenates to the draft; a token that ends inside a UTF-8 character has empty text and the next carries it.
    """

    id: int
    text: str
    logprob: float
    margin: float
    entropy: float
    feasible_mass: float
    forced: bool
    span: int
    layer_agreement: float | None = None
    """Share of the probed inner layers (at 3, 4 and 5 sixths of the depth) whose logit lens puts this token first among
    the last layer's 16 most probable ones; 0 to 1. None where the model's insides cannot be read."""
    alternatives: list[tuple[str, float]] = []
    """The most probable tokens and their log-probabilities, best first, as many as a `CompleteCommand` asked for."""


class PlanMade(msgspec.Struct, tag="plan", tag_field="event", frozen=True, kw_only=True):
    """The `Thought:` line is complete, before any argument is written. `kind` is `calls`, `none` or `ask`."""

    kind: Literal["calls", "none", "ask"]
    names: list[str]


class Done(msgspec.Struct, tag="done", tag_field="event", frozen=True, kw_only=True):
    """The draft ended. `steps` counts forward passes after the prefill; guessed tokens need none, nor do up to 64 that
    are forced one after another.

    `hidden`: the last layer's normed state, projected to 16 numbers of about unit size, in five rows: where the first
    token is chosen; where the first planned name is; where the first called name is; the mean over the argument values'
    tokens; where the last token is chosen (`policies.types.HiddenPlace`). A row has no numbers where the draft has no
    such place. Empty where the model's insides cannot be read.
    """

    text: str
    finish: Finish
    decode_s: float
    steps: int
    tokens: int
    warnings: list[str] = []
    hidden: list[list[float]] = []


class DraftFailed(msgspec.Struct, tag="failed", tag_field="event", frozen=True, kw_only=True):
    """The draft cannot be made. `code` is stable: `bad_request`, `prompt_too_long`, `schema_unsupported`,
    `queue_full`, `wait_too_long`, `deadline`, `internal`. In answer to `InfoCommand`: the engine hangs (`internal`)."""

    code: str
    message: str


Event = Info | Started | Token | PlanMade | Done | DraftFailed

encode = msgspec.json.encode
command_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
