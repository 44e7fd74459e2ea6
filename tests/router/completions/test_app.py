"""Our worker behind `/v1/completions`: whole and streamed answers, bounds, and errors that name the field."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from router.completions.app import Terms, create_engine_app
from router.small.worker_client import SmallModelError
from slm import protocol
from slm.format.gbnf import MAX_GRAMMAR_CHARS
from tests.router.conftest import served
from tests.router.fake_worker import INFO

PIECES = ["Hel", "lo", " wor", "ld", "\n", "\n", "more"]


class Scripted:
    """Writes `PIECES`, or fails; counts who left before the end."""

    info: protocol.Info | None = INFO

    def __init__(self, end: protocol.Event | None = None, error: SmallModelError | None = None) -> None:
        self.end, self.error = end, error
        self.commands: list[protocol.CompleteCommand] = []
        self.left = 0
        self.pause_s = 0.0

    @contextlib.asynccontextmanager
    async def events(self, command: protocol.CompleteCommand) -> AsyncIterator[AsyncIterator[protocol.Event]]:
        self.commands.append(command)
        if self.error:
            raise self.error
        ended: list[bool] = []
        try:
            yield self._events(ended)
        finally:
            self.left += not ended

    async def _events(self, ended: list[bool]) -> AsyncIterator[protocol.Event]:
        if isinstance(self.end, protocol.DraftFailed):
            ended.append(True)
            yield self.end
            return
        yield protocol.Started(prompt_tokens=5, cached_tokens=2, queue_s=0.0, prefill_s=0.0)
        for index, piece in enumerate(PIECES):
            await asyncio.sleep(self.pause_s)
            yield protocol.Token(
                id=index, text=piece, logprob=-0.5, margin=0.25, entropy=1.5, feasible_mass=0.75, forced=index == 0,
                span=0, alternatives=[(piece, -0.5), ("x", -1.0)],
            )  # fmt: skip
        ended.append(True)
        yield self.end or protocol.Done(text="".join(PIECES), finish="stop", decode_s=0, steps=7, tokens=7)


async def asked(scripted: Scripted, terms: Terms | None = None, **body: Any) -> httpx.Response:
    """The response to one request; `raw` stands for the whole body, `key` for the caller's key."""
    key, raw = body.pop("key", None), body.pop("raw", None)
    content = raw if raw is not None else json.dumps({"model": "scripted", "prompt": "Say", **body})
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with served(create_engine_app(scripted, terms)) as base, httpx.AsyncClient() as client:
        return await client.post(f"{base}/completions", content=content, headers=headers)


async def test_a_whole_completion() -> None:
    """Text, log-probabilities with alternatives and offsets, usage; what the worker is asked for."""
    scripted = Scripted()
    grammar = 'root ::= "x"'
    answer = (
        await asked(scripted, logprobs=2, max_tokens=9, stop=["\n\n"], structured_outputs={"grammar": grammar})
    ).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hello world", "stop")
    assert choice["logprobs"]["tokens"] == PIECES
    assert choice["logprobs"]["text_offset"][:3] == [0, 3, 5]
    assert choice["logprobs"]["top_logprobs"][0] == {"Hel": -0.5, "x": -1.0}
    assert choice["smallcall"]["entropy"] == [1.5] * 7
    assert choice["smallcall"]["forced"][:2] == [True, False]
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 7
    (command,) = scripted.commands
    assert (command.prompt, command.grammar, command.alternatives, command.max_tokens) == ("Say", grammar, 2, 9)


@pytest.mark.parametrize(("stop", "text"), [(None, "".join(PIECES)), ("\n\n", "Hello world"), (["lo w", "x"], "Hel")])
async def test_a_stream_says_what_a_whole_answer_says(stop: Any, text: str) -> None:
    """The pieces join to the same text; no piece holds what a stop takes back."""
    whole = (await asked(Scripted(), stop=stop, logprobs=1)).json()["choices"][0]
    options = {"include_usage": True}
    response = await asked(Scripted(), stop=stop, logprobs=1, stream=True, stream_options=options)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[-1]["usage"] == {**chunks[-1]["usage"], "prompt_tokens": 5, "completion_tokens": 7}
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["text"] == text
    assert [choice["finish_reason"] for choice in choices] == [None] * 7 + ["stop"]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert tokens == whole["logprobs"]["tokens"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "reason"), [("\n\n", "stop"), ("absent", "length")])
