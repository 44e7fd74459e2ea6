"""`make test-clients`: real client libraries, each in an environment of its own, run an agent against the gateway.

The agent has two tools; the first call fails. Each runs whole and streamed. Whoever is not as it must be is told, the
exit code is 1, and docs/clients.md holds the table of what was run, nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients.environments import made
from tests.clients.roster import CLIENTS, Client
from tests.clients.world import ANSWER, FAILURE, SIDES, world

RUN_TIMEOUT_S = 180
TABLE = Path(__file__).parents[2] / "docs" / "clients.md"
_HEAD = """# Clients

Written by `make test-clients` on {day}. Each client, in an environment of its own, runs an agent with two tools against
a running gateway: the small model makes the first call, whose tool fails, and the third; the large model, behind a
server of all three dialects, makes the second call and gives the answer. A pass: the answer is right, the ledger has
these four decisions in the client's dialect and no other, the tool's error reached the large model, and the id of a
call of the small model came back in the conversation. Chat completions are forwarded to that server; Responses and
Messages are translated by litellm, and forwarded in the last two columns. Not shown by a pass: several calls at once,
reasoning. The Vercel AI SDK's Responses run with `store: false`, which is not its default: by default it refers to
items that the gateway does not store, which is a 400 ([api.md](api.md)).

| client | version | dialect | whole | streamed | forwarded, whole | forwarded, streamed |
|---|---|---|---|---|---|---|
"""


async def tried(client: Client, command: list[str], mode: str, *, forwarded: bool) -> str:
    """`pass`, or what went wrong."""
    with tempfile.TemporaryDirectory(prefix="smallcall-client-") as folder:
        async with world(Path(folder), forwarded=forwarded) as running:
            kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
            process = await asyncio.create_subprocess_exec(
                *command,
                client.argument,
                mode,
                env={**kept, "SMALLCALL_URL": running.url, "HOME": folder},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            try:
                out, err = await asyncio.wait_for(process.communicate(), RUN_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()
                return "no answer in time"
            rows = await running.rows()
            said = " ".join(str(body["messages"]) for body in running.large.asked)
    if process.returncode != 0:
        sys.stderr.write(err.decode(errors="replace")[-3000:])
        return "error: " + (err.decode(errors="replace").strip().splitlines() or ["?"])[-1][:200]
    if ANSWER not in out.decode():
        return f"answered {out.decode().strip()[-200:]!r}"
    seen = [(row.side, row.dialect, row.status) for row in rows]
    if seen != [(side, client.dialect, 200) for side in SIDES]:
        return f"decisions {[(*one, row.reason) for one, row in zip(seen, rows, strict=True)]}"
    if FAILURE not in said:
        return "the tool's error did not reach the large model"
    made_small = [row.decision_id for row in rows if row.side == "small"]
    return "pass" if any(one in said for one in made_small) else "the ids of the small model's calls are lost"


async def main() -> int:
    """Run those that were asked for; the table is written where that is all, client by client."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="beginnings of names; none: all")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/smallcall/clients"))
    options = parser.parse_args()
    lines, failed = [], 0
    for client in CLIENTS:
        if options.names and not client.name.startswith(tuple(options.names)):
            continue
        try:
            command, version = await asyncio.to_thread(made, client, options.cache.expanduser())
        except (subprocess.SubprocessError, OSError) as error:
            failed += 1
            sys.stdout.write(f"{client.name}: not installed: {type(error).__name__}\n")
            continue
        ways = (False,) if client.dialect == "chat_completions" else (False, True)
        results = [
            await tried(client, command, mode, forwarded=forwarded)
            for forwarded in ways
            for mode in ("whole", "stream")
        ]
        failed += results.count("pass") != len(results)
        told = " | ".join([*results, "", ""][:4])
        lines.append(f"| {client.name} | {version} | {client.dialect} | {told} |\n")
        sys.stdout.write(lines[-1])
        sys.stdout.flush()
        if not options.names:
            day = datetime.datetime.now(datetime.UTC).date().isoformat()
            TABLE.write_text(_HEAD.format(day=day) + "".join(lines), encoding="utf-8")
    sys.stdout.write(f"{len(lines)} clients run, {failed} not passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
