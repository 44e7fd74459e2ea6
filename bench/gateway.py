"""Our gateway side by side with others in one run: `make bench-gateway`, minutes on a quiet machine.

Each gateway runs on one core; the load and an upstream that answers at once share another. All are started, and then
each point (connections, streamed or whole) is measured with one gateway after another, so that whatever else the
machine does falls on all alike. Ours is the real server: its key checked and its limits counted, the request parsed and
pinned large, its decision's row committed before the answer ends, metrics and log written. What is compared within one
run counts; absolute figures are of the machine and the day. `load core` says how busy the load and the upstream were:
near 100 % the gateway could do more than is seen.

`--setup` makes the environments of the others and ends: what is measured later then needs no network.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gateway_peers import PEERS, GatewayPeer, GatewayPlace, made
from bench.gateway_process import Measured, pinned
from bench.gateway_report import OURS, markdown
from bench.gateway_traffic import request_body
from router.cli.provenance import commit
from router.lab.gateway_process import free_port

RESULTS = Path("evaluation/results")
CACHE = Path("~/.cache/smallcall-bench")
CONNECTIONS = (1, 16, 64)
WARM_S = 1.0
UPSTREAM = "direct"
"""Name of the point that asks the upstream without any gateway."""


@dataclass
class GatewayContender:
    """A gateway that runs, or why it does not."""

    peer: GatewayPeer
    version: str = ""
    process: Measured | None = None
    place: GatewayPlace | None = None
    port: int = 0
    idle_mb: float = 0.0
    error: str = ""
    answered: int = 0
    wrong: str = ""


def main() -> int:
    """Measure and write the results. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="names of gateways, comma-separated (default: all)")
    parser.add_argument("--setup", action="store_true", help="only make the environments of the others")
    parser.add_argument("--seconds", type=float, default=10.0, help="a point (default: %(default)s: 12 minutes in all)")
    parser.add_argument("--connections", default=",".join(map(str, CONNECTIONS)), help="default: %(default)s")
    parser.add_argument("--modes", default="whole,stream", help="default: %(default)s")
    parser.add_argument("--server-core", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--load-core", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="environments of the others (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help=f"folder; without --only: {RESULTS}")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended
    wanted = [name.strip().lower() for name in options.only.split(",") if name.strip()]
    peers = [peer for peer in PEERS if not wanted or peer.name.lower() in wanted]
    if len(peers) < len(wanted):
        parser.error(f"--only takes {', '.join(peer.name for peer in PEERS)}")
    if options.setup:
        return _set_up(peers, options.cache.expanduser())
    out = options.out or (None if wanted else RESULTS)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)  # before minutes of measuring, not after
        except OSError as error:
            parser.error(f"--out {out}: {error.strerror}")
    result = measure(peers, options)
    if out is not None:
        (out / "gateway.json").write_text(json.dumps(result, indent=1) + "\n")
        (out / "gateway.md").write_text(markdown(result))
    sys.stdout.write(markdown(result))
    return 0


def _set_up(peers: list[GatewayPeer], cache: Path) -> int:
    failed = 0
    for peer in peers:
        try:
            home = made(peer, cache)
            sys.stderr.write(f"{peer.name} {_version(peer, home)}: ready\n")
        except (OSError, subprocess.SubprocessError) as error:
            failed = 1
            sys.stderr.write(f"{peer.name}: {error}\n")
    return failed