async def test_a_text_that_is_cut_at_a_stop_says_stop(stop: str, reason: str, stream: bool) -> None:
    """Where the tokens run out behind a stop, the reason is the stop; elsewhere the length."""
    end = protocol.Done(text="".join(PIECES), finish="length", decode_s=0, steps=7, tokens=7)
    response = await asked(Scripted(end), stop=stop, stream=stream)
    last = response.text.split("\n\n")[-3].removeprefix("data: ") if stream else response.text
    assert json.loads(last)["choices"][0]["finish_reason"] == reason


async def test_openais_own_client_reads_it() -> None:
    """The `openai` library, whole and streamed, and its list of models."""
    async with served(create_engine_app(Scripted())) as base:
        client = openai.AsyncOpenAI(base_url=base, api_key="unused")
        made = await client.completions.create(model="scripted", prompt="Say", logprobs=1, temperature=0)
        stream = await client.completions.create(model="scripted", prompt="Say", stream=True, temperature=0)
        streamed = [chunk.choices[0].text async for chunk in stream]
        models = [model.id async for model in client.models.list()]
        await client.close()
    assert made.choices[0].text == "".join(streamed) == "".join(PIECES)
    assert made.choices[0].logprobs is not None
    assert models == ["scripted"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": 0.7}, "temperature"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs.json"),
        ({"structured_outputs": {"grammar": "x" * (MAX_GRAMMAR_CHARS + 1)}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"grammar": "g"}, "grammar": "g"}, "structured_outputs"),
        ({"stream_options": {}}, "stream_options"),
        ({"raw": b"{"}, None),
        ({"raw": b"[]"}, None),
        ({"raw": b'{"model": "scripted"}'}, "prompt"),
    ],
)
async def test_a_wrong_field_is_named(body: dict[str, Any], param: str | None) -> None:
    """400 in OpenAI's shape, by the field's path; the worker is not asked."""
    scripted = Scripted()
    response = await asked(scripted, **body)
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert scripted.commands == []


@pytest.mark.parametrize(
    ("failure", "status", "code", "param"),
    [
        ("prompt_too_long", 400, "context_length_exceeded", "prompt"),
        ("schema_unsupported", 400, "invalid_request", "grammar"),
        ("queue_full", 429, "queue_full", None),
        ("wait_too_long", 429, "wait_too_long", None),
        ("deadline", 504, "deadline", None),
        ("internal", 500, "internal", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_workers_failures_have_a_status(
    failure: str, status: int, code: str, param: str | None, stream: bool
) -> None:
    """Before anything is sent a failure is a status, of a stream too."""
    response = await asked(Scripted(protocol.DraftFailed(code=failure, message="m")), grammar="g", stream=stream)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


async def test_a_grammar_as_long_as_the_worker_reads_is_taken() -> None:
    """The endpoint's bound is the worker's."""
    scripted = Scripted()
    assert (await asked(scripted, grammar="x" * MAX_GRAMMAR_CHARS)).status_code == 200
    assert len(scripted.commands[0].grammar or "") == MAX_GRAMMAR_CHARS


async def test_what_else_is_refused() -> None:
    """Another model, no key, a model that is not there yet, a body too large, a worker that went away."""
    assert (await asked(Scripted(), model="other")).json()["error"]["code"] == "model_not_found"
    keyed = Terms(api_key="secret")
    for key, status in ((None, 401), ("wrong", 401), ("secret", 200)):
        assert (await asked(Scripted(), keyed, key=key)).status_code == status
    loading = Scripted()
    loading.info = None
    assert (await asked(loading)).status_code == 503
    assert (await asked(Scripted(), raw=b" " * (9 << 20))).status_code == 413
    assert (await asked(Scripted(error=SmallModelError("worker_lost", "away")))).status_code == 503


async def test_a_stream_that_fails_says_so() -> None:
    """Behind its first words a stream ends with an error and without [DONE]."""
    late = protocol.Done(text="", finish="deadline", decode_s=0, steps=0, tokens=0)
    response = await asked(Scripted(late), stream=True)
    *_, last = [line for line in response.text.split("\n\n") if line]
    assert response.status_code == 200
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_slot(stream: bool) -> None:
    """The completion is given up when the client hangs up."""
    scripted = Scripted()
    scripted.pause_s = 0.2
    async with served(create_engine_app(scripted)) as base, httpx.AsyncClient() as client:
        with pytest.raises(httpx.TimeoutException):
            await client.post(
                f"{base}/completions",
                json={"model": "scripted", "prompt": "Say", "stream": stream},
                timeout=httpx.Timeout(5, read=0.15),
            )
        async with asyncio.timeout(5):
            while not scripted.left:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert scripted.left == 1
