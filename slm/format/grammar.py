"""Constrains drafts: the request's tools as a grammar over tokens.

Two phases. The plan grammar knows the tools' names only, so a thousand tools cost a thousand words; when the `Thought:`
line stands, a second grammar holds that line as a literal and the schemas of the planned tools, and reads what is
written so far. A draft that ends by this grammar parses with `slm.format.pattern.parse_draft`, in canonical JSON, keys
in schema order, none undeclared where some are declared (see `slm.format.argument_schema`). It may still be invalid:
the judge holds it against the original schema. Lengths of free strings are not bounded here: a value that runs on ends
the draft by its token limit, which shows; closed by force it would look sound.

Schemas are hostile: compilation and each step run under `LIMITS`; where a schema is refused, or fails at a later
token, the tool falls back to structure only and then to any JSON object, each time with a warning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from slm.format.argument_schema import Detail, drafted_schema
from slm.format.pattern import MAX_CALLS, Kind, parse_plan, render_plan, written_name
from slm.protocol import ToolChoice

NAME_CHARS = 128

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=30_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""About 20 ms to build a lexer, 15 ms of lexer and 3 ms of parser work a step, 60 MB of states at the very most."""

Mask = npt.NDArray[np.bool_]


class Guide(Protocol):
    """A grammar that guides one text token by token. `Constraint` documents the methods."""

    warnings: list[str]

    @property
    def ended(self) -> bool: ...

    def forced(self) -> list[int]: ...

    def allowed(self) -> Mask: ...

    def possible(self, tokens: Sequence[int]) -> list[int]: ...

    def write(self, token: int) -> None: ...


def mask_of(bits: bytes, vocabulary: int) -> Mask:
    """A matcher's bit mask, the least significant bit first, as booleans of shape (vocabulary,)."""
    return np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little")[:vocabulary].view(np.bool_)


def leading(matcher: LLMatcher, tokens: Sequence[int]) -> list[int]:
    """Return the longest prefix of `tokens` that the matcher allows in its current state."""
    return list(tokens[: matcher.validate_tokens(list(tokens))]) if tokens else []


class GrammarError(ValueError):
    """No grammar can be built, or the one that was built gave up."""


class ToolError(ValueError):
    """The command's tools contradict its choice or cannot be named in a draft; the message names the field."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one command, in the order given, and what may be done with them."""

    parameters: Mapping[str, Any]
    """JSON Schema by tool name."""
    choice: ToolChoice = "auto"
    forced: str | None = None
    parallel: bool = True

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]], choice: ToolChoice, forced: str | None, parallel: bool) -> Offer:
        """Read OpenAI tool definitions.

        Raises:
            ToolError: a tool has no name that a draft can hold, two share one, or the choice cannot be met.
        """
        parameters: dict[str, Any] = {}
        for index, tool in enumerate(tools):
            function = tool.get("function")
            name = function.get("name") if isinstance(function, Mapping) else None
            if not isinstance(name, str) or not _writable(name):
                raise ToolError(f"tools[{index}].function.name: not a name of 1 to {NAME_CHARS} printable characters")
            if name in parameters:
                raise ToolError(f"tools[{index}].function.name: {name!r} is named twice")
            assert isinstance(function, Mapping)
            parameters[name] = function.get("parameters")
        if choice == "named" and forced not in parameters:
            raise ToolError(f"forced_tool: {forced!r} is not among the tools")
        if choice == "required" and not parameters:
            raise ToolError("tool_choice: a call is required and no tool is offered")
        return cls(parameters, choice, forced, parallel)


def _writable(name: str) -> bool:
    plain = name.isprintable() and not any(character.isspace() or character == "," for character in name)
    return plain and 0 < len(name) <= NAME_CHARS and not name.endswith(".")


def plan_grammar(offer: Offer) -> str:
    """The first phase, in llguidance's form: the `Thought:` line and the words that always follow it."""
    if offer.choice == "named":
        assert offer.forced is not None
        names, most = [offer.forced], 1
    else:
        names, most = list(offer.parameters), MAX_CALLS if offer.parallel else 1
    plans = ['"none"', '"ask"'] if offer.choice == "auto" else []
    rules = []
    if names:
        plans.append("calls")
        rules.append("calls: NAME" + (f' (", " NAME){{0,{most - 1}}}' if most > 1 else ""))
        rules.append("NAME: " + " | ".join(_quoted(written_name(name)) for name in names))
    start = f'start: "Thought: " plan {_quoted(chr(10) + "Action: ")}'
    return _lark("\n".join([start, "plan: " + " | ".join(plans), *rules]))


