"""Results right behind their calls: providers refuse a conversation in which anything stands between the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def adjacent(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with every tool's result moved behind the turn that made its call, in the order in which they came.
    A result belongs to the latest call of its id before it that has none yet, else to one behind it; one without a call
    stays where it is. A conversation in order is given back as it is."""
    if all(message.get("role") != "tool" for message in messages):
        return messages
    results, moved = _owned(messages)
    ordered: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        if index not in moved:
            ordered.append(message)
            ordered += (messages[result] for result in results.get(index, ()))
    same = all(before is after for before, after in zip(messages, ordered, strict=True))
    return messages if same else ordered


def _owned(messages: Sequence[Mapping[str, Any]]) -> tuple[dict[int, list[int]], set[int]]:
    """The places of results by the place of the turn that made their calls, and the same places as one set."""
    waiting: dict[str | None, list[int]] = {}
    """Turns with an unanswered call, by the call's id."""
    early: dict[str | None, list[int]] = {}
    results: dict[int, list[int]] = {}
    for index, message in enumerate(messages):
        if message.get("role") == "tool":
            call_id = message.get("tool_call_id")
            if waiting.get(call_id):
                results.setdefault(waiting[call_id].pop(), []).append(index)
            else:
                early.setdefault(call_id, []).append(index)
        elif message.get("role") == "assistant":
            for call in message.get("tool_calls") or ():
                waiting.setdefault(call.get("id"), []).append(index)
    for call_id, places in early.items():
        for turn, place in zip(waiting.get(call_id, ()), places, strict=False):
            if place < turn:
                results.setdefault(turn, []).append(place)
    moved = {place for places in results.values() for place in places}
    return {turn: sorted(places) for turn, places in results.items()}, moved
