"""The recorded large model, over real HTTP: what it answers, refuses and counts, and how it fails on demand."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest

from evaluation.cases.answers import Answer
from evaluation.cases.case import Case, NoCallGold
from evaluation.cases.study_data import RecordedAnswer, RecordedCall
from evaluation.demo.rows import load_demo
from evaluation.recorded.faults import Cut, Disconnect, Fault, Garbage, Hang, Status, always, every, in_turn
from evaluation.recorded.index import served_name
from evaluation.recorded.server import MAX_RECEIVED, MAX_REQUEST_BYTES, RecordedServer, serve

MODEL = "gpt-4o-2024-08-06"


def case(case_id: str, *tools: str, messages: list[dict[str, Any]] | None = None) -> Case:
    """A case that asks its own id."""
    return Case(
        id=case_id,
        source="made",
        split="test",
        category="any",
        messages=messages or [{"role": "user", "content": case_id}],
        tools=[{"type": "function", "function": {"name": name, "description": "d"}} for name in tools],
        gold=NoCallGold(),
    )


def answer(case_id: str, *calls: RecordedCall, **fields: Any) -> RecordedAnswer:
    """A recorded answer of 10 tokens in and 5 out."""
    base = {"model": MODEL + "-FC", "input_tokens": 10, "output_tokens": 5, "latency_s": 2.0}
    return RecordedAnswer(id=case_id, calls=list(calls) or None, **(base | fields))


PARIS = RecordedCall("weather", {"city": "Paris", "note": "ä" * 60})
OSLO = RecordedCall("weather", None, "{'city': 'Oslo'}")
CASES = [case("two", "weather", "tides"), case("prose", "weather"), case("broken", "weather")]
ANSWERS = [
    answer("two", PARIS, RecordedCall("tides", {})),
    answer("prose", text="No tool fits that. " * 5),
    answer("broken", OSLO),
]


def body(of: Case, **changes: Any) -> dict[str, Any]:
    """The request that asks this case."""
    return {"model": MODEL, "messages": of.messages, "tools": of.tools} | changes


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A client session."""
    async with aiohttp.ClientSession() as session:
        yield session


async def ask(http: aiohttp.ClientSession, server: RecordedServer, request: dict[str, Any]) -> tuple[int, Any]:
    """Status and decoded body of one whole request."""
    async with http.post(f"{server.url}/chat/completions", json=request) as response:
        return response.status, await response.json()


