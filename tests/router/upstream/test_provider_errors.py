"""A provider's errors keep their meaning: in each dialect, forwarded and translated, whole and streamed."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from aiohttp import web

from router.constants import Constants
from router.upstream.large_model import ErrorKind
from router.upstream.provider_errors import kind_of, read_error, read_text
from tests.router.conftest import Make, served
from tests.router.upstream.test_passthrough import MESSAGE_EVENTS, RESPONSE_EVENTS, large, send, sse

# litellm's pydantic models have remarks of pydantic on them, which would break its streams as errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]

OPENAI, ANTHROPIC = "openai/gpt-4o-2024-08-06", "anthropic/claude-sonnet-4-5"
PATIENT = Constants(breaker_failures=1000)
TURN = [{"role": "user", "content": "Paris?"}]
BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"model": "smallcall/large", "messages": TURN},
    "messages": {"model": "smallcall/large", "max_tokens": 100, "messages": TURN},
    "responses": {"model": "smallcall/large", "input": "Paris?"},
}
LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
# provider's status and body; the client's status in OpenAI's dialects, and in Messages; code; type in Messages; tries
CASES: dict[str, tuple[int, Any, int, int, str, str, int]] = {
    "context length": (
        400,
        {"error": {"message": LONG, "type": "invalid_request_error", "code": "context_length_exceeded"}},
        *(400, 400, "context_length_exceeded", "invalid_request_error", 1),
    ),
    "context length of vLLM": (
        400,
        {"object": "error", "message": LONG, "type": "BadRequestError", "param": None, "code": 400},
        *(400, 400, "context_length_exceeded", "invalid_request_error", 1),
    ),
    "context length of Anthropic": (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8"}},
        *(400, 400, "context_length_exceeded", "invalid_request_error", 1),
    ),
    "context length in a list": (
        400,
        [{"error": {"code": 400, "message": "The input token count (9) exceeds the maximum", "status": "X"}}],
        *(400, 400, "context_length_exceeded", "invalid_request_error", 1),
    ),
    "rate": (
        429,
        {"error": {"message": "Rate limit reached", "type": "tokens", "code": "rate_limit_exceeded"}},
        *(429, 429, "rate_limit_exceeded", "rate_limit_error", 2),
    ),
    "quota": (
        429,
        {"error": {"message": "No credit left", "type": "insufficient_quota", "code": "insufficient_quota"}},
        *(429, 402, "insufficient_quota", "billing_error", 1),
    ),
    "quota of Anthropic": (
        400,
        {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}},
        *(429, 402, "insufficient_quota", "billing_error", 1),
    ),
    "overload": (
        529,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        *(503, 529, "server_is_overloaded", "overloaded_error", 2),
    ),
    "overload as a text": (
        503,
        {"error": "Model is busy"},
        *(503, 529, "server_is_overloaded", "overloaded_error", 2),
    ),
    "auth": (
        401,
        {"error": {"message": "No such key: sk-abc***xyz", "type": "invalid_request_error"}},
        *(502, 502, "upstream_auth", "api_error", 1),
    ),
    "invalid request, as a text": (
        400,
        {"detail": "tools are not enabled"},
        *(400, 400, "upstream_rejected", "invalid_request_error", 1),
    ),
    "invalid request, as a list": (
        422,
        {"detail": [{"loc": ["body", "tools", 0], "msg": "Field required"}]},
        *(422, 422, "upstream_rejected", "invalid_request_error", 1),
    ),
    "invalid request, a text": (
        400,
        {"error": "tools are not enabled"},
        *(400, 400, "upstream_rejected", "invalid_request_error", 1),
    ),
    "policy": (
        400,
        {"error": {"message": "Your prompt was flagged", "type": "invalid_request_error", "code": "invalid_prompt"}},
        *(400, 400, "invalid_prompt", "invalid_request_error", 1),
    ),
    "server": (
        500,
        {"error": {"message": "The server had an error", "type": "server_error", "code": None}},
        *(502, 502, "upstream_unavailable", "api_error", 2),
    ),
}
WORDS = {
    name: said
    for name, said in {
        "rate": "Rate limit reached",
        "quota": "No credit left",
        "quota of Anthropic": "Your credit balance is too low",
        "overload": "Overloaded",
        "overload as a text": "Model is busy",
        "invalid request, as a text": "tools are not enabled",
        "invalid request, as a list": "tools.0: Field required",
        "invalid request, a text": "tools are not enabled",
        "auth": "the large model refuses the gateway's credentials: No such key: …",
        "policy": "Your prompt was flagged",
        "server": "The server had an error",
        "context length in a list": "The input token count (9) exceeds the maximum",
        "context length of Anthropic": "prompt is too long: 9 tokens > 8",
    }.items()
}


class Failing:
    """A provider that answers every request with one error, and counts them."""

    def __init__(self, status: int, body: Any, kind: str = "application/json", **headers: str) -> None:
        self.status, self.body, self.asked = status, body, 0
        self.headers = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._serve)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        self.asked += 1
        await request.read()
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        return web.Response(status=self.status, body=body, headers=self.headers)


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "forwarded": (OPENAI, {"forward": ["chat_completions", "messages", "responses"]}),
    "translated for OpenAI's": (OPENAI, {"forward": []}),
    "translated for Anthropic's": (ANTHROPIC, {"forward": []}),
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
async def test_an_error_means_the_same_to_the_client(gateway: Make, case: str, way: str, streamed: bool) -> None:
    """Status, code, type, the provider's words and its pause; a kind that does not pass by itself is asked once."""
    status, body, theirs, in_messages, code, kind, tries = CASES[case]
    model, settings = WAYS[way]
    provider = Failing(status, body, retry_after="0" if tries > 1 else "60")
    async with provider.running() as base:
        url_of_it = base.removesuffix("/v1") if model == ANTHROPIC else base
        app = gateway(large=large(model, url_of_it, retries=0 if streamed else 1, **settings), constants=PATIENT)
        async with served(app) as url:
            for path, asked in BODIES.items():
                provider.asked = 0
                got, headers, text = await send(url, f"/{path}", {**asked, "stream": streamed})
                told = json.loads(text)["error"]
                assert (got, told["code"]) == (in_messages if path == "messages" else theirs, code), (path, text)
                assert provider.asked == (1 if streamed else tries)
                assert headers["Retry-After"] == ("0" if tries > 1 else "60")
                assert headers.get("x-should-retry") == (None if tries > 1 else "false")
                said = WORDS.get(case, LONG)
                assert told["message"] in (said, f"prompt is too long: {said}")
                if path == "messages":
                    assert told["type"] == kind
                    assert ("prompt is too long" in told["message"]) == (code == "context_length_exceeded")
                elif code == "insufficient_quota":
                    assert told["type"] == code
                row = (await app.services.ledger.page())[0]
                assert row.error_code == code


