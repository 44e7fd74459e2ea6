"""litellm's answers as OpenAI's: without the fields that litellm adds and fills with nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def completion(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer. What a provider really said, such as reasoning or a refusal, stays."""
    body = _filled(dumped)
    body["choices"] = [_choice(choice) for choice in dumped.get("choices") or ()]
    return _with_usage(body, dumped.get("usage"))


def chunk(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """One piece of a stream, without usage."""
    body = _filled(dumped)
    body.pop("usage", None)
    body["choices"] = [_delta(choice) for choice in dumped.get("choices") or ()]
    return body


def usage_chunk(dumped: Mapping[str, Any]) -> dict[str, Any]:
    """The last piece: usage and no choices."""
    body = _filled(dumped)
    body["choices"] = []
    return _with_usage(body, dumped.get("usage"))


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    given = choice.get("message") or {}
    extra = given.get("provider_specific_fields") or {}
    message = {"role": given.get("role"), "content": given.get("content"), "refusal": extra.get("refusal")}
    message |= {key: value for key, value in _filled(given).items() if key not in message}
    return {
        **_filled(choice),
        "index": choice.get("index", 0),
        "message": message,
        "logprobs": choice.get("logprobs"),
        "finish_reason": choice.get("finish_reason"),
    }


def _delta(choice: Mapping[str, Any]) -> dict[str, Any]:
    given = choice.get("delta") or {}
    delta = _filled(given)
    if "tool_calls" in delta:
        delta["tool_calls"] = [_call(call) for call in delta["tool_calls"]]
    if "role" in delta:
        delta.setdefault("content", None)
    return {
        **_filled(choice),
        "index": choice.get("index", 0),
        "delta": delta,
        "logprobs": choice.get("logprobs"),
        "finish_reason": choice.get("finish_reason"),
    }


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A piece of a call: its id, type and name stand in its first piece only."""
    piece = {key: value for key, value in call.items() if value is not None}
    if isinstance(piece.get("function"), dict):
        piece["function"] = {key: value for key, value in piece["function"].items() if value is not None}
    if "id" not in piece:
        piece.pop("type", None)
    return piece


def _with_usage(body: dict[str, Any], usage: Mapping[str, Any] | None) -> dict[str, Any]:
    body.pop("usage", None)
    if usage:
        shown = {key: _filled(value) if isinstance(value, dict) else value for key, value in usage.items()}
        body["usage"] = {key: value for key, value in shown.items() if value is not None and key != "cost"}
    return body


def _filled(value: Mapping[str, Any]) -> dict[str, Any]:
    hidden = ("provider_specific_fields",)
    return {key: inner for key, inner in value.items() if inner is not None and key not in hidden}
