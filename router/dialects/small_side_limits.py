"""What a request refers to that the small model has not seen, or is not shown: such a request goes large.

The client sends the whole conversation, so nothing hangs on memory here. Dialects look for what cannot be said in chat
completions (a provider's reasoning, its stored files); here is what can be seen in the messages themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from policies.texts import texts
from router.dialects.request import LargeOnlyRequest
from slm.format.pattern import TOOL_RESULT_CHARS

OF_EARLIER_TURNS = frozenset({"reasoning_unseen", "audio", "tool_result_unmatched", "tool_result_cut"})
"""Reasons that no conversation begins with: they may hang on who answered its earlier turns."""
_REASONING_FIELDS = ("reasoning", "reasoning_content", "reasoning_details", "thinking_blocks")


def unseen(messages: Sequence[Mapping[str, Any]], param: str | None = None) -> LargeOnlyRequest | None:
    """The first thing in the conversation that the small model cannot know, or None.

    - `reasoning_unseen`: an assistant's turn rests on reasoning that only its author can read, or go on from.
    - `audio`: an assistant's turn is a recording that its provider keeps.
    - `tool_result_unmatched`: a tool's result without the call that it answers: earlier turns were left out.
    - `tool_result_cut`: a tool's result is longer than the small model is shown.

    Args:
        param: the field to name, where the client's messages are not these; None: the message itself.
    """
    found = _unseen(messages)
    return found if found is None or param is None else LargeOnlyRequest(found.reason, param)


def _unseen(messages: Sequence[Mapping[str, Any]]) -> LargeOnlyRequest | None:
    called: set[Any] = set()
    for index, message in enumerate(messages):
        role = message.get("role")
        if role == "assistant":
            for field in _REASONING_FIELDS:
                if message.get(field):
                    return LargeOnlyRequest("reasoning_unseen", f"messages[{index}].{field}")
            if message.get("audio"):
                return LargeOnlyRequest("audio", f"messages[{index}].audio")
            called.update(call.get("id") for call in message.get("tool_calls") or ())
        elif role == "tool":
            if message.get("tool_call_id") not in called:
                return LargeOnlyRequest("tool_result_unmatched", f"messages[{index}].tool_call_id")
            if sum(map(len, texts(message.get("content")))) > TOOL_RESULT_CHARS:
                return LargeOnlyRequest("tool_result_cut", f"messages[{index}].content")
    return None
