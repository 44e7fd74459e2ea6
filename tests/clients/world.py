"""What the agents talk to: a gateway whose small model makes the first and third move, and whose large model, behind a
server of all three dialects, makes the second and the last.

The small model first asks for a city that does not exist; the tool fails; the large model asks again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from router.dialects.chat_completions import ChatCompletions
from router.dialects.messages import Messages
from router.dialects.request import Dialect
from router.dialects.responses import Responses
from router.ledger.row import DecisionRow
from router.server.app import create_app
from router.settings import Settings
from slm import protocol
from tests.router.conftest import served
from tests.router.fake_worker import INFO, draft_events

ANSWER = "It is 68 °F in Paris."
FAILURE = "unknown city"
SIDES = ["small", "large", "small", "large"]
_MOVES = {
    0: ("get_weather", {"city": "Pariss"}),
    1: ("get_weather", {"city": "Paris"}),
    2: ("to_fahrenheit", {"celsius": 20}),
}
_PIECE_CHARS = 5


def _turn(messages: Sequence[Mapping[str, Any]]) -> int:
    """How far the agent has come, by what its tools said: not all clients keep every turn of the conversation."""
    said = str(messages)
    seen = [FAILURE in said, "20 degrees Celsius" in said, "68 degrees Fahrenheit" in said]
    return max((index + 1 for index, one in enumerate(seen) if one), default=0)


class Small:
    """Sure of itself at its own moves; else it makes no call, which escalates."""

    info = INFO

    @contextlib.asynccontextmanager
    async def events(self, command: protocol.DraftCommand) -> AsyncIterator[AsyncIterator[protocol.Event]]:
        """See `router.small.worker_client.SmallModel`."""
        turn = _turn(command.messages)
        if turn < len(SIDES) and SIDES[turn] == "small":
            name, arguments = _MOVES[turn]
            yield self._written(f"Thought: {name}\nAction: {name}\nAction Input: {json.dumps(arguments)}")
        else:
            yield self._written("Thought: none\nAction: none")

    async def _written(self, text: str) -> AsyncIterator[protocol.Event]:
        for event in draft_events(text):
            yield event


class Large:
    """A server that speaks the three dialects. What it is asked is kept as chat completions."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        """The base URL, until the block ends."""
        app = web.Application(client_max_size=2**24)
        for dialect in (ChatCompletions(), Messages(), Responses()):
            app.router.add_post(f"/v1{dialect.path}", functools.partial(self._complete, dialect))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _complete(self, dialect: Dialect, request: web.Request) -> web.StreamResponse:
        chat = dialect.read(await request.read(), {})
        self.asked.append(chat.body)
        answer_id = f"large{len(self.asked)}"
        message, finish = _message(chat.body, len(self.asked))
        head = {"id": f"chatcmpl-{answer_id}", "created": 1, "model": chat.client_model}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        if not chat.stream:
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
            completion = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            return web.json_response(dialect.whole(chat, answer_id, completion, None))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        writer = dialect.writer(chat, answer_id)
        head["object"] = "chat.completion.chunk"
        for delta in _deltas(message):
            choice = {"index": 0, "delta": delta, "finish_reason": None}
            await response.write(b"".join(writer.events({**head, "choices": [choice]})))
        ended = {"index": 0, "delta": {}, "finish_reason": finish}
        last = [{**head, "choices": [ended]}, {**head, "choices": [], "usage": usage}]
        await response.write(b"".join(writer.ending(last, None)))
        return response


def _message(body: Mapping[str, Any], number: int) -> tuple[dict[str, Any], str]:
    move = _MOVES.get(_turn(body["messages"]))
    offered = {tool["function"]["name"] for tool in body.get("tools") or ()}
    if move is None and "final_answer" in offered:
        move = ("final_answer", {"answer": ANSWER})
    if move is None:
        return {"role": "assistant", "content": ANSWER}, "stop"
    function = {"name": move[0], "arguments": json.dumps(move[1])}
    call = {"id": f"call_large_{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"


def _deltas(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None if "tool_calls" in message else ""}]
    for call in message.get("tool_calls", ()):
        empty = {**call, "index": 0, "function": {**call["function"], "arguments": ""}}
        deltas.append({"tool_calls": [empty]})
        for piece in _pieces(call["function"]["arguments"]):
            deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
    return deltas + [{"content": piece} for piece in _pieces(message["content"] or "")]


def _pieces(text: str) -> list[str]:
    return [text[start : start + _PIECE_CHARS] for start in range(0, len(text), _PIECE_CHARS)]


class World:
    """A running gateway, for one run of one agent."""

    def __init__(self, url: str, app: Any, large: Large) -> None:
        self.url, self._app, self.large = url, app, large

    async def rows(self) -> list[DecisionRow]:
        """The decisions so far, oldest first."""
        rows: list[DecisionRow] = await self._app.services.ledger.page()
        return sorted(rows, key=lambda row: row.decision_id)


@contextlib.asynccontextmanager
async def world(folder: Path, *, forwarded: bool) -> AsyncIterator[World]:
    """Run everything until the block ends; `forwarded`: the large model's server is asked in the client's dialect, else
    in chat completions."""
    large = Large()
    async with large.running() as base:
        settings = Settings.model_validate(
            {
                "large": {
                    "model": "openai/gpt-4o-2024-08-06",
                    "api_base": base,
                    "api_key": "unused",
                    "forward": ["chat_completions", "messages", "responses"] if forwarded else ["chat_completions"],
                },
                "policy": {"kind": "threshold", "threshold": 0.5},
                "ledger": {"url": f"sqlite+aiosqlite:///{folder / 'ledger.db'}"},
            }
        )
        app = create_app(settings, small=Small())
        async with served(app) as url:
            async with asyncio.timeout(120):
                while not app.services.large.ready:  # noqa: ASYNC110 - litellm's import
                    await asyncio.sleep(0.05)
            yield World(url, app, large)
