"""The text that the small model reads and writes: Thought / Action / Action Input, rendered and parsed back.

A draft is one of

    Thought: get_weather, get_time        Thought: none        Thought: ask
    Action: get_weather                   Action: none         Action: ask
    Action Input: {"city": "Paris"}
    Action: get_time
    Action Input: {"zone": "CET"}

The `Thought:` line is a plan that names the tools to be called, in order, so that a policy may decide before any
argument is spent. `none` asks for prose, `ask` for a missing required value; a tool that bears one of these names is
written with a dot behind it, which no tool name may hold. Tools come before the client's own system text, since they
change least often: a prefix cache keeps them.

A prompt is a list of segments: only segments marked `control` are tokenised with special tokens, so text of a client
cannot open or close a turn. Any change of what is rendered must change `PATTERN_VERSION`: adapters, classifiers and
certificates are bound to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from slm.format.signature import DEFAULT_LIMITS, Room, SignatureLimits, signature

PATTERN_VERSION = "1"

Kind = Literal["calls", "none", "ask"]

_RESERVED = frozenset({"none", "ask"})
_THOUGHT, _ACTION, _INPUT = "Thought: ", "Action: ", "Action Input: "
_INSTRUCTION = (
    "Decide which tools to call next. Write\n"
    "Thought: the tools' names in order, or none if no tool fits, or ask if a required value is missing\n"
    "Action: a tool's name\n"
    "Action Input: its arguments as JSON\n"
    "Tools:\n"
)
MAX_CALLS = 16
"""Calls that one draft may plan."""
TOOL_RESULT_CHARS = 2000
"""Characters of a tool's result that the model is shown; a longer result loses its middle."""


class DraftSpan(IntEnum):
    """The part of a draft that a character belongs to; values equal those of `policies.types.Span`."""

    SYNTAX = 0
    PLAN = 1
    NAME = 2
    KEY = 3
    VALUE = 4