def draft_grammar(kind: Kind, plan: Sequence[str], schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """The second phase: the whole draft once its plan stands.

    Args:
        schemas: drafted schema by name, for each planned tool.
    """
    line = render_plan(kind, plan)
    if kind != "calls":
        return _lark(f"start: {_quoted(line + 'Action: ' + kind)}")
    rules = {name: f"arguments{index}" for index, name in enumerate(schemas)}
    parts = []
    for index, name in enumerate(plan):
        head = "\n" if index else line
        parts.append(f"{_quoted(head + 'Action: ' + written_name(name) + chr(10) + 'Action Input: ')} @{rules[name]}")
    grammars: list[dict[str, Any]] = [{"lark_grammar": "start: " + " ".join(parts)}]
    for name, rule in rules.items():
        grammars.append({"name": rule, "json_schema": {**schemas[name], "x-guidance": _LAYOUT}})
    return json.dumps({"grammars": grammars})


def _lark(rules: str) -> str:
    grammar: str = LLMatcher.grammar_from_lark(rules)
    return grammar


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class Constraint:
    """The grammar of one draft: `allowed` and `forced` say which tokens may follow, `write` advances it.

    Not safe to share between threads.

    Raises:
        GrammarError: from any method, where even the loosest grammar fails.
    """

    def __init__(self, offer: Offer, tokenizer: LLTokenizer) -> None:
        self._offer, self._tokenizer = offer, tokenizer
        self._written: list[int] = []
        self._text = b""
        self._detail: dict[str, Detail] = {}
        self._plan: tuple[Kind, tuple[str, ...]] | None = None
        self.warnings: list[str] = []
        self._matcher = self._compiled(plan_grammar(offer))
        if self._matcher.is_error():
            raise GrammarError(f"the tools' names: {self._matcher.get_error()}")

    @property
    def plan(self) -> tuple[Kind, tuple[str, ...]] | None:
        """Kind and names once the `Thought:` line stands."""
        return self._plan

    @property
    def ended(self) -> bool:
        """True if the draft is complete and only its end may follow."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def forced(self) -> list[int]:
        """Return the tokens that must come next, as the tokeniser divides them; fewer where a longer token may span
        their end.

        There may be more behind them: ask again when they are written.
        """
        tokens: list[int] = self._matcher.compute_ff_tokens()
        while self._matcher.is_error():
            self._loosen()
            tokens = self._matcher.compute_ff_tokens()
        if self._plan is None:  # What follows the line is known to the second grammar, and so is its division.
            for index, token in enumerate(tokens):
                if b"\n" in self._tokenizer.decode_bytes([token]):
                    return tokens[: index + 1]
        return tokens

    def allowed(self) -> Mask:
        """Return the mask of tokens that may come next, shape (vocabulary,); end tokens are in it where the draft may
        end."""
        bits = self._matcher.compute_bitmask()
        while self._matcher.is_error():
            self._loosen()
            bits = self._matcher.compute_bitmask()
        return mask_of(bits, self._tokenizer.vocab_size)

    def possible(self, tokens: Sequence[int]) -> list[int]:
        """Return the longest prefix of `tokens` that the grammar allows here."""
        return leading(self._matcher, tokens)

    def write(self, token: int) -> None:
        """Advance the grammar by a token that `allowed` or `forced` returned. Raises GrammarError."""
        self._matcher.consume_token(token)
        self._written.append(token)
        while self._matcher.is_error():
            self._loosen()
        if self._plan is None:
            self._text += self._tokenizer.decode_bytes([token])
            line, newline, _ = self._text.partition(b"\n")
            if newline:
                self._plan = parse_plan(line.decode())
                self._detail = dict.fromkeys(self._plan[1], Detail.FULL)
                self._enter()

    def _enter(self) -> None:
        """Change to the second phase: the most detailed grammar that compiles and reads what is written."""
        assert self._plan is not None
        for name in self._detail:
            while self._detail[name] is not Detail.ANY and self._compiled(self._draft(name)).is_error():
                self._loosen_tool(name)
        self._matcher = self._compiled(self._draft())
        self._matcher.consume_tokens(self._written)
        while self._matcher.is_error():
            self._loosen()

    def _loosen(self) -> None:
        """Rebuild after an error at a token, with every planned tool a step looser than the most detailed one."""
        error = self._matcher.get_error()
        most = max(self._detail.values(), default=Detail.ANY)
        if self._plan is None or most is Detail.ANY:
            raise GrammarError(f"the grammar failed: {error[:200]}")
        for name, detail in self._detail.items():
            if detail is most:
                self._loosen_tool(name)
        self._matcher = self._compiled(self._draft())
        self._matcher.consume_tokens(self._written)

    def _loosen_tool(self, name: str) -> None:
        self._detail[name] = Detail(self._detail[name] - 1)
        self.warnings.append(f"{name}: schema too hard for the grammar, drafted by {self._detail[name].name.lower()}")

    def _draft(self, only: str | None = None) -> str:
        assert self._plan is not None
        kind, plan = self._plan
        schemas = {}
        for name in self._detail if only is None else [only]:
            schemas[name], notes = drafted_schema(self._offer.parameters[name], self._detail[name])
            self.warnings.extend(note for note in (f"{name}: {note}" for note in notes) if note not in self.warnings)
        return draft_grammar(kind, plan if only is None else [only], schemas)

    def _compiled(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
