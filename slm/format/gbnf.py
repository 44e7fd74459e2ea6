"""The grammar of a draft in llama.cpp's form (GBNF), which other servers read too.

What `slm.format.grammar` says about types, keys, required keys, enums and alternatives is said here too; patterns,
lengths, formats and ranges are not. Where the rules grow long, the arguments of the tools that come last are any
object. These rules cannot know what was planned: any offered tool may follow any plan, and such a draft does not parse.
Importing this module imports no model library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from slm.format.argument_schema import DEFAULT_LIMITS, Allowance, Detail, drafted_schema
from slm.format.pattern import MAX_CALLS, canonical_json, written_name
from slm.protocol import ToolChoice

MAX_GRAMMAR_CHARS = 200_000
"""Largest length of a grammar that is read, and of the rules of arguments that are written."""
MAX_GRAMMAR_SYMBOLS = 4_000
"""Largest number of symbols of a grammar, as counted by `symbols`: reading takes time quadratic in their number, and
thousands of rules that lead to one another exhaust the compiler's stack."""
_SYMBOL = re.compile(
    r"""\#[^\r\n]* | "(?:\\.|[^"\\])*"? | (?P<characters>\[(?:\\.|[^\]\\])*\]?) | [\w-]+ | ::= | [|.*+?(){}]""",
    re.DOTALL | re.VERBOSE,
)
"""Unclosed literals and classes reach to the end, so that a text is read once."""
_SYMBOLS_OF_PLANS, _SYMBOLS_OF_A_TOOL = 64, 8
"""Upper bounds on symbols, rules of arguments excluded."""
_NODES = 10 * DEFAULT_LIMITS.nodes
"""Bound on the nodes of all schemas in one grammar."""

_PRIMITIVES = r"""
string ::= "\"" char* "\""
char ::= [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?
boolean ::= "true" | "false"
null ::= "null"
array ::= "[" (value (", " value)*)? "]"
object ::= "{" (string ": " value (", " string ": " value)*)? "}"
value ::= object | array | string | number | boolean | null
"""


def symbols(grammar: str) -> int:
    """Literals, names, numbers, comments, operators and brackets, and each character of a class, in a grammar's text.

    Takes any text in time linear in its length.
    """
    return sum(len(found[0]) if found["characters"] else 1 for found in _SYMBOL.finditer(grammar))


def draft_grammar(
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice = "auto",
    forced: str | None = None,
    *,
    parallel: bool = True,
) -> str:
    """Drafts that may be made with these tools (OpenAI definitions, names as `slm.format.grammar.Offer` accepts them).

    Raises:
        ValueError: a call is required and there is no tool for it.
    """
    offered = [tool["function"] for tool in tools if choice != "named" or tool["function"]["name"] == forced]
    if choice != "auto" and not offered:
        raise ValueError("a call is required and no tool is offered")
    writer = _Writer(len(offered))
    written, bodies = [], []
    for index, function in enumerate(offered):
        name = _literal(written_name(function["name"]))
        arguments = writer.arguments(f"t{index}", function.get("parameters"))
        written.append(name)
        bodies.append(f'"Action: " {name} "\\nAction Input: " {arguments}')
    more = MAX_CALLS - 1 if parallel and choice != "named" else 0
    drafts = ['"none\\nAction: none"', '"ask\\nAction: ask"'] if choice == "auto" else []
    rules = []
    if offered:
        # A repetition of {0,0} is no grammar to some readers.
        names, calls = (f" ({rule}){{0,{more}}}" if more else "" for rule in ('", " name', r'"\n" call'))
        drafts.append(rf'name{names} "\n" call{calls}')
        rules = ["name ::= " + " | ".join(written), "call ::= " + " | ".join(bodies)]
    return "\n".join(['root ::= "Thought: " (' + " | ".join(drafts) + ")", *rules, *writer.rules]) + _PRIMITIVES


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class _Writer:
    """Collects rules; every method returns an expression that names them."""

    def __init__(self, tools: int) -> None:
        self.rules: list[str] = []
        self._prefix = ""
        self._count = 0
        self._allowance = Allowance(_NODES)
        self._left = MAX_GRAMMAR_CHARS
        self._symbols = MAX_GRAMMAR_SYMBOLS - symbols(_PRIMITIVES) - _SYMBOLS_OF_PLANS - _SYMBOLS_OF_A_TOOL * tools

    def arguments(self, prefix: str, parameters: Any) -> str:
        """Rules of one tool's arguments, with `prefix` in their names; any object once the budget is spent."""
        if min(self._left, self._symbols) <= 0:
            return "object"
        before = len(self.rules)
        schema, _ = drafted_schema(parameters, Detail.STRUCTURE, allowance=self._allowance)
        value = self._arguments(prefix, schema)
        self._left -= len(value) + sum(map(len, self.rules[before:]))
        self._symbols -= symbols(value) + sum(map(symbols, self.rules[before:]))
        if min(self._left, self._symbols) > 0:
            return value
        del self.rules[before:]
        return "object"

    def _arguments(self, prefix: str, schema: Mapping[str, Any]) -> str:
        self._prefix = prefix
        for name, definition in schema.get("$defs", {}).items():
            self.rules.append(f"{prefix}-{name} ::= {self._value(definition)}")
        return self._value(schema)

    def _rule(self, body: str) -> str:
        self._count += 1
        name = f"r{self._count}"
        self.rules.append(f"{name} ::= {body}")
        return name

    def _value(self, schema: Mapping[str, Any]) -> str:
        if "$ref" in schema:
            return f"{self._prefix}-{schema['$ref'].rpartition('/')[2]}"
        if "enum" in schema:
            return "(" + " | ".join(_literal(canonical_json(value)) for value in schema["enum"]) + ")"
        if "anyOf" in schema:
            return "(" + " | ".join(self._value(option) for option in schema["anyOf"]) + ")"
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return "(" + " | ".join(self._typed(kind, schema) for kind in kinds) + ")" if kinds else "value"

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> str:
        if kind == "object" and "properties" in schema:
            return self._object(schema["properties"], set(schema.get("required", ())))
        if kind == "object" and schema.get("additionalProperties") is False:
            return '"{}"'
        if kind == "array" and isinstance(schema.get("items"), Mapping):
            item = self._value(schema["items"])
            return self._rule(f'"[" ({item} (", " {item})*)? "]"')
        return kind

    def _object(self, properties: Mapping[str, Any], required: set[str]) -> str:
        """Keys in the schema's order. From the last key backwards: what may follow where something is written before
        (`after`, begins with its comma) and where nothing is (`first`)."""
        first = after = '""'
        for key in reversed(list(properties)):
            pair = f"{_literal(json.dumps(key, ensure_ascii=False) + ': ')} {self._value(properties[key])}"
            begin, go_on = f"{pair} {after}", f'", " {pair} {after}'
            if key in required:
                first, after = self._rule(begin), self._rule(go_on)
            else:
                first, after = self._rule(f"{begin} | {first}"), self._rule(f"{go_on} | {after}")
        return f'"{{" {first} "}}"'
