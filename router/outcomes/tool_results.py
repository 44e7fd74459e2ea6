"""Reads what a tool's result says of the call that asked for it: whose fault a failure was.

A call is blamed only where the result looks like an error *and* says that what was asked was wrong. What the
environment did (credentials, limits, outages, time-outs) says nothing of the call. The words and codes
are those that tools and MCP servers use; a tool that reports failure in words of its own is read as having succeeded.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

MAX_CHARS = 4_000
"""Characters of a result's text that are searched for words."""
_MAX_JSON_CHARS = 100_000
_CALLS_FAULT = frozenset({400, 404, 409, 422})
_ENVIRONMENTS_FAULT = frozenset({401, 403, 408, 410, 429})
_BAD_PARAMS = frozenset({-32602, -32601})
"""JSON-RPC: invalid params, method not found."""
_STATUS_KEYS = ("status", "status_code", "statusCode", "http_status", "code")
_STATUS = re.compile(r"\b(?:http|status(?:[ _]code)?|error(?:[ _]code)?|code)\W{0,3}([45]\d\d)\b", re.IGNORECASE)
_ERROR_LIKE = re.compile(
    r"\s*(?:error|exception|traceback|failed|failure|fatal|\w+(?:error|exception)\b)", re.IGNORECASE
)
_ENVIRONMENT = re.compile(
    r"timed? ?out|rate.?limit|too many requests|unauthori[sz]ed|forbidden|permission denied|access denied"
    r"|service unavailable|temporarily unavailable|internal server error|bad gateway|quota"
    r"|connection (?:refused|reset|error|aborted)|network|expired",
    re.IGNORECASE,
)
_ARGUMENTS = re.compile(
    r"validation|invalid|malformed|missing|required|not a valid|must be|unexpected (?:keyword )?argument|unknown"
    r"|unsupported value|out of range|typeerror|valueerror|keyerror|not found|does not exist|no such|unrecogni[sz]ed"
    r"|expected",
    re.IGNORECASE,
)


class Fault(StrEnum):
    """Who is to blame."""

    CALL = "call"
    ENVIRONMENT = "environment"
    UNKNOWN = "unknown"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The outcome of a tool call; `reason` is a stable word."""

    fault: Fault
    reason: str


OK = ToolResult(Fault.NONE, "executed")


def read_result(text: str, *, flagged: bool = False) -> ToolResult:
    """Return whose fault a result shows, and why.

    Args:
        text: as the model sees it.
        flagged: the client marked it as an error (`is_error` in Messages).
    """
    body = _object(text)
    flagged = flagged or bool(body and body.get("isError") is True)
    code = _code(body) if body else None
    seen = text[:MAX_CHARS]
    error_like = flagged or (_failed(body) if body else bool(_ERROR_LIKE.match(seen)))
    if code is None and error_like:
        status = _STATUS.search(seen)
        code = int(status[1]) if status else None
    if code is not None:
        by_code = _by_code(code)
        if by_code is not None:
            return by_code
    if not error_like:
        return OK
    if _ENVIRONMENT.search(seen):
        return ToolResult(Fault.ENVIRONMENT, "environment_error")
    if _ARGUMENTS.search(seen):
        return ToolResult(Fault.CALL, "argument_error")
    return ToolResult(Fault.CALL, "tool_error") if flagged else ToolResult(Fault.UNKNOWN, "error_without_cause")


def _by_code(code: int) -> ToolResult | None:
    if code in _CALLS_FAULT or code in _BAD_PARAMS:
        return ToolResult(Fault.CALL, f"status_{abs(code)}")
    if code in _ENVIRONMENTS_FAULT or 500 <= code <= 599:
        return ToolResult(Fault.ENVIRONMENT, f"status_{code}")
    return None


def _object(text: str) -> dict[str, Any] | None:
    if text.lstrip()[:1] != "{" or len(text) > _MAX_JSON_CHARS:
        return None
    try:
        body = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _failed(body: dict[str, Any]) -> bool:
    """Return True if an object says of itself that it is a failure."""
    if body.get("error") or body.get("errors") or body.get("exception"):
        return True
    if body.get("success") is False or body.get("ok") is False:
        return True
    status = body.get("status")
    return isinstance(status, str) and status.lower() in ("error", "failed", "failure")


def _code(body: dict[str, Any]) -> int | None:
    """The status that an object gives: its own, or that of the error in it."""
    inner = body.get("error")
    for place in (body, inner if isinstance(inner, dict) else {}):
        for key in _STATUS_KEYS:
            value = place.get(key)
            if isinstance(value, str) and re.fullmatch(r"-?\d{3,5}", value):
                value = int(value)
            if type(value) is int and (400 <= value <= 599 or value in _BAD_PARAMS):
                # "code" is also what many records call their own number: it must stand beside an error.
                if key == "code" and place is body and not _failed(body):
                    continue
                return value
    return None
