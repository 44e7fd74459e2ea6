"""Labels from feedback and from what an agent does next."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from router.ledger.outcomes import OutcomeLabel, known, of_decision, places, record
from router.ledger.row import LargeCall
from router.ledger.store import Ledger
from router.outcomes.labels import observations
from router.outcomes.tool_results import Fault, read_result
from router.outcomes.watch import MAX_BYTES, OutcomeWatch
from router.server.app import create_app
from router.settings import Settings
from router.telemetry import Metrics
from tests.router.access.test_keys import ADMIN, call, make_key
from tests.router.cascade.test_gateway import CALL, TOOL, Scripted, ask, post
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.ledger.test_store import row

AT = datetime(2026, 5, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "fault", "reason"),
    [
        ('{"temperature": 21}', Fault.NONE, "executed"),
        ("21 degrees; no error was found", Fault.NONE, "executed"),
        ('{"code": 404, "name": "gate 404"}', Fault.NONE, "executed"),
        ('{"status": "ok", "count": 500}', Fault.NONE, "executed"),
        ('{"error": {"code": 422, "message": "city"}}', Fault.CALL, "status_422"),
        ('{"status": 400, "message": "bad"}', Fault.CALL, "status_400"),
        ('{"status_code": "409"}', Fault.CALL, "status_409"),
        ('{"error": {"code": -32602, "message": "Invalid params"}}', Fault.CALL, "status_32602"),
        ("Error: HTTP 404 Not Found", Fault.CALL, "status_404"),
        ("ValidationError: 1 validation error for get_weather\ncity\n  field required", Fault.CALL, "argument_error"),
        ("Error: unexpected keyword argument 'town'", Fault.CALL, "argument_error"),
        ('{"isError": true, "content": [{"type": "text", "text": "no"}]}', Fault.CALL, "tool_error"),
        ('{"isError": true, "content": [{"type": "text", "text": "HTTP 503"}]}', Fault.ENVIRONMENT, "status_503"),
        ('{"error": "rate limit exceeded"}', Fault.ENVIRONMENT, "environment_error"),
        ('{"status": 401}', Fault.ENVIRONMENT, "status_401"),
        ("Error: status code 502", Fault.ENVIRONMENT, "status_502"),
        ("TimeoutError: timed out after 30 s", Fault.ENVIRONMENT, "environment_error"),
        ("Error: it went wrong", Fault.UNKNOWN, "error_without_cause"),
        ('{"success": false}', Fault.UNKNOWN, "error_without_cause"),
        ("{" * 5000, Fault.NONE, "executed"),
        ("", Fault.NONE, "executed"),
    ],
)
def test_a_results_fault_is_the_calls_or_the_environments(text: str, fault: Fault, reason: str) -> None:
    """By status, by words, and only where the result looks like an error at all."""
    found = read_result(text)
    assert (found.fault, found.reason) == (fault, reason)


def test_a_flag_of_the_client_is_an_error_whatever_the_words() -> None:
    """Messages has `is_error`."""
    assert read_result("city?", flagged=True).reason == "tool_error"
    assert read_result("service unavailable", flagged=True).fault is Fault.ENVIRONMENT


USER = {"role": "user", "content": "What is the weather in Paris today?"}


def called(call_id: str, city: str = "Paris", name: str = "get_weather") -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps({"city": city})}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def result(call_id: str, text: str = "21") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


ONCE = [USER, called("a"), result("a")]
DONE = {"role": "assistant", "content": "21 degrees."}


@pytest.mark.parametrize(
    ("messages", "label", "strength", "reason"),
    [
        (ONCE, None, "none", "executed"),
        ([*ONCE, DONE], 1, "weak", "progress"),
        ([*ONCE, called("b", name="book")], 1, "weak", "progress"),
        ([*ONCE, DONE, {"role": "user", "content": "Thanks! And a hotel?"}], 1, "weak", "progress"),
        ([USER, called("a"), result("a", "Error: HTTP 422")], 0, "strong", "status_422"),
        ([USER, called("a"), result("a", "HTTP 503 error")], None, "none", "executed"),
        ([USER, called("a"), result("a", "Error: HTTP 503")], None, "none", "status_503"),
        ([*ONCE, called("b", "Rome"), result("b")], 0, "medium", "other_arguments"),
        ([*ONCE, called("x", name="f"), result("x"), called("b", "Rome")], 0, "medium", "other_arguments"),
        (
            [*ONCE, called("x", name="f"), result("x"), called("y", name="f"), result("y"), called("b", "Rome")],
            1, "weak", "progress",
        ),
        ([*ONCE, called("b"), result("b")], None, "none", "identical_retry"),
        ([*ONCE, DONE, {"role": "user", "content": "No, I meant Rome."}], 0, "weak", "user_corrects"),
        (
            [*ONCE, DONE, {"role": "user", "content": "What is the weather in Paris, Texas, today?"}],
            0, "weak", "user_rephrases",
        ),
        ([USER, called("a"), result("a", "Error: hm"), DONE], 0, "weak", "error_without_cause"),
    ],
)  # fmt: skip
def test_what_follows_a_call_labels_it(
    messages: list[dict[str, Any]], label: int | None, strength: str, reason: str
) -> None:
    """One row of the table each."""
    found = next(one for one in observations(messages) if one.call_id == "a")
    assert (found.label, found.strength, found.reason) == (label, strength, reason)


def test_only_the_newest_calls_with_a_result_are_looked_at() -> None:
    """A long conversation costs no more than a short one, and a call without a result is no news."""
    turns = [message for i in range(50) for message in (called(f"c{i}", str(i), f"f{i}"), result(f"c{i}"))]
    found = observations([USER, *turns, called("last")])
    assert [one.call_id for one in found] == ["c47", "c48", "c49"]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "tool_calls": "x"}, {"role": "tool"}],
        [{"role": "assistant", "tool_calls": [1, {"id": 4}, {"id": "a", "function": {"name": "f", "arguments": 5}}]},
         {"role": "tool", "tool_call_id": "a", "content": [3, {"text": 4}]}],
        [{"role": "tool", "tool_call_id": "a", "content": {"a": 1}}],
    ],
)  # fmt: skip
def test_hostile_conversations_are_read_over(messages: list[dict[str, Any]]) -> None:
    """Nothing raises."""
    assert all(one.label in (None, 1) for one in observations(messages))


def outcome(**changes: Any) -> OutcomeLabel:
    made = OutcomeLabel(
        decision_id="d", source="implicit", call_index=0, at=AT, label=None, strength="none", reason="r", fault="none"
    )
    return replace(made, **changes)


async def test_a_label_is_replaced_by_one_that_is_as_strong(ledger_url: str) -> None:
    """And never by a weaker one; writing twice leaves one row."""
    async with Ledger.open(ledger_url) as ledger:
        for label, strength, kept in (
            (None, "none", None), (1, "weak", 1), (None, "none", 1), (0, "weak", 0), (0, "strong", 0), (1, "weak", 0),
        ):  # fmt: skip
            await record(ledger.engine, [outcome(label=label, strength=strength)] * 2)
            (found,) = await of_decision(ledger.engine, "d")
            assert found.label == kept
        assert found.at == AT


async def test_ids_of_both_sides_are_recognised(ledger_url: str) -> None:
    """Ours carry the decision; the provider's are looked up, and of two decisions with one id the newest counts."""
    ours = "01m8914s5xvqbkfmwtsx9a8tbt"
    async with Ledger.open(ledger_url) as ledger:
        await ledger.write(row(ours))
        await ledger.write(row("b"), [LargeCall("call_x", "f"), LargeCall("call_y", "g")])
        await ledger.write(row("c"), [LargeCall("call_y", "g")])
        asked = [f"call_{ours}_1", "call_x", "call_y", "call_z", "call_00000000000000000000000000_0"]
        found = await places(ledger.engine, asked, None)
    assert {call_id: (at.decision_id, at.call_index) for call_id, at in found.items()} == {
        f"call_{ours}_1": (ours, 1),
        "call_x": ("b", 0),
        "call_y": ("c", 0),
    }


