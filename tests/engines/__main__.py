"""The conformance suite against llama.cpp's own server, the real model with its adapter as `smallcall models export`
writes it in Q8_0: `make test-remote`.

The server comes from a wheel, into an environment of its own. Beside the checks, the log-probabilities that it tells
under a grammar are held against our worker's over the same prompts: they must be those of the whole distribution.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np

from bench import llamacpp
from bench.engine import ENVIRONMENTS
from bench.run import ADAPTER, base_file, base_folder
from router.small.remote import RemoteModel, RemoteServer
from router.small.worker_client import DraftBuilder, SmallModel
from slm.engine.engine import DraftEngine
from slm.engine.export import export
from tests.engines.conformance import CHECKS, LLAMACPP, asked, drafted

NATS = 0.1
"""By so much a token's log-probability may differ on average: int8 weights against float32."""
TOWNS = ("Oslo", "Rome", "Kyiv", "Lima")


async def checked(model: SmallModel, engine: DraftEngine) -> int:
    """Run all checks and tell of each; how many failed."""
    failed = 0
    for check in CHECKS:
        try:
            await check(model, LLAMACPP)
        except Exception:  # noqa: BLE001  Each check is told of, whatever became of the others.
            failed += 1
            print(f"FAILED  {check.__name__}\n{traceback.format_exc(limit=-3)}", flush=True)
        else:
            print(f"ok      {check.__name__}", flush=True)
    moved = [await _moved(model, engine, f"Weather in {town}?") for town in TOWNS]
    same = [one for one in moved if one is not None]
    print(f"{len(same)} of {len(moved)} drafts are our worker's; log-probabilities a token differ by {same} nats")
    return failed + (not same or max(same) > NATS)


async def _moved(model: SmallModel, engine: DraftEngine, text: str) -> float | None:
    """How far a token's log-probability is from our worker's on average; None where the drafts differ."""
    theirs, told, _ = await drafted(model, asked(text))
    builder = DraftBuilder()
    for event in engine.draft(asked(text)):
        builder.add(event)
    if builder.draft().text != theirs.text:
        return None
    return round(abs(float(np.sum(told.logprob) - np.sum(builder.signals().logprob))) / len(told.logprob), 4)


async def _conforms(engine: DraftEngine) -> int:
    server = RemoteServer(f"http://127.0.0.1:{llamacpp.PORT}/v1", "llama.cpp", guided="llamacpp", check_every_s=0.2)
    async with RemoteModel(server).running() as model:
        async with asyncio.timeout(30):
            while model.info is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return await checked(model, engine)


def main() -> int:
    """Returns the exit code: 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.engines", description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of the server (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smallcall-remote-") as folder:
        (gguf,) = export(base_folder(), ADAPTER, Path(folder) / "exported", ["q8_0"], gguf=base_file())
        environment = ENVIRONMENTS.expanduser() / "llamacpp-wheel"
        environment.parent.mkdir(parents=True, exist_ok=True)
        peer = llamacpp.wheel_server(environment, gguf, arguments.threads)
        print(f"llama.cpp by {peer.package}")
        log = Path(folder) / "server.log"
        with llamacpp.serving(peer, log):
            return 1 if asyncio.run(_conforms(DraftEngine.load(base_folder(), ADAPTER))) else 0


if __name__ == "__main__":
    sys.exit(main())