def measure(peers: list[GatewayPeer], options: argparse.Namespace) -> dict[str, Any]:
    """All points of all gateways."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="smallcall-bench-")))
        upstream = free_port()
        line = [sys.executable, "-m", "bench.gateway_upstream", str(upstream)]
        (folder / "upstream").mkdir()
        served = stack.enter_context(pinned(line, options.load_core, folder / "upstream", {}))
        served.await_ready(f"http://127.0.0.1:{upstream}/")
        contenders = [_started(peer, upstream, folder, options, stack) for peer in peers]
        points = []
        for mode in options.modes.split(","):
            for connections in map(int, options.connections.split(",")):
                spec = {"stream": mode == "stream", "connections": connections, "seconds": options.seconds}
                points.append(_point(spec, contenders, served, upstream, options))
        return {
            "command": shlex.join(["python", "-m", "bench.gateway", *sys.argv[1:]]),
            "commit": commit(),
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {"cpus": os.cpu_count(), "load_average": os.getloadavg(), "platform": platform.platform()},
            "python": platform.python_version(),
            "seconds_a_point": options.seconds,
            "request_bytes": len(request_body("smallcall/large", stream=False)),
            "gateways": {one.peer.name: _about(one) for one in contenders},
            "points": points,
            "rows": _rows(contenders),
        }


def _started(
    peer: GatewayPeer, upstream: int, folder: Path, options: argparse.Namespace, stack: contextlib.ExitStack
) -> GatewayContender:
    one = GatewayContender(peer)
    try:
        home = made(peer, options.cache.expanduser())
        own = folder / peer.name.replace(" ", "-")
        own.mkdir()
        place = one.place = GatewayPlace(free_port(), upstream, own, home)
        one.version = _version(peer, home)
        environment = {"OMP_NUM_THREADS": "1", **peer.environment}
        process = stack.enter_context(pinned(peer.start(place), options.server_core, own, environment))
        one.port = place.port
        if peer.url_file:
            one.port = _reported_port(process, own / peer.url_file)
        process.await_ready(f"http://127.0.0.1:{one.port}{peer.ready}")
        one.idle_mb, one.process = process.rss_mb(), process
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        one.error = f"{type(error).__name__}: {error}"[:600]
    sys.stderr.write(f"{peer.name} {one.version}: {one.error or f'{one.idle_mb:.0f} MB'}\n")
    return one


def _reported_port(process: Measured, file: Path) -> int:
    process.await_file(file)
    return urllib.parse.urlsplit(file.read_text()).port or 0


def _version(peer: GatewayPeer, home: Path) -> str:
    if not peer.packages:
        return ""
    first = peer.packages[0]
    if peer.kind == "npm":
        name = first.rpartition("@")[0]
        return str(json.loads((home / "node_modules" / name / "package.json").read_text())["version"])
    name = first.partition("=")[0].partition("[")[0]
    ask = f"import importlib.metadata as m; print(m.version({name!r}))"
    line = [str(home / "bin/python"), "-c", ask]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def _point(
    spec: dict[str, Any], contenders: list[GatewayContender], upstream: Measured, port: int, options: argparse.Namespace
) -> dict[str, Any]:
    def asked(extra: dict[str, Any]) -> dict[str, Any]:
        before = upstream.cpu_s()
        got = _load({**spec, "warm_s": WARM_S, **extra}, options.load_core)
        got["load_core"] = (got.pop("cpu_s") + upstream.cpu_s() - before) / (spec["seconds"] + WARM_S)
        return got

    direct = asked({"port": port, "path": "/v1/chat/completions", "model": "gpt-4o"})
    measured = {UPSTREAM: direct}
    for one in contenders:
        if one.process is None or one.place is None:
            continue
        before = one.process.cpu_s()
        peer = one.peer
        headers = dict(peer.headers(one.place))
        got = asked({"port": one.port, "path": peer.path, "model": peer.model, "headers": headers})
        one.answered += got["answered"]
        one.wrong = one.wrong or (got["example"] or "").replace("|", " ")[-200:]
        if not got["requests"]:
            sys.stderr.write(f"{peer.name}: no answer: {one.wrong}\n")
            continue
        got["cpu_us"] = 1e6 * (one.process.cpu_s() - before) / max(1, got["answered"])
        got["added_p50_us"], got["added_p99_us"] = (got[key] - direct[key] for key in ("p50_us", "p99_us"))
        got["rss_mb"] = one.process.rss_mb()
        measured[peer.name] = got
        sys.stderr.write(
            f"{spec['connections']:3d} {'stream' if spec['stream'] else 'whole'} {peer.name}: {got['per_s']:.0f}/s, "
            f"{got['cpu_us']:.0f} µs CPU, errors {got['errors']} {got['example'] or ''}\n"
        )
    return {"connections": spec["connections"], "stream": spec["stream"], "measured": measured}


def _load(spec: dict[str, Any], core: int) -> dict[str, Any]:
    line = ["/usr/bin/taskset", "-c", str(core), sys.executable, "-m", "bench.gateway_load", json.dumps(spec)]
    got = subprocess.run(line, check=True, capture_output=True, text=True, timeout=spec["seconds"] + 60)
    made_of_it: dict[str, Any] = json.loads(got.stdout)
    return made_of_it


def _about(one: GatewayContender) -> dict[str, Any]:
    return {"version": one.version, "idle_mb": one.idle_mb, "error": one.error, "first_wrong_answer": one.wrong}


def _rows(contenders: list[GatewayContender]) -> dict[str, int] | None:
    """Answers that were seen and rows of our ledger: more rows than answers where the end cut requests off."""
    ours = next((one for one in contenders if one.peer.name == OURS and one.place and one.process), None)
    if ours is None or ours.place is None:
        return None
    with contextlib.closing(sqlite3.connect(ours.place.folder / "ledger.db")) as ledger:
        [(rows,)] = ledger.execute("SELECT count(*) FROM decisions")
    return {"answered": ours.answered, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