def test_what_is_known_of_a_decision() -> None:
    """Feedback decides whether it passed; only strong labels are tool errors; no result means nothing is known."""
    told = known([outcome(source="feedback", label=1, strength="strong", fault="unknown")])
    assert (told.passed, told.tool_error) == (True, None)
    assert known([outcome(label=0, strength="strong", fault="call")]).tool_error is True
    assert (
        known([outcome(label=1, strength="weak"), outcome(label=0, strength="medium", fault="call")]).tool_error
        is False
    )
    assert known([outcome(fault="environment")]).tool_error is None
    assert known([outcome(label=1, strength="weak")]).passed is None


def messages_turn(call_id: str, text: str, flagged: bool) -> list[dict[str, Any]]:
    block = {"type": "tool_result", "tool_use_id": call_id, "content": text, "is_error": flagged}
    return [{"role": "user", "content": [block]}]


@pytest.mark.parametrize("dialect", ["chat_completions", "messages", "responses"])
async def test_a_refused_call_of_the_small_model_is_labelled_by_the_next_request(ledger_url: str, dialect: str) -> None:
    """Through the door, in every dialect: the tool's refusal comes back, and the ledger knows whose fault it was."""
    settings = Settings.model_validate({"ledger": {"url": ledger_url}, "policy": {"kind": "small_only"}})
    app = create_app(settings, small=ScriptedSmall(CALL), large=Scripted())
    async with served(app) as url, aiohttp.ClientSession() as session:

        async def send(path: str, body: dict[str, Any]) -> dict[str, Any]:
            async with session.post(url + path, json=body) as response:
                assert response.status == 200, await response.text()
                return dict(await response.json())

        refused = '{"error": {"code": 404, "message": "no such city"}}'
        if dialect == "chat_completions":
            message = (await send("/chat/completions", ask()))["choices"][0]["message"]
            call_id = message["tool_calls"][0]["id"]
            turns = [*ask()["messages"], message, {"role": "tool", "tool_call_id": call_id, "content": refused}]
            await send("/chat/completions", ask(messages=turns))
        elif dialect == "messages":
            tool = {"name": "get_weather", "input_schema": TOOL["function"]["parameters"]}  # type: ignore[index]
            body: dict[str, Any] = {"model": "c", "max_tokens": 99, "messages": [USER], "tools": [tool]}
            answer = await send("/messages", body)
            call_id = answer["content"][0]["id"]
            assistant = {"role": "assistant", "content": answer["content"]}
            await send("/messages", {**body, "messages": [USER, assistant, *messages_turn(call_id, "city?", True)]})
        else:
            tool = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]
            body = {"model": "r", "input": [USER], "tools": [tool]}
            answer = await send("/responses", body)
            call = next(item for item in answer["output"] if item["type"] == "function_call")
            output = {"type": "function_call_output", "call_id": call["call_id"], "output": refused}
            await send("/responses", {**body, "input": [USER, call, output]})
        first = (await app.services.ledger.page())[0].decision_id
        (found,) = await _until(app, first)
    assert (found.label, found.strength, found.fault, found.call_index) == (0, "strong", "call", 0)
    assert found.reason == ("tool_error" if dialect == "messages" else "status_404")