class PatternError(ValueError):
    """A prompt that cannot be rendered or a draft that cannot be parsed."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """One call: `arguments` is JSON text as written."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed draft. `calls` is empty unless `kind` is `calls`."""

    kind: Kind
    plan: tuple[str, ...]
    calls: tuple[ParsedCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a prompt. `control` text is ours and may hold special tokens; other text never does."""

    text: str
    control: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """The delimiters of a base model's turns. `open_text` holds `{role}`."""

    name: str
    open_control: str
    open_text: str
    close_control: str
    close_text: str
    guard: str = ""
    """A line of client text that begins like this is indented, so that it cannot open a turn in frames without control
    tokens."""


CHATML = Frame("chatml", "<|im_start|>", "{role}\n", "<|im_end|>", "\n")
PLAIN = Frame("plain", "", "### {role}\n", "", "\n\n", guard="### ")


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def written_name(name: str) -> str:
    """Return a tool's name as it is written in a draft: reserved words get a dot."""
    return name + "." if name in _RESERVED else name


def _read_name(written: str) -> str:
    return written[:-1] if written.endswith(".") and written[:-1] in _RESERVED else written


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def canonical_json(value: Any) -> str:
    """The one way in which arguments are written: one line, `", "` and `": "`, UTF-8, no NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def render_plan(kind: Kind, names: Sequence[str] = ()) -> str:
    """The `Thought:` line with its newline."""
    return _THOUGHT + (", ".join(written_name(name) for name in names) if kind == "calls" else kind) + "\n"


def render_draft(parsed: Parsed) -> str:
    """The text of a draft, without a final newline. Inverse of `parse_draft`."""
    lines = [render_plan(parsed.kind, parsed.plan).rstrip("\n")]
    if parsed.kind != "calls":
        lines.append(_ACTION + parsed.kind)
    for call in parsed.calls:
        if "\n" in call.arguments:
            raise PatternError("arguments must stand on one line")
        lines += [_ACTION + written_name(call.name), _INPUT + call.arguments]
    return "\n".join(lines)


def calls_draft(calls: Iterable[tuple[str, Any]]) -> Parsed:
    """A draft of `(name, arguments)` pairs whose plan agrees with its calls."""
    made = tuple(ParsedCall(name, canonical_json(arguments)) for name, arguments in calls)
    return Parsed("calls", tuple(call.name for call in made), made)


def parse_plan(line: str) -> tuple[Kind, tuple[str, ...]]:
    """Read a `Thought:` line back: inverse of `render_plan`, newline or not.

    Raises:
        PatternError: it is no such line.
    """
    if not line.startswith(_THOUGHT.rstrip()):
        raise PatternError("no Thought line")
    plan = line[len(_THOUGHT.rstrip()) :].strip()
    if plan in _RESERVED:
        return ("none" if plan == "none" else "ask"), ()
    return "calls", tuple(_read_name(name.strip()) for name in plan.split(","))


def parse_draft(text: str) -> Parsed:
    """Read a draft back.

    Tolerates surrounding blank lines only. Whether names are offered and arguments fit a schema is for
    `policies.validation` to say.

    Raises:
        PatternError: the text does not follow the pattern, or its plan disagrees with its actions.
    """
    lines = [line for line in text.strip().split("\n") if line.strip()]
    kind, plan = parse_plan(lines[0] if lines else "")
    rest = lines[1:]
    if kind != "calls":
        if rest != [_ACTION + kind]:
            raise PatternError(f"plan says {kind}, actions do not")
        return Parsed(kind, ())
    calls = tuple(_parse_calls(rest))
    if tuple(call.name for call in calls) != plan:
        raise PatternError("plan and actions name different tools")
    return Parsed("calls", plan, calls)


def _parse_calls(lines: Sequence[str]) -> Iterable[ParsedCall]:
    if not lines or len(lines) % 2:
        raise PatternError("every Action needs one Action Input")
    for action, argument in zip(lines[::2], lines[1::2], strict=True):
        if not action.startswith(_ACTION) or not argument.startswith(_INPUT):
            raise PatternError("expected an Action line and an Action Input line")
        yield ParsedCall(_read_name(action[len(_ACTION) :].strip()), argument[len(_INPUT) :].strip())


# ── prompts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def render_prompt(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    frame: Frame = CHATML,
    limits: SignatureLimits = DEFAULT_LIMITS,
) -> list[Segment]:
    """The prompt up to the point where the model starts to write its draft.

    Args:
        messages: OpenAI chat messages; text parts only.
        tools: OpenAI tool definitions of type `function`.

    Raises:
        PatternError: a message or tool that the small model cannot read (an image, an unknown role); such a request
            belongs to the large model.
    """
    own = [message for message in messages if message.get("role") in ("system", "developer")]
    room = Room()
    system = _INSTRUCTION + "".join(_tool_line(tool, limits, room) for tool in tools)
    system += "".join("\n" + _text(message) for message in own)
    segments = _turn("system", system, frame)
    for message in messages:
        role = message.get("role")
        if role == "user":
            segments += _turn("user", _text(message), frame)
        elif role == "assistant":
            segments += _turn("assistant", _assistant_text(message), frame)
        elif role in ("tool", "function"):
            segments += _turn("tool", "Observation: " + middle_cut(_text(message), TOOL_RESULT_CHARS), frame)
        elif role not in ("system", "developer"):
            raise PatternError(f"cannot read a message of role {role!r}")
    segments += [Segment(frame.open_control, True), Segment(frame.open_text.format(role="assistant"))]
    return _merged(segments)


def middle_cut(text: str, limit: int) -> str:
    """`text` with its middle left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return text[:half] + " … " + text[-half:]


def _tool_line(tool: Mapping[str, Any], limits: SignatureLimits, room: Room) -> str:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise PatternError(f"cannot read a tool of type {tool.get('type')!r}")
    parameters = function.get("parameters") or {}
    schema = parameters if isinstance(parameters, Mapping) else {}
    name, about = str(function["name"]), str(function.get("description") or "")
    return signature(written_name(name), about, schema, limits, room) + "\n"


def _assistant_text(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    if not calls:
        return _text(message)
    pairs = [call.get("function") or {} for call in calls]
    made = tuple(ParsedCall(str(f.get("name", "")), _one_line_json(f.get("arguments") or "{}")) for f in pairs)
    return render_draft(Parsed("calls", tuple(call.name for call in made), made))


def _one_line_json(text: str) -> str:
    try:
        return canonical_json(json.loads(text))
    except (ValueError, RecursionError):
        return " ".join(str(text).split())


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts = []
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "input_text", "output_text"):
            raise PatternError("cannot read a content part that is not text")
        parts.append(str(part.get("text", "")))
    return "\n".join(parts)


def _turn(role: str, content: str, frame: Frame) -> list[Segment]:
    if frame.guard:
        content = "\n".join(" " + line if line.startswith(frame.guard) else line for line in content.split("\n"))
    return [
        Segment(frame.open_control, True),
        Segment(frame.open_text.format(role=role) + content),
        Segment(frame.close_control, True),
        Segment(frame.close_text),
    ]


def _merged(segments: Iterable[Segment]) -> list[Segment]:
    merged: list[Segment] = []
    for segment in segments:
        if not segment.text:
            continue
        if merged and not segment.control and not merged[-1].control:
            merged[-1] = Segment(merged[-1].text + segment.text)
        else:
            merged.append(segment)
    return merged


# ── spans ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class SpanTracker:
    """Labels a draft's text piece by piece as it is written; a state machine over characters.

    A piece that covers several labels gets the highest `Span`. Quotes, colons, commas, brackets and the pattern's own
    words are SYNTAX; strings and numbers below a key are VALUE.
    """

    def __init__(self) -> None:
        self._line = ""
        self._json: _JsonSpans | None = None

    def feed(self, piece: str) -> DraftSpan:
        """The label of the next piece of text."""
        return max((self._label(character) for character in piece), default=DraftSpan.SYNTAX)

    def _label(self, character: str) -> DraftSpan:
        if character == "\n":
            self._line, self._json = "", None
            return DraftSpan.SYNTAX
        if self._json is not None:
            return self._json.label(character)
        self._line += character
        if self._line == _INPUT:
            self._json = _JsonSpans()
            return DraftSpan.SYNTAX
        for head, span in ((_THOUGHT, DraftSpan.PLAN), (_ACTION, DraftSpan.NAME)):
            if self._line.startswith(head) and len(self._line) > len(head):
                return DraftSpan.SYNTAX if character in ", " else span
        return DraftSpan.SYNTAX


class _JsonSpans:
    """Key or value for each character of one JSON text; wrong JSON gets a label too, never an error."""

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._string: DraftSpan | None = None
        self._escaped = False
        self._expect_key = False

    def label(self, character: str) -> DraftSpan:
        if self._string is not None:
            return self._in_string(character)
        if character == '"':
            self._string = DraftSpan.KEY if self._expect_key else DraftSpan.VALUE
            return DraftSpan.SYNTAX
        if character in "{[":
            self._stack.append(character)
            self._expect_key = character == "{"
        elif character in "}]":
            if self._stack:
                self._stack.pop()
            self._expect_key = False
        elif character == ",":
            self._expect_key = bool(self._stack) and self._stack[-1] == "{"
        elif character == ":":
            self._expect_key = False
        elif character != " ":
            return DraftSpan.VALUE
        return DraftSpan.SYNTAX

    def _in_string(self, character: str) -> DraftSpan:
        assert self._string is not None
        span = self._string
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._string = None
            return DraftSpan.SYNTAX
        return span
