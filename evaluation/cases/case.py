"""A case: one request, the tools it offers, and what a right answer is. Read from JSON lines; see `evaluation/data`.

A case asks for the assistant's next message only. Nothing is executed, so a right call is one that says what the gold
says, not one that is known to work. Tool definitions are kept as they came: they are not checked to be valid schemas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from evaluation.cases.jsonl import MAX_LINE_BYTES, RowError, read_rows


class GoldCall(msgspec.Struct, frozen=True):
    """One right call: for each parameter the acceptable values; `""` among them means that it may be left out.

    In cases of source `bfcl`, an acceptable object's own values are again lists of acceptable values.
    """

    name: str
    arguments: dict[str, list[Any]]


class CallsGold(msgspec.Struct, tag="calls", tag_field="kind", frozen=True):
    """These calls and no others are right; in this order only if `ordered`."""

    calls: list[GoldCall]
    ordered: bool = False


class NoCallGold(msgspec.Struct, tag="no_call", tag_field="kind", frozen=True):
    """Text is right and any call is wrong."""


class AnyCallGold(msgspec.Struct, tag="any_call", tag_field="kind", frozen=True):
    """Some call is right; the source names none."""


class ToolNamesGold(msgspec.Struct, tag="tool_names", tag_field="kind", frozen=True):
    """The relevant tools; nothing is known of their arguments."""

    names: list[str]


class UnknownGold(msgspec.Struct, tag="none", tag_field="kind", frozen=True):
    """The source says nothing about the right answer: the case can be run and cannot be scored."""


class ToldGold(msgspec.Struct, tag="told", tag_field="kind", frozen=True):
    """Nobody wrote down what is right, but answers come with the word of somebody who knows: a decision of a ledger."""


Gold = CallsGold | NoCallGold | AnyCallGold | ToolNamesGold | UnknownGold | ToldGold


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One request with its gold. `messages` and `tools` are OpenAI chat-completions JSON; further keys are ignored."""

    id: str
    source: str
    split: Literal["train", "test"]
    category: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    gold: Gold
    meta: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id is empty")
        if not self.messages or self.messages[-1].get("role") not in {"user", "tool"}:
            raise ValueError("messages must end with a message of the user or of a tool")
        names = []
        for index, tool in enumerate(self.tools):
            function = tool.get("function")
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise ValueError(f"tools[{index}].function.name is missing")
            names.append(function["name"])
        if len(set(names)) != len(names):
            raise ValueError("two tools have the same name")

    @property
    def scorable(self) -> bool:
        """True if the right answer can be known."""
        return not isinstance(self.gold, UnknownGold)

    @property
    def conversation(self) -> str:
        """The key that rows of one dialogue share: `meta.conversation` within the source, else the case's own id."""
        return f"{self.source}/{self.meta.get('conversation', self.id)}"

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the offered tools, in the order in which they are offered."""
        return tuple(tool["function"]["name"] for tool in self.tools)

    @property
    def gold_names(self) -> tuple[str, ...]:
        """Names of the tools that the gold calls, sorted, each once."""
        match self.gold:
            case CallsGold(calls=calls):
                return tuple(sorted({call.name for call in calls}))
            case ToolNamesGold(names=names):
                return tuple(sorted(set(names)))
            case _:
                return ()

    def parameters_of(self, tool: str) -> Mapping[str, Any]:
        """JSON Schema of the named tool's parameters; empty if the tool is not offered or declares none."""
        for definition in self.tools:
            if definition["function"]["name"] == tool:
                parameters = definition["function"].get("parameters")
                return parameters if isinstance(parameters, dict) else {}
        return {}


def load_cases(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> list[Case]:
    """All cases of a `.jsonl.gz` or `.jsonl` file. Raises RowError (file, line, field), also for an id seen before."""
    first_line: dict[str, int] = {}
    cases: list[Case] = []
    for line, case in read_rows(path, Case, max_line_bytes=max_line_bytes):
        if case.id in first_line:
            raise RowError(path, line, f"id {case.id!r} stands in line {first_line[case.id]} already - at `$.id`")
        first_line[case.id] = line
        cases.append(case)
    return cases


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces and ASCII only: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def data_hash(cases: Iterable[Case]) -> str:
    """SHA-256 (hex) over the cases' whole content, whatever their order: what a figure was measured on."""
    digests = sorted(hashlib.sha256(canonical_json(msgspec.to_builtins(case))).digest() for case in cases)
    total = hashlib.sha256()
    for digest in digests:
        total.update(digest)
    return total.hexdigest()
