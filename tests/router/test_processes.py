"""Real processes: a worker that is killed, a gateway that is killed, and what the gateway's process never imports."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from evaluation.demo.rows import load_demo
from evaluation.recorded.server import RecordedServer
from policies.bundle.bundle import save
from policies.bundle.manifest import GateEntry, Manifest, ScoreEntry, Stages
from router.constants import Constants
from router.lab.gateway_process import free_port
from router.ledger.store import Ledger
from router.server.app import create_app
from router.settings import Settings
from tests.router.cascade.test_gateway import Scripted, ask
from tests.router.conftest import served

ROWS = load_demo()


def recorded() -> RecordedServer:
    return RecordedServer([row.recorded for row in ROWS], [row.case for row in ROWS])


def settings(tmp_path: Path, upstream: str, synchronous: str = "full") -> Settings:
    return Settings.model_validate(
        {
            "small": {"max_tokens": 64, "threads": 1, "adapter": "none"},
            "large": {"model": "openai/gpt-4o-2024-08-06", "api_base": upstream, "api_key": "unused"},
            "policy": {"kind": "threshold", "threshold": 0.0},
            "ledger": {"url": f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}", "synchronous": synchronous},
        }
    )


async def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition of another process, which nothing here could signal."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - the condition lies outside this event loop
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_killed_worker_costs_no_answer(tmp_path: Path, llama_folder: Path) -> None:
    """`kill -9` of the worker during 20 concurrent requests: 20 answers, 0 errors, and a new worker."""
    async with recorded() as upstream:
        app = create_app(settings(tmp_path, upstream.url), model_folder=llama_folder)
        async with served(app) as url, aiohttp.ClientSession() as session:
            supervisor = app.services.small
            await until(lambda: supervisor.info is not None)
            first = supervisor.pid

            async def ask(index: int) -> int:
                case = ROWS[index].case
                body = {"model": "gpt-4o", "messages": case.messages, "tools": case.tools}
                async with session.post(url + "/chat/completions", json=body) as response:
                    await response.json()
                    return response.status

            asking = [asyncio.create_task(ask(index)) for index in range(20)]
            await asyncio.sleep(0.2)
            os.kill(first, signal.SIGKILL)
            assert [await task for task in asking] == [200] * 20
            await until(lambda: supervisor.info is not None and supervisor.pid not in (None, first))
            reasons = {row.reason for row in await app.services.ledger.page()}
            assert reasons & {"worker_lost", "worker_unavailable"}


@contextlib.asynccontextmanager
async def gateway_process(configured: Settings, folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """`smallcall serve` without a small model, as a process of its own, and its base URL once it is ready."""
    port = free_port()
    config = configured.model_dump(mode="json")
    config["server"]["port"] = port
    config["small"]["enabled"] = False
    config["large"]["api_key"] = "unused"
    file = folder / "smallcall.yaml"
    file.write_text(json.dumps(config))
    with (folder / "gateway.log").open("wb") as log:
        line = [sys.executable, "-m", "router", "serve", "--config", str(file)]
        process = await asyncio.create_subprocess_exec(*line, stdout=log, stderr=log)
    root = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while not await ready(session, root + "/readyz"):
                assert process.returncode is None, (folder / "gateway.log").read_text()
                await asyncio.sleep(0.1)
        yield process, root + "/v1"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.slow
async def test_the_engine_is_served_by_itself(tmp_path: Path, llama_folder: Path) -> None:
    """`smallcall engine serve`: the real worker behind a key, a guided completion, and a clean end on SIGTERM."""
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "smallcall.yaml").write_text(
        json.dumps({"small": {"model": str(llama_folder), "adapter": "none", "threads": 1}})
    )
    port = free_port()
    options = ["--config", str(tmp_path / "smallcall.yaml"), "--port", str(port), "--key-file", str(tmp_path / "key")]
    line = [sys.executable, "-m", "router", "engine", "serve", *options]
    with (tmp_path / "engine.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*line, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        async with asyncio.timeout(120), aiohttp.ClientSession(headers={"authorization": "Bearer secret"}) as session:
            while not await ready(session, f"{url}/models"):
                assert process.returncode is None, (tmp_path / "engine.log").read_text()
                await asyncio.sleep(0.1)
            body = {"model": llama_folder.name, "prompt": "Say", "structured_outputs": {"grammar": 'root ::= "Oslo"'}}
            async with session.post(f"{url}/completions", json=body) as response:
                assert (await response.json())["choices"][0]["text"] == "Oslo"
            async with session.post(f"{url}/completions", json=body, headers={"authorization": ""}) as response:
                assert response.status == 401
            process.terminate()
            assert await process.wait() in (0, -signal.SIGTERM), (tmp_path / "engine.log").read_text()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_a_killed_gateway_loses_no_answered_row(tmp_path: Path, synchronous: str) -> None:
    """Every request that a client saw answered before `kill -9` of the gateway has its row, streamed ones too; also
    where SQLite does not wait for the disk."""
    seen: list[str] = []
    async with (
        recorded() as upstream,
        aiohttp.ClientSession() as session,
        gateway_process(settings(tmp_path, upstream.url, synchronous), tmp_path) as (process, url),
    ):

        async def work(index: int) -> None:
            while True:
                case = ROWS[index % len(ROWS)].case
                body = {"model": "m", "messages": case.messages, "tools": case.tools, "stream": index % 16 < 8}
                async with session.post(url + "/chat/completions", json=body) as response:
                    answer = await response.read()
                    assert response.status == 200
                    assert answer.endswith(b"data: [DONE]\n\n" if body["stream"] else b"}")
                    seen.append(response.headers["x-smallcall-decision-id"])
                index += 8

        working = [asyncio.create_task(work(index)) for index in range(8)]
        await until(lambda: len(seen) >= 60)
        process.kill()
        ended = await asyncio.gather(*working, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientError) for end in ended), ended
    async with Ledger.open(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}") as ledger:
        stored = {row.decision_id for row in await ledger.page(limit=100_000)}
    assert set(seen) <= stored


def test_the_gateway_imports_neither_torch_nor_litellm_to_start() -> None:
    """Importing all that `serve` needs leaves torch, transformers, litellm and alembic out."""
    code = (
        "import sys, router.server.run, router.__main__;"
        "print([m for m in ('torch', 'transformers', 'litellm', 'alembic') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
async def test_a_draft_given_up_at_its_plan_frees_its_slot_at_once(tmp_path: Path, llama_folder: Path) -> None:
    """Thirty drafts of up to 1,500 tokens, escalated when their plan stands: one may wait and none is refused, none
    waits for another's arguments, and no row has tokens beyond a plan's."""
    policy = Stages(threshold=0.0, plan_gate=GateEntry(judge=ScoreEntry(score="weakest_token"), threshold=2.0))
    save(tmp_path / "bundle", Manifest(judge=ScoreEntry(score="weakest_token"), policy=policy))
    base = settings(tmp_path, "http://127.0.0.1:9").model_dump(mode="json", exclude={"large", "policy"})
    small = {**base["small"], "max_tokens": 1500, "deadline_s": 120.0}
    policy_section = {"kind": "bundle", "path": str(tmp_path / "bundle")}
    configured = Settings.model_validate({**base, "small": small, "policy": policy_section})
    app = create_app(configured, model_folder=llama_folder, large=Scripted(), constants=Constants(max_queue=1))
    async with served(app) as url, aiohttp.ClientSession() as session:
        await until(lambda: app.services.small.info is not None, 120.0)
        for index in range(30):
            body = ask(messages=[{"role": "user", "content": f"Paris {index}?"}], tool_choice="required")
            async with session.post(url + "/chat/completions", json=body) as response:
                assert response.status == 200, await response.text()
                assert response.headers["x-smallcall-reason"] == "unsure_plan"
        rows = await app.services.ledger.page()
    assert {(row.stage, row.side, row.small_steps) for row in rows} == {("during", "large", None)}
    assert max(row.small_queue_s or 0.0 for row in rows) < 1.0
    assert max(row.small_completion_tokens or 0 for row in rows) < 500


@pytest.mark.slow
async def test_torch_is_not_imported_by_answering(tmp_path: Path, llama_folder: Path) -> None:
    """A gateway that drafted with a real worker and escalated through litellm has not imported torch."""
    code = f"""
import asyncio, sys, json, aiohttp
from pathlib import Path
from router.server.app import create_app
from router.lab.gateway_process import free_port
from tests.router.conftest import served
from tests.router.test_processes import ROWS, recorded, settings
async def main():
    async with recorded() as upstream:
        app = create_app(settings(Path({str(tmp_path)!r}), upstream.url), model_folder=Path({str(llama_folder)!r}))
        async with served(app) as url, aiohttp.ClientSession() as session:
            while app.services.small.info is None:
                await asyncio.sleep(0.05)
            case = ROWS[0].case
            body = dict(model="m", messages=case.messages, tools=case.tools)
            async with session.post(url + "/chat/completions", json=body) as response:
                assert response.status == 200, await response.text()
            (row,) = await app.services.ledger.page()
            assert row.small_completion_tokens, row
    print(json.dumps([m for m in ("torch", "transformers") if m in sys.modules]))
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE, cwd=Path.cwd())
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1]) == []
