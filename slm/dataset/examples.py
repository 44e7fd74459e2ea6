"""Turns rows of tool-calling data into token sequences, tokenised exactly as the engine tokenises a request.

A row's gold becomes a draft of `slm.format.pattern`: the first acceptable value of each parameter that fits its schema,
in schema order, parameters that may be left out left out. A row without a call becomes `ask` where the source's reply
asks for a value (see `asks_back`) and `none` otherwise. A row that cannot be trained on exactly is refused with a
reason, never mended. Not guaranteed: that the gold is right, nor that `none` and `ask` are distinguished as every
reader would.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jsonschema_rs

from slm.dataset.splits import VALIDATION, held_out
from slm.engine.tokenizer import Tokens
from slm.format.pattern import CHATML, Kind, Parsed, PatternError, Segment, calls_draft, render_draft, render_prompt
from slm.format.signature import DEFAULT_LIMITS, SignatureLimits

IGNORED = -100
"""The label of a token that is not supervised."""

_QUESTION = re.compile(
    r"\b(what|which|where|when|who|how (many|much|long|often)|from when|"
    r"(can|could|may|would) (you|i) (please |kindly )?(tell|give|provide|specify|share|have|get|know|let|ask))\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(r"\b(confirm|correct|anything else|something else|how (can|may|else)|what else)\b", re.IGNORECASE)


class BadRow(ValueError):
    """A row that is left out of training. `reason` is one of a few fixed phrases, for counting."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Example:
    """One request and the draft that it should get. `calls`: `(tool name, arguments)`, none unless `kind` says so."""

    id: str
    source: str
    category: str
    conversation: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    kind: Kind
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @property
    def draft(self) -> Parsed:
        """The draft as the pattern holds it."""
        return calls_draft(self.calls) if self.kind == "calls" else Parsed(self.kind, ())

    def with_tools(self, tools: Iterable[Mapping[str, Any]]) -> Example:
        """The same request with other tools on offer."""
        return replace(self, tools=tuple(tools))

    @property
    def gold_names(self) -> frozenset[str]:
        """Names of the tools that are called."""
        return frozenset(name for name, _ in self.calls)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Tokens of one example; those from `prompt_tokens` on are supervised, the end token among them."""

    ids: tuple[int, ...]
    prompt_tokens: int


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def example_of(row: Mapping[str, Any]) -> Example:
    """Read an example from one row of the data format.

    Raises:
        BadRow: a field is missing or of a wrong kind, or the gold does not fit the tools' schemas.
    """
    try:
        tools, messages = tuple(row["tools"]), tuple(row["messages"])
        check_tools(tools)
        for message in messages:
            check_message(message)
        schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        meta, gold = row.get("meta") or {}, row["gold"]
        source = str(row.get("source", ""))
        kind: Kind = "calls"
        calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
        if gold["kind"] == "calls":
            calls = tuple((call["name"], _arguments(call, schemas)) for call in gold["calls"])
        elif gold["kind"] == "no_call":
            kind = "ask" if tools and asks_back(messages, str(meta.get("reply") or "")) else "none"
        else:
            raise BadRow("gold cannot be taught", str(gold["kind"]))
        if kind == "calls" and not calls:
            raise BadRow("gold without calls")
        conversation = f"{source}/{meta.get('conversation', row['id'])}"
        category = str(row.get("category", ""))
        return Example(str(row["id"]), source, category, conversation, messages, tools, kind, calls)
    except (KeyError, TypeError, AttributeError) as exc:
        raise BadRow("malformed", type(exc).__name__) from exc


def check_tools(tools: Iterable[Any]) -> None:
    """Refuse tools that are no definitions of functions, or could not be varied as such.

    Raises:
        BadRow: a tool is malformed, or two have one name.
    """
    names: set[str] = set()
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow("malformed", "a tool without a function's name")
        if not isinstance(function.get("description"), str | None) or not _is_plain(function.get("parameters")):
            raise BadRow("malformed", f"tool {function['name']}")
        if function["name"] in names:
            raise BadRow("two tools of one name", function["name"])
        names.add(function["name"])


def _is_plain(parameters: Any) -> bool:
    """True if a schema's outermost level has the shape of an object's; None stands for no parameters."""
    if parameters is None:
        return True
    if not isinstance(parameters, Mapping) or not isinstance(parameters.get("properties"), Mapping | None):
        return False
    required = parameters.get("required") or []
    return isinstance(required, list) and all(isinstance(key, str) for key in required)


def check_message(message: Any) -> None:
    """Refuse a message that is no chat message, or calls anything but functions with arguments as text.

    Raises:
        BadRow: it is malformed.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadRow("malformed", "a message without a role")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise BadRow("malformed", "calls that are no list")
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if (
            not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), str | None)
        ):
            raise BadRow("malformed", "a call without a function's name and arguments as text")


