"""Is every drafted call well formed: known tool, strict JSON, full JSON Schema, right number of calls.

A list of findings with paths, not a boolean. Schemas are judged by jsonschema-rs (draft 2020-12 unless `$schema` says
otherwise, formats on) with a linear-time regex engine and a retriever that refuses: nothing is fetched and no pattern
runs away. Not guaranteed: that a valid call is the right one. Messages never hold argument values.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema_rs

from policies.schema_guard import inspect
from policies.types import Draft, DraftCall, Outcome, Request, Tool

Code = Literal[
    "unparsable",
    "truncated",
    "wrong_arity",
    "too_many_calls",
    "unknown_tool",
    "bad_json",
    "duplicate_key",
    "not_an_object",
    "schema",
    "schema_unsupported",
]

MAX_CALLS = 64
MAX_ARGUMENTS_CHARS = 200_000
MAX_DEPTH = 64
MAX_FINDINGS = 16
MAX_TOOLS = 4_096


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `path` is a JSON pointer: `/calls/0/arguments/city` or `/tools/3/parameters`."""

    code: Code
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} at {self.path or '/'}: {self.message}"


class _Refused(ValueError):
    """Arguments that are no strict JSON."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code


def check(request: Request, draft: Draft) -> tuple[Finding, ...]:
    """All findings of a draft, at most `MAX_FINDINGS`; empty where it is well formed."""
    if draft.outcome is Outcome.UNPARSABLE:
        return (Finding("unparsable", "", "the draft does not follow the pattern"),)
    if not draft.complete:
        return (Finding("truncated", "", "the draft ended on a limit"),)
    findings = list(_arity(request, draft))
    tools = {tool.name: tool for tool in request.tools}
    for index, call in enumerate(draft.calls[:MAX_CALLS]):
        findings += _check_call(tools, call, f"/calls/{index}")
        if len(findings) >= MAX_FINDINGS:
            break
    return tuple(findings[:MAX_FINDINGS])


def unsupported_tools(tools: Sequence[Tool]) -> tuple[Finding, ...]:
    """Tools whose schemas cannot be judged here; a request that offers one belongs to the large model."""
    if len(tools) > MAX_TOOLS:
        return (Finding("schema_unsupported", "/tools", f"more than {MAX_TOOLS} tools"),)
    findings: list[Finding] = []
    for index, tool in enumerate(tools):
        problem = inspect(tool.parameters)
        if problem is not None:
            path = f"/tools/{index}/function/parameters{problem.path}"
            findings.append(Finding("schema_unsupported", path, problem.message))
        if len(findings) >= MAX_FINDINGS:
            break
    return tuple(findings)


def decode(text: str) -> Any:
    """Strict JSON: no NaN or infinity, no key twice, bounded length and depth.

    Raises:
        ValueError: the text is none of that; the message names what, never the text.
    """
    if len(text) > MAX_ARGUMENTS_CHARS:
        raise _Refused("bad_json", f"more than {MAX_ARGUMENTS_CHARS} characters")
    if _depth(text) > MAX_DEPTH:
        raise _Refused("bad_json", f"nested deeper than {MAX_DEPTH}")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _Refused("bad_json", f"{error.msg} at character {error.pos}") from error
    except ValueError as error:
        if isinstance(error, _Refused):
            raise
        raise _Refused("bad_json", "a number with too many digits") from error


def _arity(request: Request, draft: Draft) -> list[Finding]:
    findings: list[Finding] = []
    count = len(draft.calls) if draft.outcome is Outcome.CALLS else 0
    if request.tool_choice in ("required", "named") and count == 0:
        findings.append(Finding("wrong_arity", "/calls", "a call is required and none is made"))
    if draft.outcome is Outcome.CALLS and count == 0:
        findings.append(Finding("wrong_arity", "/calls", "no call stands in a draft of calls"))
    if count > 1 and not request.parallel_tool_calls:
        findings.append(Finding("wrong_arity", "/calls", f"{count} calls where one at a time is asked for"))
    if count > MAX_CALLS:
        findings.append(Finding("too_many_calls", "/calls", f"{count} calls; at most {MAX_CALLS} are judged"))
    if request.tool_choice == "named" and any(call.name != request.forced_tool for call in draft.calls):
        findings.append(Finding("wrong_arity", "/calls", "another tool than the one that must be called"))
    return findings


def _check_call(tools: Mapping[str, Tool], call: DraftCall, path: str) -> list[Finding]:
    tool = tools.get(call.name)
    if tool is None:
        return [Finding("unknown_tool", f"{path}/name", "no tool of this name is offered")]
    try:
        arguments = decode(call.arguments)
    except _Refused as refused:
        return [Finding(refused.code, f"{path}/arguments", str(refused))]
    if not isinstance(arguments, dict):
        return [Finding("not_an_object", f"{path}/arguments", "arguments must be a JSON object")]
    return _schema_findings(tool, arguments, f"{path}/arguments")


def _schema_findings(tool: Tool, arguments: Mapping[str, Any], path: str) -> list[Finding]:
    problem = inspect(tool.parameters)
    if problem is not None:
        return [Finding("schema_unsupported", path, problem.message)]
    validator = _validator(json.dumps(tool.parameters, sort_keys=True))
    if isinstance(validator, str):
        return [Finding("schema_unsupported", path, validator)]
    findings = []
    try:
        for error in validator.iter_errors(arguments):
            pointer = "".join(f"/{part}" for part in error.instance_path)
            keyword = error.kind.name if hasattr(error.kind, "name") else type(error.kind).__name__
            findings.append(Finding("schema", path + pointer, f"breaks {keyword}"))
            if len(findings) >= MAX_FINDINGS:
                break
    except ValueError:
        return [Finding("schema_unsupported", path, "the arguments hold a number that cannot be judged")]
    return findings


@functools.lru_cache(maxsize=1024)
def _validator(schema_text: str) -> Any:
    """The compiled validator, or the reason why there is none, as text."""
    schema = json.loads(schema_text)
    try:
        return jsonschema_rs.validator_for(
            schema,
            validate_formats=True,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20),
            retriever=_refuse,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        return f"the schema does not compile: {type(error).__name__}"


def _refuse(uri: str) -> Any:
    raise ValueError("references outside the document are not followed")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _Refused("duplicate_key", "a key stands twice in one object")
    return made


def _no_constant(name: str) -> Any:
    raise _Refused("bad_json", f"{name} is not JSON")


def _depth(text: str) -> int:
    """The deepest nesting of brackets outside strings."""
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside, escaped = _in_string(character, escaped)
        elif character == '"':
            inside = True
        elif character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest


def _in_string(character: str, escaped: bool) -> tuple[bool, bool]:
    if escaped:
        return True, False
    return character != '"', character == "\\"