async def events(http: aiohttp.ClientSession, server: RecordedServer, request: dict[str, Any]) -> list[str]:
    """The data of each event of a stream."""
    async with http.post(f"{server.url}/chat/completions", json=request | {"stream": True}) as response:
        assert response.content_type == "text/event-stream"
        frames = (await response.text()).split("\n\n")
    assert frames.pop() == ""
    return [frame.removeprefix("data: ") for frame in frames]


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the chunks of a stream add up to."""
    text, calls = "", []
    for delta in (chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]):
        text += delta.get("content") or ""
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                calls.append({"id": part["id"], "type": "function", "function": {"name": part["function"]["name"]}})
                calls[-1]["function"]["arguments"] = ""
            calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    message = {"role": "assistant", "content": None if calls else text}
    return message | {"tool_calls": calls} if calls else message


async def test_a_whole_answer_has_the_recorded_calls_and_tokens(http: aiohttp.ClientSession) -> None:
    """Calls, ids, finish reason, model and usage are those of an OpenAI completion."""
    async with RecordedServer(ANSWERS, CASES, now=lambda: 1234.9) as server:
        status, given = await ask(http, server, body(CASES[0]))
    assert (status, given["object"], given["model"], given["created"]) == (200, "chat.completion", MODEL, 1234)
    choice = given["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert Answer.from_message(choice["message"]) == ANSWERS[0].answer
    ids = [call["id"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("call_") for call_id in ids)
    assert given["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


@pytest.mark.parametrize("index", range(3))
async def test_a_stream_adds_up_to_the_whole_answer(http: aiohttp.ClientSession, index: int) -> None:
    """Calls, text and undecodable arguments are the same streamed and whole, ids included."""
    async with RecordedServer(ANSWERS, CASES) as server:
        _, whole = await ask(http, server, body(CASES[index]))
        stream = await events(http, server, body(CASES[index]))
    assert stream[-1] == "[DONE]"
    chunks = [json.loads(event) for event in stream[:-1]]
    assert joined(chunks) == whole["choices"][0]["message"]
    assert [c["choices"][0]["finish_reason"] for c in chunks][-1] == whole["choices"][0]["finish_reason"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert len(chunks) > 3


async def test_undecodable_arguments_are_served_as_they_were_written(http: aiohttp.ClientSession) -> None:
    """A client sees the model's own broken text."""
    async with RecordedServer(ANSWERS, CASES) as server:
        _, given = await ask(http, server, body(CASES[2]))
    assert given["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == "{'city': 'Oslo'}"


async def test_the_usage_chunk_comes_last_and_only_if_asked(http: aiohttp.ClientSession) -> None:
    """With include_usage every chunk has the key and the last one, without choices, has the tokens."""
    async with RecordedServer(ANSWERS, CASES) as server:
        stream = await events(http, server, body(CASES[1], stream_options={"include_usage": True}))
    *chunks, last = [json.loads(event) for event in stream[:-1]]
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 15
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_without_recorded_tokens_there_is_no_usage(http: aiohttp.ClientSession) -> None:
    """An unknown cost must not look like none."""
    answers = [answer("two", PARIS, input_tokens=None, output_tokens=None)]
    async with RecordedServer(answers, CASES) as server:
        _, given = await ask(http, server, body(CASES[0]))
        stream = await events(http, server, body(CASES[0], stream_options={"include_usage": True}))
    assert "usage" not in given
    assert all("usage" not in json.loads(event) for event in stream[:-1])
    assert (server.totals["answered"], server.totals["prompt_tokens"]) == (2, 0)


async def test_the_openai_client_reads_it_whole_and_streamed() -> None:
    """The real client parses answers, streams and the list of models."""
    async with (
        RecordedServer(ANSWERS, CASES) as server,
        openai.AsyncOpenAI(base_url=server.url, api_key="any", max_retries=0) as client,
    ):
        assert [model.id async for model in client.models.list()] == [MODEL]
        whole = await client.chat.completions.create(**body(CASES[0]))
        stream = await client.chat.completions.create(**body(CASES[0], stream=True))
        pieces = [chunk async for chunk in stream]
    assert whole.choices[0].message.tool_calls is not None
    assert whole.choices[0].message.tool_calls[0].function.name == "weather"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 5
    assert pieces[-1].choices[0].finish_reason == "tool_calls"


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1,"b":2}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
]


def changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    """TALK with one message changed."""
    return [message | fields if i == index else message for i, message in enumerate(TALK)]


REWRITTEN = [{"id": "x9", "type": "function", "function": {"name": "weather", "arguments": '{"b": 2, "a": 1}'}}]
OTHER = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 2}'}}]


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        (TALK, 200),
        (changed(0, role="developer"), 200),
        (changed(1, content=[{"type": "text", "text": "Weather"}, {"type": "text", "text": "?"}]), 200),
        (changed(2, content="", tool_calls=REWRITTEN), 200),
        (changed(3, tool_call_id="x9", name="weather"), 200),
        (changed(1, content="Weather"), 404),
        (changed(1, role="system"), 404),
        (changed(2, tool_calls=OTHER), 404),
        (changed(1, content=[{"type": "image_url", "image_url": {"url": "x"}}]), 404),
        (TALK[1:], 404),
        ([*TALK, {"role": "user", "content": "And?"}], 404),
    ],
)
async def test_a_request_is_known_by_what_it_says(
    http: aiohttp.ClientSession, messages: list[dict[str, Any]], status: int
) -> None:
    """What a gateway may rewrite (ids, parts, spacing of arguments) does not matter; every other word does."""
    talk = case("talk", "weather", "tides", messages=TALK)
    async with RecordedServer([answer("talk", PARIS)], [talk]) as server:
        assert (await ask(http, server, body(talk, messages=messages)))[0] == status
        tools = [{"type": "function", "function": {"name": tool["function"]["name"]}} for tool in talk.tools[::-1]]
        assert (await ask(http, server, body(talk, messages=messages, tools=tools)))[0] == status


