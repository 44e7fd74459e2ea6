"""Reading a chat-completions body: what is refused, by which name, and what only the large model can do."""

import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.dialects.chat_completions import read_request
from router.dialects.errors import ClientError
from router.dialects.parsing import MAX_DEPTH
from router.dialects.request import ChatRequest

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def ask(**changes: Any) -> dict[str, Any]:
    """A plain request with one tool, changed as asked."""
    return {"model": "m", "messages": [{"role": "user", "content": "Paris?"}], "tools": [TOOL], **changes}


def read(body: Any) -> ChatRequest:
    return read_request(body if isinstance(body, bytes) else orjson.dumps(body))


def message(**fields: Any) -> dict[str, Any]:
    return ask(messages=[{"role": "assistant", **fields}])


def function(**fields: Any) -> dict[str, Any]:
    return ask(tools=[TOOL, {"type": "function", "function": {"name": "b", **fields}}])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'{"model": "m", "messages": [NaN]}', None),
        (b'{"model": "m", "temperature": Infinity}', None),
        (b'{"model": "m", "temperature": 1e999}', None),
        (b'{"model": "\xff"}', None),
        (b'{"model": "\\ud800"}', None),
        (b'{"a": ' + b"[" * 400_000, None),
        (b'{"a": [' + b"{}," * 600_000 + b"{}]}", None),
        (b'{"model": "' + b'\\"' * 2_000_000, None),
        (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", None),
        (ask(model=None), "model"),
        (ask(model=""), "model"),
        (ask(model="m" * 257), "model"),
        (ask(messages=[]), "messages"),
        (ask(messages="Paris?"), "messages"),
        (ask(messages=[{"content": "x"}]), "messages[0].role"),
        (ask(messages=[{"role": "user", "content": {"a": 1}}]), "messages[0].content"),
        (message(tool_calls={}), "messages[0].tool_calls"),
        (message(tool_calls=[1]), "messages[0].tool_calls[0]"),
        (message(tool_calls=[{"function": {}}]), "messages[0].tool_calls[0].function.name"),
        (
            message(tool_calls=[{"function": {"name": "a", "arguments": {}}}]),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (message(tool_calls=[{"id": {}, "function": {"name": "a"}}]), "messages[0].tool_calls[0].id"),
        (message(tool_calls=[{"id": [], "type": "custom"}]), "messages[0].tool_calls[0].id"),
        (ask(messages=[{"role": "tool", "tool_call_id": {}, "content": ""}]), "messages[0].tool_call_id"),
        (ask(n=0), "n"),
        (ask(n=-1), "n"),
        (ask(n=129), "n"),
        (ask(n=2**62), "n"),
        (ask(n=2.0), "n"),
        (ask(n=True), "n"),
        (ask(n="2"), "n"),
        (ask(tools={}), "tools"),
        (ask(tools=[TOOL] * 4097), "tools"),
        (ask(tools=[1]), "tools[0]"),
        (ask(tools=[{"type": "function"}]), "tools[0].function"),
        (function(name=""), "tools[1].function.name"),
        (function(name=7), "tools[1].function.name"),
        (function(name="get_weather"), "tools[1].function.name"),
        (function(parameters=[]), "tools[1].function.parameters"),
        (function(description=[]), "tools[1].function.description"),
        (ask(tool_choice="sometimes"), "tool_choice"),
        (ask(tool_choice=["auto"]), "tool_choice"),
        (ask(tool_choice={"type": "function"}), "tool_choice.function.name"),
        (ask(tool_choice={"type": "function", "function": {"name": "x"}}), "tool_choice.function.name"),
        (ask(stream="yes"), "stream"),
        (ask(stream_options=[]), "stream_options"),
        (ask(stream_options={"include_usage": 1}), "include_usage"),
        (ask(parallel_tool_calls=0), "parallel_tool_calls"),
        (ask(smallcall=True), "smallcall"),
        (ask(smallcall={"inculde": []}), "smallcall"),
        (ask(smallcall={"include": ["all"]}), "smallcall.include"),
    ],
)
def test_a_wrong_body_is_refused_by_the_name_of_its_field(body: Any, param: str | None) -> None:
    """400 with a message for a person, soon, whatever the size."""
    began = time.monotonic()
    with pytest.raises(ClientError) as caught:
        read(body)
    assert (caught.value.status, caught.value.param, caught.value.type) == (400, param, "invalid_request_error")
    assert caught.value.message
    assert param is None or caught.value.message.startswith(param)
    assert time.monotonic() - began < 2


PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
NAMED = {"type": "function", "function": {"name": "x"}}
CUSTOM = {"type": "custom", "custom": {"name": "shell"}}


@pytest.mark.parametrize(
    ("body", "reason", "param"),
    [
        (ask(n=2), "several_choices", "n"),
        (ask(logprobs=True), "logprobs", "logprobs"),
        (ask(functions=[{"name": "f"}]), "legacy_functions", "functions"),
        (message(function_call={"name": "f", "arguments": "{}"}), "legacy_functions", "messages[0].function_call"),
        (ask(modalities=["text", "audio"], audio={"voice": "x"}), "audio", "audio"),
        (ask(modalities=["audio"]), "modalities", "modalities"),
        (ask(web_search_options={"a": 1}), "web_search", "web_search_options"),
        (ask(response_format={"type": "json_object"}), "response_format", "response_format"),
        (ask(messages=[{"role": "user", "content": PICTURE}]), "content_not_text", "messages[0].content"),
        (ask(messages=[{"role": "oracle", "content": "x"}]), "message_role", "messages[0].role"),
        (ask(tools=[TOOL, CUSTOM]), "tool_type", "tools[1].type"),
        (message(tool_calls=[CUSTOM]), "tool_type", "messages[0].tool_calls"),
        (ask(tool_choice={"type": "allowed_tools", "allowed_tools": {}}), "tool_choice_type", "tool_choice.type"),
        (
            ask(tools=[CUSTOM], tool_choice={"type": "function", "function": {"name": "x"}}),
            "tool_type",
            "tools[0].type",
        ),
    ],
)
def test_what_only_a_large_model_can_do_is_named(body: dict[str, Any], reason: str, param: str) -> None:
    """Nothing is refused that a provider may know: it goes large for a stable reason."""
    only = read(body).large_only
    assert only is not None
    assert (only.reason, only.param) == (reason, param)


@pytest.mark.parametrize(
    ("choice", "seen"),
    [
        (None, ("auto", None)),
        ("auto", ("auto", None)),
        ("none", ("none", None)),
        ("required", ("required", None)),
        ({"type": "function", "function": {"name": "get_weather"}}, ("named", "get_weather")),
    ],
)
def test_all_forms_of_tool_choice_are_read(choice: Any, seen: tuple[str, str | None]) -> None:
    """Auto, none, required and one tool by name."""
    view = read(ask(tool_choice=choice)).view
    assert (view.tool_choice, view.forced_tool) == seen


def test_unknown_fields_pass_and_ours_does_not() -> None:
    """The body that goes upstream is the client's, without the extension."""
    request = read(ask(metadata={"a": 1}, top_k=3, smallcall={"include": ["signals"]}, model="smallcall/small"))
    assert request.body == ask(metadata={"a": 1}, top_k=3, model="smallcall/small")
    assert (request.include_decision, request.include_signals, request.pin) == (True, True, "small")


def test_a_key_that_stands_twice_takes_its_last_value() -> None:
    """In what is judged and in what goes upstream alike."""
    request = read(b'{"model": "a", "model": "smallcall/large", "messages": [{"role": "user"}]}')
    assert (request.pin, request.body["model"]) == ("large", "smallcall/large")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["function", "user", "auto", "x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "type function name parameters role content tool_calls arguments include text description".split()
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = "messages tools tool_choice stream stream_options n response_format smallcall modalities functions".split()


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused(changes: dict[str, Any]) -> None:
    """No body makes the reader fail in another way, and what it reads has the shape that the judge expects."""
    try:
        request = read(json.dumps(ask(**changes)).encode())
    except ClientError as error:
        status = error.status
    else:
        status = 200
    assert status in (200, 400)
    if status == 400:
        return
    assert isinstance(request.stream, bool)
    assert all(isinstance(tool.name, str) and isinstance(tool.parameters, dict) for tool in request.view.tools)
    assert all(isinstance(turn["role"], str) for turn in request.view.messages)
    assert request.view.tool_choice != "named" or request.view.forced_tool
