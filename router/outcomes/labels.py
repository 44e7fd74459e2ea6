"""Labels from what happens next: an agent's next request brings the results of the calls that were answered before.

Everything is read off one request: it carries its whole conversation, so replicas share nothing. What each call shows:

| seen | label |
|---|---|
| a result that blames the call (400, 404, 409, 422, a validation message, an error flag) | 0, strong |
| a result that blames the environment (401, 403, 408, 410, 429, 5xx, time-outs) | none |
| the same tool again with other arguments within two turns | 0, medium |
| the same call again | none |
| an error of which nobody knows whose | 0, weak |
| the user corrects or says it again in other words | 0, weak |
| a result, then progress: an answer, or another tool | 1, weak |
| a result, and nothing yet | none |

Weak labels may train, they certify nothing. Not guaranteed: that a call with a result was right (a 200 can be the wrong
call); that asking a tool twice was a correction (it may have been two questions): this is why that is medium.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from policies.texts import texts
from router.outcomes.tool_results import OK, Fault, ToolResult, read_result

Strength = Literal["strong", "medium", "weak", "none"]
MAX_CALLS = 32
"""Most calls of one request that are examined: the newest."""
_TURNS = 4
"""Number of answers whose calls are examined: older ones were when they were new."""
_WITHIN = 2
_NEAR = 0.6
"""Share of words in which two messages of the user agree that say the same."""
_CORRECTION = re.compile(
    r"\s*(?:no\b|nope\b|wrong\b|not (?:that|what|quite|right)\b|that(?:'s| is) (?:not|wrong)|incorrect"
    r"|i (?:meant|said)\b|actually\b|instead\b|you (?:should|were|misunderstood)|please (?:try|do it) again"
    r"|try again\b|again, )",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Observation:
    """The label of one call. `label`: 1 right, 0 wrong, None: nothing is known of it."""

    call_id: str
    tool: str
    label: int | None
    strength: Strength
    reason: str
    fault: Fault


@dataclass(slots=True)
class _Call:
    call_id: str
    tool: str
    arguments: str
    turn: int
    """Which answer with calls it belongs to."""
    at: int
    """Index of its message."""
    result: ToolResult | None = None


@dataclass(slots=True)
class _Seen:
    calls: list[_Call] = field(default_factory=list)
    turns: int = 0


def brings_results(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if there may be anything to observe: cheap, for the path of a request."""
    return any(message.get("role") == "tool" for message in messages[-12:])


def error_flags(native: Mapping[str, Any]) -> frozenset[str]:
    """Ids of calls whose result a Messages client marked as an error; empty for the other dialects."""
    flagged = set()
    turns = native.get("messages")
    for turn in turns if isinstance(turns, list) else ():
        content = turn.get("content") if isinstance(turn, dict) else None
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict) and block.get("type") == "tool_result" and block.get("is_error") is True:
                flagged.add(str(block.get("tool_use_id")))
    return frozenset(flagged)


def observations(
    messages: Sequence[Mapping[str, Any]], flagged: frozenset[str] = frozenset()
) -> tuple[Observation, ...]:
    """Return what a conversation, as chat completions, shows of its newest calls.

    Args:
        flagged: ids of calls whose result the client marked as an error.
    """
    seen = _read(messages, flagged)
    newest = [call for call in seen.calls if call.turn > seen.turns - _TURNS and call.result is not None]
    return tuple(_observed(call, seen, messages) for call in newest[-MAX_CALLS:])


def _read(messages: Sequence[Mapping[str, Any]], flagged: frozenset[str]) -> _Seen:
    seen, by_id = _Seen(), dict[str, _Call]()
    for at, message in enumerate(messages):
        made = message.get("tool_calls") if message.get("role") == "assistant" else None
        if isinstance(made, list) and made:
            seen.turns += 1
            for call in _calls(made, seen.turns, at):
                seen.calls.append(call)
                by_id[call.call_id] = call
        elif message.get("role") == "tool":
            answered = by_id.get(str(message.get("tool_call_id")))
            if answered is not None:
                answered.result = read_result(_text(message.get("content")), flagged=answered.call_id in flagged)
    return seen


def _calls(made: Iterable[Any], turn: int, at: int) -> Iterable[_Call]:
    for call in made:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(call.get("id"), str) and isinstance(function.get("name"), str):
            yield _Call(call["id"], function["name"], _canonical(function.get("arguments")), turn, at)


def _observed(call: _Call, seen: _Seen, messages: Sequence[Mapping[str, Any]]) -> Observation:
    result = call.result or OK

    def found(label: int | None, strength: Strength, reason: str, fault: Fault) -> Observation:
        return Observation(call.call_id, call.tool, label, strength, reason, fault)

    if result.fault is Fault.CALL:
        return found(0, "strong", result.reason, Fault.CALL)
    again = [other for other in seen.calls if other.tool == call.tool and call.turn < other.turn <= call.turn + _WITHIN]
    if any(other.arguments == call.arguments for other in again):
        return found(None, "none", "identical_retry", Fault.UNKNOWN)
    if result.fault is Fault.ENVIRONMENT:
        return found(None, "none", result.reason, Fault.ENVIRONMENT)
    if again:
        return found(0, "medium", "other_arguments", Fault.CALL)
    if result.fault is Fault.UNKNOWN:
        return found(0, "weak", result.reason, Fault.UNKNOWN)
    said = _user_says(call, messages)
    if said is not None:
        return found(0, "weak", said, Fault.CALL)
    if _progress(call, seen, messages):
        return found(1, "weak", "progress", Fault.NONE)
    return found(None, "none", result.reason, Fault.NONE)


def _user_says(call: _Call, messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the reason if the user's next message corrects the call or repeats its request, else None."""
    after = next((message for message in messages[call.at :] if message.get("role") == "user"), None)
    if after is None:
        return None
    text = _text(after.get("content"))
    if _CORRECTION.match(text):
        return "user_corrects"
    before = next((message for message in messages[call.at :: -1] if message.get("role") == "user"), None)
    return "user_rephrases" if before is not None and _alike(_text(before.get("content")), text) else None


def _progress(call: _Call, seen: _Seen, messages: Sequence[Mapping[str, Any]]) -> bool:
    if any(other.turn > call.turn for other in seen.calls):
        return True
    return any(
        message.get("role") == "assistant" and bool(_text(message.get("content")))
        for message in messages[call.at + 1 :]
    )


def _alike(one: str, other: str) -> bool:
    a, b = (set(re.findall(r"\w+", text[:2000].lower())) for text in (one, other))
    return len(a & b) >= _NEAR * len(a | b) if a and b else False


def _text(content: Any) -> str:
    return "\n".join(texts(content))


def _canonical(arguments: Any) -> str:
    text = arguments if isinstance(arguments, str) else ""
    try:
        return orjson.dumps(orjson.loads(text or "{}"), option=orjson.OPT_SORT_KEYS).decode()
    except (orjson.JSONDecodeError, TypeError):
        return text