@pytest.mark.parametrize(
    ("request_body", "status", "code"),
    [
        (body(CASES[0], messages=[{"role": "user", "content": "else"}]), 404, "not_recorded"),
        (body(CASES[0], tools=CASES[1].tools), 404, "not_recorded"),
        (body(CASES[0], model="gpt-5"), 404, "model_not_found"),
        (body(CASES[0], model=None), 404, "model_not_found"),
        (body(CASES[0], n=2), 400, "unsupported_value"),
        (body(CASES[0], tool_choice="none"), 404, "not_recorded"),
        (body(CASES[1], tool_choice="required"), 404, "not_recorded"),
        (body(CASES[0], tool_choice={"type": "function", "function": {"name": "tides"}}), 404, "not_recorded"),
        (body(CASES[0], messages="hello"), 400, "invalid_request"),
        (body(CASES[0], messages=[{"content": "x"}]), 400, "invalid_request"),
        (body(CASES[0], messages=[{"role": "user", "content": 7}]), 400, "invalid_request"),
        (body(CASES[0], messages=[{"role": "assistant", "tool_calls": "x"}]), 400, "invalid_request"),
        (body(CASES[0], messages=[{"role": "assistant", "tool_calls": [{"id": "1"}]}]), 400, "invalid_request"),
        (body(CASES[0], tools=[{"type": "function"}]), 400, "invalid_request"),
        ({"model": MODEL}, 400, "invalid_request"),
    ],
)
async def test_what_was_not_recorded_is_refused_in_openai_shape(
    http: aiohttp.ClientSession, request_body: dict[str, Any], status: int, code: str
) -> None:
    """Nothing is made up: the error says what is missing and is counted as no answer."""
    async with RecordedServer(ANSWERS, CASES) as server:
        given_status, given = await ask(http, server, request_body)
    assert (given_status, given["error"]["code"]) == (status, code)
    assert set(given["error"]) == {"message", "type", "param", "code"}
    assert (server.totals["requests"], server.totals["answered"]) == (1, 0)
    assert [seen.status for seen in server.received] == [status]


@pytest.mark.parametrize(
    ("of", "tool_choice"),
    [
        (CASES[0], "auto"),
        (CASES[0], "required"),
        (CASES[1], "none"),
        (CASES[2], {"type": "function", "function": {"name": "weather"}}),
    ],
)
async def test_a_tool_choice_that_the_answer_satisfies_is_served(
    http: aiohttp.ClientSession, of: Case, tool_choice: Any
) -> None:
    """A recording under auto also answers a choice that it happens to meet."""
    async with RecordedServer(ANSWERS, CASES) as server:
        assert (await ask(http, server, body(of, tool_choice=tool_choice)))[0] == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"[]", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b" " * (MAX_REQUEST_BYTES + 1), 413)],
    ids=["cut", "list", "bytes", "deep", "large"],
)
async def test_a_body_that_is_no_json_object_is_refused(
    http: aiohttp.ClientSession, content: bytes, status: int
) -> None:
    """Hostile bodies get a 4xx in OpenAI's shape."""
    async with (
        RecordedServer(ANSWERS, CASES) as server,
        http.post(f"{server.url}/chat/completions", data=io.BytesIO(content)) as response,
    ):
        assert response.status == status
        assert "message" in (await response.json())["error"]