async def _until(app: Any, decision_id: str) -> list[OutcomeLabel]:
    async with asyncio.timeout(5):
        while not (found := await of_decision(app.services.ledger.engine, decision_id)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found


async def test_a_large_models_call_is_recognised_too(ledger_url: str) -> None:
    """Streamed: by the provider's own id, which the ledger keeps."""

    class Calling(Scripted):
        async def __aiter__(self) -> Any:
            function = {"name": "get_weather", "arguments": "{}"}
            call = {"index": 0, "id": "toolu_1", "type": "function", "function": function}
            yield {"id": "x", "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}
            yield {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}

    settings = Settings.model_validate({"ledger": {"url": ledger_url}, "policy": {"kind": "large_only"}})
    app = create_app(settings, large=Calling())
    async with served(app) as url, aiohttp.ClientSession() as session:
        async with session.post(url + "/chat/completions", json=ask(stream=True)) as response:
            await response.read()
        turns = [*ask()["messages"], called("toolu_1"), result("toolu_1"), DONE, {"role": "user", "content": "Thanks"}]
        await post(url, ask(messages=turns))
        first = (await app.services.ledger.page())[0]
        (found,) = await _until(app, first.decision_id)
    assert first.tool == "get_weather"
    assert (found.label, found.strength, found.reason) == (1, "weak", "progress")


async def test_what_cannot_be_recorded_costs_no_answer(gateway: Make) -> None:
    """The table is gone: requests are answered, and the failure is counted."""
    app = gateway(small=ScriptedSmall(CALL), policy={"kind": "small_only"})
    async with served(app) as url:
        async with app.services.ledger.engine.begin() as connection:
            await connection.exec_driver_sql("DROP TABLE calls")
        turns = [*ask()["messages"], called("x"), result("x")]
        for _ in range(3):
            assert (await post(url, ask(messages=turns)))[0] == 200
        async with aiohttp.ClientSession() as session, asyncio.timeout(5):
            while 'smallcall_outcomes_total{strength="failed"} 3.0' not in await _metrics(session, url):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def _metrics(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url.removesuffix("/v1") + "/metrics") as response:
        return await response.text()


async def test_the_queue_of_observations_is_bounded() -> None:
    """Beyond its bytes, requests are not observed, and that is counted."""
    from router.dialects.chat_completions import read_request

    metrics = Metrics()
    watch = OutcomeWatch(None, metrics)  # type: ignore[arg-type]
    chat = read_request(json.dumps(ask(messages=[*ask()["messages"], called("x"), result("x")])).encode())
    large = replace(chat, size_bytes=MAX_BYTES // 2)
    for _ in range(3):
        watch.see(large, None)
    assert metrics.outcomes.labels("dropped")._value.get() == 1


async def _feedback(url: str, body: Any) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.post(url + "/feedback", json=body) as response:
        return response.status, await response.json()


async def test_feedback_is_kept_once_and_may_be_changed(ledger_url: str) -> None:
    """By decision or by call; the same again changes nothing, another opinion replaces it."""
    settings = Settings.model_validate({"ledger": {"url": ledger_url}, "policy": {"kind": "small_only"}})
    app = create_app(settings, small=ScriptedSmall(CALL))
    async with served(app) as url:
        _, headers, answer = await post(url, ask())
        decision_id = headers["x-smallcall-decision-id"]
        call_id = answer["choices"][0]["message"]["tool_calls"][0]["id"]
        for body in ({"label": "pass", "comment": "fine\0"}, {"label": "pass"}, {"score": 0.2}):
            status, told = await _feedback(url, {"decision_id": decision_id, **body})
            assert (status, told) == (200, {"decision_id": decision_id, "call_index": None, "recorded": True})
        status, told = await _feedback(url, {"tool_call_id": call_id, "score": 1})
        assert (status, told["call_index"]) == (200, 0)
        kept = await of_decision(app.services.ledger.engine, decision_id)
    assert [(one.call_index, one.label, one.score, one.strength) for one in kept] == [
        (-1, 0, 0.2, "strong"),
        (0, 1, 1.0, "strong"),
    ]
    assert known(kept).passed is False


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"label": "pass"}, 400, "decision_id"),
        ({"decision_id": "", "label": "pass"}, 400, "decision_id"),
        ({"decision_id": "x" * 300, "label": "pass"}, 400, "decision_id"),
        ({"decision_id": "a\0", "label": "pass"}, 400, "decision_id"),
        ({"decision_id": "x"}, 400, "label"),
        ({"decision_id": "x", "label": "good"}, 400, "label"),
        ({"decision_id": "x", "score": 1.5}, 400, "score"),
        ({"decision_id": "x", "score": True}, 400, "score"),
        ({"decision_id": "x", "label": "pass", "comment": "x" * 2001}, 400, "comment"),
        ({"decision_id": "x", "label": "pass", "verdict": 1}, 400, "verdict"),
        ({"decision_id": "x", "label": "pass"}, 404, "decision_id"),
        ({"tool_call_id": "x", "label": "pass"}, 404, "tool_call_id"),
        ([1], 400, None),
        ({"decision_id": "x", "comment": "x" * 70_000}, 413, None),
    ],
)
async def test_feedback_that_cannot_be_taken_is_refused_by_the_field(
    gateway: Make, body: Any, status: int, param: str | None
) -> None:
    """In OpenAI's shape."""
    async with served(gateway()) as url:
        got, told = await _feedback(url, body)
    assert (got, told["error"]["param"]) == (status, param)


