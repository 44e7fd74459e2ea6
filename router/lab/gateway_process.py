"""A gateway in a process of its own, for commands that need one: started on a free port, awaited, stopped cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from router.settings import Settings

START_S = 180.0


@contextlib.asynccontextmanager
async def gateway_process(
    settings: Settings, model_folder: Path, folder: Path, *, large: tuple[str, str] | None = None
) -> AsyncIterator[str]:
    """Run a gateway with its configuration, ledger and log in `folder`, which exists; yields its base URL when ready.

    Args:
        large: litellm's name of the large model and the base URL of an endpoint that asks for no key; none without.

    Raises:
        RuntimeError: it ended before it was ready.
    """
    port = free_port()
    adapter = str(settings.small.adapter_folder or "none")
    config = {
        "server": {"port": port},
        "small": {**settings.small.model_dump(mode="json"), "model": str(model_folder), "adapter": adapter},
        "ledger": {"url": f"sqlite+aiosqlite:///{folder / 'ledger.db'}"},
        "policy": settings.policy,
    }
    if large is not None:
        config["large"] = {"model": large[0], "api_base": large[1], "api_key": "unused"}
    file = folder / "smallcall.yaml"
    await asyncio.to_thread(file.write_text, json.dumps(config, indent=1))
    with (folder / "gateway.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router", "serve", "--config", str(file), stdout=log, stderr=log
        )
        try:
            await _until_ready(process, f"http://127.0.0.1:{port}/readyz", folder / "gateway.log")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()


async def _until_ready(process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(START_S):
        while process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.2)
    raise RuntimeError(f"the gateway ended with {process.returncode}; its log is {log}")


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