async def test_a_wrong_key_is_refused(http: aiohttp.ClientSession) -> None:
    """With a key, only its bearer is served."""
    async with RecordedServer(ANSWERS, CASES, api_key="right") as server:
        for key, status in (("right", 200), ("wrong", 401), ("", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            async with http.post(f"{server.url}/chat/completions", json=body(CASES[0]), headers=headers) as response:
                assert response.status == status


async def test_two_models_are_served_side_by_side(http: aiohttp.ClientSession) -> None:
    """Each model gives its own answer, under the provider's name or the recording's."""
    other = answer("two", text="no", model="xlam-FC-Auto")
    async with RecordedServer([*ANSWERS, other], CASES) as server:
        assert server.recordings.models == [MODEL, "xlam"]
        given = [await ask(http, server, body(CASES[0], model=name)) for name in ("xlam", "xlam-FC-Auto", MODEL)]
    assert [reply["choices"][0]["message"]["content"] for _, reply in given] == ["no", "no", None]


def test_recorded_names_become_the_providers() -> None:
    """Price maps know the name without the leaderboard's suffix."""
    assert served_name("gpt-4o-2024-08-06-FC") == "gpt-4o-2024-08-06"
    assert served_name("open-mistral-nemo-2407-FC-Auto") == "open-mistral-nemo-2407"
    assert served_name("Salesforce_xLAM-1b-fc-r") == "Salesforce_xLAM-1b-fc-r"


def test_what_cannot_be_served_is_refused_at_once() -> None:
    """Nothing to answer with, two cases that ask the same, and latencies that nobody recorded."""
    with pytest.raises(ValueError, match="no answer belongs"):
        RecordedServer(ANSWERS, [])
    twin = case("twin", "weather", messages=CASES[1].messages)
    with pytest.raises(ValueError, match="ask the same"):
        RecordedServer([answer("prose", text="a"), answer("twin", text="b")], [CASES[1], twin])
    with pytest.raises(ValueError, match="not recorded"):
        RecordedServer([answer("two", latency_s=None)], CASES, latency="recorded")


async def test_recorded_latency_is_waited_and_scaled(http: aiohttp.ClientSession) -> None:
    """A whole answer waits its two seconds at once, a stream in equal parts; none is the default."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async with RecordedServer(ANSWERS, CASES, latency="recorded", latency_scale=0.5, sleep=sleep) as server:
        await ask(http, server, body(CASES[0]))
        assert waited == [1.0]
        waited.clear()
        stream = await events(http, server, body(CASES[0]))
    assert sum(waited) == pytest.approx(1.0)
    assert len(waited) == len(stream) - 1
    assert len(set(waited)) == 1
    waited.clear()
    async with RecordedServer(ANSWERS, CASES, sleep=sleep) as server:
        await ask(http, server, body(CASES[0]))
    assert set(waited) == {0.0}


async def test_many_at_once_each_get_their_own_answer_and_are_all_counted(http: aiohttp.ClientSession) -> None:
    """Forty requests at once, streamed and whole, over the demo's rows: totals are the sum of the recorded tokens."""
    rows = load_demo()[:40]
    async with RecordedServer([row.recorded for row in rows], [row.case for row in rows]) as server:

        async def one(index: int) -> dict[str, Any]:
            request = body(rows[index].case)
            if index % 2:
                chunks = [json.loads(event) for event in (await events(http, server, request))[:-1]]
                return joined(chunks)
            _, reply = await ask(http, server, request)
            return dict(reply["choices"][0]["message"])

        messages = await asyncio.gather(*(one(index) for index in range(40)))
    assert [Answer.from_message(message).calls for message in messages] == [row.recorded.answer.calls for row in rows]
    assert server.totals == {
        "requests": 40,
        "answered": 40,
        "prompt_tokens": sum(row.recorded.input_tokens or 0 for row in rows),
        "completion_tokens": sum(row.recorded.output_tokens or 0 for row in rows),
    }
    assert sorted(seen.ordinal for seen in server.received) == list(range(40))
    assert {seen.case_id for seen in server.received} == {row.case.id for row in rows}


async def test_what_was_received_is_kept_for_the_last_requests_only(http: aiohttp.ClientSession) -> None:
    """The log shows the body as it came and is bounded."""
    async with RecordedServer(ANSWERS, CASES) as server:
        await ask(http, server, body(CASES[0], temperature=0.25))
        seen = server.received[-1]
        assert (seen.status, seen.answered, seen.case_id, seen.model) == (200, True, "two", MODEL)
        assert seen.body == body(CASES[0], temperature=0.25)
        assert server.received.maxlen == MAX_RECEIVED


@pytest.mark.parametrize(("code", "kind"), [(429, "rate_limit_error"), (500, "server_error"), (503, "server_error")])
async def test_a_status_fault_is_an_openai_error(http: aiohttp.ClientSession, code: int, kind: str) -> None:
    """The first request fails with its status and hint to retry, the second is answered."""
    async with RecordedServer(ANSWERS, CASES, faults=in_turn([Status(code, retry_after_s=1.5)])) as server:
        async with http.post(f"{server.url}/chat/completions", json=body(CASES[0])) as response:
            assert (response.status, response.headers["Retry-After"]) == (code, "1.5")
            assert (await response.json())["error"]["type"] == kind
        assert (await ask(http, server, body(CASES[0])))[0] == 200
    assert [seen.status for seen in server.received] == [code, 200]
    assert (server.totals["requests"], server.totals["answered"]) == (2, 1)


async def test_garbage_is_a_200_that_is_no_json(http: aiohttp.ClientSession) -> None:
    """The status lies; the body cannot be decoded."""
    async with (
        RecordedServer(ANSWERS, CASES, faults=always(Garbage())) as server,
        http.post(f"{server.url}/chat/completions", json=body(CASES[0])) as response,
    ):
        assert response.status == 200
        with pytest.raises(ValueError, match="Expecting value"):
            await response.json()
    assert server.totals["answered"] == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_disconnect_sends_no_byte(http: aiohttp.ClientSession, streamed: bool) -> None:
    """The connection closes before the status line."""
    async with RecordedServer(ANSWERS, CASES, faults=always(Disconnect())) as server:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await ask(http, server, body(CASES[0], stream=streamed))
    assert server.totals["answered"] == 0
    assert {seen.status for seen in server.received} == {None}


async def test_a_cut_answer_ends_in_the_middle(http: aiohttp.ClientSession) -> None:
    """Whole: half of the announced bytes. Streamed: two events, no [DONE], and the transfer is not closed properly."""
    async with RecordedServer(ANSWERS, CASES, faults=always(Cut(chunks=2))) as server:
        url = f"{server.url}/chat/completions"
        async with http.post(url, json=body(CASES[0])) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        received = bytearray()

        async def drain(response: aiohttp.ClientResponse) -> None:
            async for piece in response.content.iter_any():
                received.extend(piece)

        async with http.post(url, json=body(CASES[0], stream=True)) as response:
            with pytest.raises(aiohttp.ClientPayloadError):
                await drain(response)
    assert received.count(b"data: ") == 2
    assert b"[DONE]" not in received
    assert server.totals["answered"] == 0


async def test_a_hang_ends_with_its_client(http: aiohttp.ClientSession) -> None:
    """A client that gives up frees the handler at once, and the server stops without waiting for it."""
    ended = asyncio.Event()

    async def sleep(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            ended.set()
            raise

    async with RecordedServer(ANSWERS, CASES, faults=always(Hang(3600)), sleep=sleep) as server:
        with pytest.raises(asyncio.TimeoutError):
            async with asyncio.timeout(0.1):
                await ask(http, server, body(CASES[0]))
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_short_hang_is_answered_in_the_end(http: aiohttp.ClientSession) -> None:
    """The fault delays the answer and changes nothing else."""
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async with RecordedServer(ANSWERS, CASES, faults=in_turn([None, Hang(7)]), sleep=sleep) as server:
        assert [(await ask(http, server, body(CASES[0])))[0] for _ in range(2)] == [200, 200]
    assert waited == [0.0, 7, 0.0]


def test_schedules_say_which_request_meets_a_fault() -> None:
    """A schedule is a pure function of the request's ordinal."""
    fault: Fault = Garbage()
    assert [every(3, fault)(ordinal) for ordinal in range(6)] == [None, None, fault, None, None, fault]
    assert [in_turn([fault, None])(ordinal) for ordinal in range(3)] == [fault, None, None]
    assert always(fault)(99) is fault
    with pytest.raises(ValueError, match="at least 1"):
        every(0, fault)


async def test_serve_runs_until_it_is_told_to_stop(http: aiohttp.ClientSession) -> None:
    """The URL is told once requests are accepted; afterwards the port is free again."""
    server, stop = RecordedServer(ANSWERS, CASES), asyncio.Event()
    urls: asyncio.Queue[str] = asyncio.Queue()
    running = asyncio.create_task(serve(server, stop, urls.put_nowait))
    url = await urls.get()
    async with http.get(f"{url}/models") as response:
        assert (await response.json())["data"][0]["id"] == MODEL
    stop.set()
    await running
    with pytest.raises(aiohttp.ClientConnectorError):
        await http.get(f"{url}/models")
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


async def test_a_taken_port_is_an_os_error() -> None:
    """The caller learns that the port is taken, and nothing is left running."""
    async with RecordedServer(ANSWERS, CASES) as first:
        port = int(first.url.split(":")[2].split("/")[0])
        second = RecordedServer(ANSWERS, CASES, port=port)
        with pytest.raises(OSError, match="in use"):
            await second.__aenter__()
        with pytest.raises(RuntimeError, match="not running"):
            _ = second.url
