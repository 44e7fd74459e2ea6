"""Why an answer ended, told from what it holds: some providers call an answer with calls a plain end."""

from __future__ import annotations

_CUT = frozenset({"length", "content_filter"})
"""Ends before the answer's own: they stay, whatever came before."""
_CALLS = frozenset({"tool_calls", "function_call"})


def finish_reason(told: str, *, called: bool) -> str:
    """A chat completion's reason to end; `called`: whether the answer holds a call."""
    if called:
        return told if told in _CUT else "tool_calls"
    return "stop" if told in _CALLS else told


def stop_reason(told: str, *, called: bool) -> str:
    """A message's reason to end; `called`: whether it holds a `tool_use` block."""
    if told == "end_turn" and called:
        return "tool_use"
    return "end_turn" if told == "tool_use" and not called else told
