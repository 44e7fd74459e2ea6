"""A provider's account that is used up: it is not asked again, and the client learns why."""

import json
from typing import Any

import orjson
import pytest

from tests.router.cascade import test_gateway
from tests.router.conftest import Make, served
from tests.router.dialects import test_responses
from tests.router.upstream.test_passthrough import Provider, large, send

# litellm's pydantic models have remarks of pydantic on them, which would break its calls as errors.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]
MODEL = "openai/gpt-4o-2024-08-06"
ERROR = {"message": "You exceeded your current quota.", "type": "insufficient_quota", "code": "insufficient_quota"}
BODIES: dict[str, Any] = {"/chat/completions": test_gateway.ask(), "/responses": test_responses.ask()}
FAILED = {"type": "response.failed", "response": {"id": "resp", "status": "failed", "error": ERROR}}


@pytest.mark.parametrize("forward", [["chat_completions", "responses"], []], ids=["forwarded", "translated"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", BODIES)
async def test_an_account_that_is_used_up_is_asked_once(
    gateway: Make, path: str, streamed: bool, forward: list[str]
) -> None:
    """429, as the provider said it."""
    provider = Provider(orjson.dumps({"error": ERROR}), status=429)
    settings = {"forward": forward, "retries": 2}
    async with provider.running() as base, served(gateway(large=large(MODEL, base, **settings))) as url:
        status, _, text = await send(url, path, {**BODIES[path], "stream": streamed})
    assert (status, json.loads(text)["error"]["code"], len(provider.asked)) == (429, "insufficient_quota", 1)


@pytest.mark.parametrize(("path", "event"), [("/chat/completions", {"error": ERROR}), ("/responses", FAILED)])
async def test_a_stream_that_begins_with_it_is_not_begun_again(gateway: Make, path: str, event: Any) -> None:
    """What was not begun for the client is told by its status."""
    provider = Provider(b"data: " + orjson.dumps(event) + b"\n\n")
    forward = ["chat_completions", "responses"]
    async with provider.running() as base, served(gateway(large=large(MODEL, base, forward=forward, retries=2))) as url:
        status, _, text = await send(url, path, {**BODIES[path], "stream": True})
    assert (status, json.loads(text)["error"]["code"], len(provider.asked)) == (429, "insufficient_quota", 1)