def data(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


CHUNK = {
    "id": "x",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}],
}


def failed(code: str, message: str) -> dict[str, Any]:
    response = {**RESPONSE_EVENTS[0]["response"], "status": "failed", "error": {"code": code, "message": message}}
    return {"type": "response.failed", "response": response, "sequence_number": 1}


def error_event(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": code, "message": message}}


STREAMED = [
    # dialect, what comes before, the event, status as the first event, code, tries
    (
        "responses",
        RESPONSE_EVENTS[:1],
        failed("context_length_exceeded", "Too long"),
        400,
        "context_length_exceeded",
        1,
    ),
    ("responses", RESPONSE_EVENTS[:1], failed("rate_limit_exceeded", "Slow"), 429, "rate_limit_exceeded", 2),
    ("responses", RESPONSE_EVENTS[:1], failed("insufficient_quota", "Empty"), 429, "insufficient_quota", 1),
    ("responses", RESPONSE_EVENTS[:1], failed("server_is_overloaded", "Busy"), 503, "server_is_overloaded", 2),
    ("responses", RESPONSE_EVENTS[:1], failed("invalid_prompt", "Flagged"), 400, "invalid_prompt", 1),
    ("responses", RESPONSE_EVENTS[:1], failed("server_error", "Oh"), 502, "upstream_unavailable", 2),
    (
        "responses",
        RESPONSE_EVENTS[:1],
        {"type": "error", "code": "rate_limit_exceeded", "message": "Slow", "param": None, "sequence_number": 1},
        *(429, "rate_limit_exceeded", 2),
    ),
    ("messages", MESSAGE_EVENTS[:3], error_event("overloaded_error", "Busy"), 529, "server_is_overloaded", 2),
    ("messages", MESSAGE_EVENTS[:3], error_event("rate_limit_error", "Slow"), 429, "rate_limit_exceeded", 2),
    ("messages", MESSAGE_EVENTS[:3], error_event("billing_error", "Empty"), 402, "insufficient_quota", 1),
    ("messages", MESSAGE_EVENTS[:3], error_event("authentication_error", "No"), 502, "upstream_auth", 1),
    ("chat/completions", [CHUNK], {"error": {"message": "Slow", "code": 429}}, 429, "rate_limit_exceeded", 2),
    ("chat/completions", [CHUNK], {"error": "The model is overloaded"}, 503, "server_is_overloaded", 2),
    (
        "chat/completions",
        [CHUNK],
        {"object": "error", "message": LONG, "type": "BadRequestError", "code": 400},
        *(400, "context_length_exceeded", 1),
    ),
    (
        "chat/completions",
        [CHUNK],
        [{"error": {"message": "Slow", "status": "RESOURCE_EXHAUSTED"}}],
        *(429, "rate_limit_exceeded", 2),
    ),
    ("chat/completions", [CHUNK], {"detail": "tools are not enabled"}, 502, "upstream_unavailable", 2),
]


@pytest.mark.parametrize(("path", "before", "event", "status", "code", "tries"), STREAMED)
async def test_an_error_inside_a_stream_keeps_its_meaning(
    gateway: Make, path: str, before: list[Any], event: Any, status: int, code: str, tries: int
) -> None:
    """As first event it is the response's status, and tried again where that helps; later it is the client's event."""
    encode = data if path == "chat/completions" else sse
    provider = Failing(200, encode(event), "text/event-stream")
    async with provider.running() as base:
        settings = large(OPENAI, base, forward=["chat_completions", "messages", "responses"], retries=1)
        app = gateway(large=settings)
        async with served(app) as url:
            asked = {**BODIES[path], "stream": True}
            got, _, text = await send(url, f"/{path}", asked)
            assert (got, json.loads(text)["error"]["code"], provider.asked) == (status, code, tries)
            provider.body, provider.asked = encode(*before, event), 0
            got, _, text = await send(url, f"/{path}", asked)
            row = (await app.services.ledger.page())[0]
    last = json.loads(text.rstrip().split("\n\n")[-1].split("data: ")[1])
    told = last["response"]["error"] if path == "responses" else last["error"]
    assert (got, told["code"], provider.asked) == (200, code, 1)
    assert "[DONE]" not in text
    assert (row.status, row.error_code) == (status, code)


TRANSLATED_STREAMS = [
    (
        OPENAI,
        data(CHUNK),
        data({"error": {"message": "Slow", "type": "tokens", "code": "rate_limit_exceeded"}}),
        *(429, "rate_limit_exceeded", "rate_limit_error", 2),
    ),
    (
        OPENAI,
        data(CHUNK),
        data({"error": {"message": "Empty", "type": "x", "code": "insufficient_quota"}}),
        *(429, "insufficient_quota", "billing_error", 1),
    ),
    (
        OPENAI,
        data(CHUNK),
        data({"error": "The model is overloaded"}),
        *(503, "server_is_overloaded", "overloaded_error", 2),
    ),
    (
        ANTHROPIC,
        sse(*MESSAGE_EVENTS[:3]),
        sse(error_event("overloaded_error", "Overloaded")),
        *(503, "server_is_overloaded", "overloaded_error", 2),
    ),
]


@pytest.mark.parametrize(("model", "before", "event", "status", "code", "kind", "tries"), TRANSLATED_STREAMS)
async def test_an_error_inside_a_translated_stream_keeps_its_meaning(
    gateway: Make, model: str, before: bytes, event: bytes, status: int, code: str, kind: str, tries: int
) -> None:
    """The same behind litellm, which tells every such error as a lost connection."""
    provider = Failing(200, event, "text/event-stream")
    async with provider.running() as base:
        url_of_it = base.removesuffix("/v1") if model == ANTHROPIC else base
        app = gateway(large=large(model, url_of_it, forward=[], retries=1), constants=PATIENT)
        async with served(app) as url:
            for path, body in BODIES.items():
                asked = {**body, "stream": True}
                provider.body, provider.asked = event, 0
                got, _, text = await send(url, f"/{path}", asked)
                assert json.loads(text)["error"]["code"] == code
                if path == "messages":
                    assert json.loads(text)["error"]["type"] == kind
                else:
                    assert got == status
                assert provider.asked == tries
                provider.body = before + event
                got, _, text = await send(url, f"/{path}", asked)
                last = json.loads(text.rstrip().split("\n\n")[-1].split("data: ")[1])
                told = last["response"]["error"] if path == "responses" else last["error"]
                assert (got, told["code"]) == (200, code)


async def test_the_official_client_reads_them(gateway: Make) -> None:
    """Its own classes of errors; it does not ask again by itself either where a quota is used up."""
    quota = {"error": {"message": "No credit left", "type": "insufficient_quota", "code": "insufficient_quota"}}
    provider = Failing(429, quota)
    async with provider.running() as base:
        forward = ["chat_completions", "messages", "responses"]
        async with served(gateway(large=large(OPENAI, base, forward=forward, retries=2))) as url:
            client = openai.AsyncOpenAI(base_url=url, api_key="unused")
            with pytest.raises(openai.RateLimitError) as limited:
                await client.responses.create(model="smallcall/large", input="Hi")
            assert (limited.value.code, limited.value.type) == ("insufficient_quota", "insufficient_quota")
            assert provider.asked == 1
            provider.status, provider.body = 200, sse(failed("context_length_exceeded", "Too long"))
            provider.headers["content-type"] = "text/event-stream"
            with pytest.raises(openai.BadRequestError) as long:
                await client.responses.create(model="smallcall/large", input="Hi", stream=True)
            assert long.value.code == "context_length_exceeded"


async def test_a_pause_in_words_is_a_pause(gateway: Make) -> None:
    """Without a header the message says when to come again; milliseconds in a header are more exact than seconds."""
    said = {"error": {"message": "Please try again in 1m31.5s.", "type": "tokens", "code": "rate_limit_exceeded"}}
    provider = Failing(429, said)
    async with provider.running() as base, served(gateway(large=large(OPENAI, base, retries=1))) as url:
        _, headers, _ = await send(url, "/chat/completions", BODIES["chat/completions"])
        assert (headers["Retry-After"], provider.asked) == ("92", 1)
        provider.headers |= {"retry-after": "60", "retry-after-ms": "20"}
        begun = asyncio.get_running_loop().time()
        await send(url, "/chat/completions", BODIES["chat/completions"])
        assert provider.asked == 3
        assert asyncio.get_running_loop().time() - begun < 30


def test_shapes_and_phrases_are_read() -> None:
    """What is no error is none; a rate in the words of a quota is a rate; exceptions quote errors as JSON or bytes."""
    for answer in (
        {"choices": []},
        {"type": "message"},
        {"error": None, "output": []},
        [],
        ["x"],
        None,
        {"detail": 1, "id": 2},
    ):
        assert read_error(answer) is None
    plan = "You exceeded your current quota, please check your plan."
    for more, kind in (("", ErrorKind.QUOTA), (" Please retry in 34.1s.", ErrorKind.RATE)):
        error = read_error({"error": {"code": 429, "message": plan + more}})
        assert error is not None
        assert kind_of(error, 429) is kind
    for text in (
        """XException - b'{"type": "error", "error": {"type": "t", "message": "it\\'s"}}'. Handle with `y`.""",
        """XException - {"type": "error", "error": {"type": "t", "message": "it's"}}. Handle with `y`.""",
    ):
        quoted = read_text(text)
        assert quoted is not None
        assert (quoted.type, quoted.message) == ("t", "it's")
    assert read_text("no JSON {") is None