async def test_feedback_counts_as_a_request_and_takes_no_money(ledger_url: str) -> None:
    """A key of three a minute whose budget is spent may still judge its answers, three times a minute."""
    ours = "01m8914s5xvqbkfmwtsx9a8tbt"
    settings = Settings.model_validate({"ledger": {"url": ledger_url}, "access": {"admin_key": ADMIN}})
    app = create_app(settings)
    async with served(app) as url:
        made = await make_key(url, requests_per_minute=3, hard_usd=1e-9)
        await app.services.ledger.write(row(ours, created_at=datetime.now(UTC), key_id=made["id"], charged_nusd=100))
        await app.services.gate.refresh()
        body, headers = {"decision_id": ours, "label": "pass"}, {"x-api-key": made["key"]}
        told = [await call(url, "POST", "/v1/feedback", body, headers) for _ in range(4)]
    assert [status for status, _, _ in told] == [200, 200, 200, 429]
    assert told[3][1]["x-ratelimit-limit-requests"] == "3"


async def test_one_keys_decisions_are_not_anothers_to_judge(ledger_url: str) -> None:
    """Neither by feedback, nor by a result that another key brings; without a key nobody may say anything."""
    ours = "01m8914s5xvqbkfmwtsx9a8tbt"
    settings = Settings.model_validate({"ledger": {"url": ledger_url}, "access": {"admin_key": ADMIN}})
    app = create_app(settings)
    async with served(app) as url:
        blue, red = await make_key(url, tenant="blue"), await make_key(url, tenant="red")
        await app.services.ledger.write(row(ours, key_id=blue["id"]))
        told = {"tool_call_id": f"call_{ours}_0", "label": "fail"}
        statuses = [
            (await call(url, "POST", "/v1/feedback", told, {"authorization": f"Bearer {key}"}))[0]
            for key in (red["key"], "sk-nobody", blue["key"])
        ]
        assert statuses == [404, 401, 200]
        assert (await _feedback(url, told))[0] == 401
        assert await places(app.services.ledger.engine, [f"call_{ours}_0"], red["id"]) == {}