def asks_back(messages: Sequence[Mapping[str, Any]], reply: str) -> bool:
    """True if a reply to a user asks for a value: its last sentence asks or begs for one and confirms nothing."""
    last = re.split(r"(?<=[.!?])\s+", reply.strip())[-1]
    asked = last.endswith("?") and _QUESTION.search(last) is not None and _CLOSING.search(last) is None
    return asked and bool(messages) and messages[-1].get("role") == "user"


def _arguments(call: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    name = call["name"]
    if name not in schemas:
        raise BadRow("gold calls a tool that is not offered", name)
    schema = schemas[name]
    properties = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    order = [key for key in properties if key in call["arguments"]]
    if len(order) != len(call["arguments"]):
        raise BadRow("gold gives an undeclared parameter", name)
    chosen = {}
    for key in order:
        acceptable = call["arguments"][key]
        if "" in acceptable and key not in required:
            continue
        chosen[key] = _first_fitting(acceptable, properties[key], name, key)
    if required - chosen.keys():
        raise BadRow("gold lacks a required parameter", name)
    return chosen


def schema_validator(schema: Any, where: str) -> Any:
    """A validator that follows no reference out of its schema. Raises BadRow: not a valid schema."""
    try:
        return jsonschema_rs.validator_for(schema, retriever=_refuse, validate_formats=False)
    except (ValueError, jsonschema_rs.ReferencingError) as exc:
        raise BadRow("a schema that is not valid", where) from exc


def _refuse(uri: str) -> Any:
    raise ValueError(f"a reference to {uri} is not followed")


def _first_fitting(acceptable: Sequence[Any], schema: Any, name: str, key: str) -> Any:
    validator = schema_validator(schema, f"{name}.{key}")
    for value in acceptable:
        if validator.is_valid(value):
            return value
    raise BadRow("no acceptable value fits the schema", f"{name}.{key}")


# ── splits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def split_by_conversation(
    examples: Iterable[Example], share: float, salt: str = VALIDATION
) -> tuple[list[Example], list[Example]]:
    """Split examples into `(training, validation)`; no conversation is in both."""
    parts: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        parts[held_out(example.conversation, share, salt)].append(example)
    return parts


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def end_token(tokens: Tokens) -> int:
    """The token that a draft ends with in training: the end of a turn, else the model's end of text."""
    if tokens.frame is CHATML:
        return tokens.prompt([Segment(CHATML.close_control, True)])[-1]
    return min(tokens.end_ids)


def encode(example: Example, tokens: Tokens, max_tokens: int, limits: SignatureLimits = DEFAULT_LIMITS) -> Encoded:
    """Tokens of the prompt and of its draft.

    Raises:
        BadRow: the prompt cannot be rendered, or the sequence is longer than `max_tokens`.
    """
    try:
        segments = render_prompt(example.messages, example.tools, tokens.frame, limits)
        draft = render_draft(example.draft)
    except (PatternError, ValueError, KeyError, AttributeError, TypeError) as exc:
        raise BadRow("cannot be rendered", str(exc)) from exc
    if tokens.at_least(segments) > max_tokens:
        raise BadRow("too long")
    prompt = tokens.prompt(segments)
    ids = (*prompt, *tokens.encode(draft), end_token(tokens))
    if len(ids) > max_tokens:
        raise BadRow("too long")
    return Encoded(ids, len(prompt))
