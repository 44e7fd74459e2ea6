"""One environment a client, under a cache folder, made once: a virtual environment, or a folder of node modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.clients.roster import Client

INSTALL_TIMEOUT_S = 900


def made(client: Client, cache: Path) -> tuple[list[str], str]:
    """The command that runs the client's scripts, and the installed version of its first package.

    Raises:
        subprocess.SubprocessError: it cannot be installed.
    """
    folder = cache / (client.environment or client.name)
    stamp = folder / "installed.json"
    wanted = json.dumps(client.packages)
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        _install(client, folder)
        stamp.write_text(wanted)
    return _command(client, folder), _version(client, folder)


def _install(client: Client, folder: Path) -> None:
    if client.kind == "npm":
        (folder / "package.json").write_text('{"type": "module", "private": true}')
        line = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *client.packages]
        subprocess.run(line, cwd=folder, check=True, timeout=INSTALL_TIMEOUT_S)
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=INSTALL_TIMEOUT_S)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *client.packages], check=True, timeout=INSTALL_TIMEOUT_S)


def _command(client: Client, folder: Path) -> list[str]:
    script = Path(__file__).parent / "agents" / client.script
    if client.kind == "pip":
        return [str(folder / "bin" / "python"), str(script)]
    # node looks for modules from the script's own folder upwards.
    for one in script.parent.glob("*.mjs"):
        (folder / one.name).write_bytes(one.read_bytes())
    return ["node", str(folder / client.script)]


def _version(client: Client, folder: Path) -> str:
    first = client.packages[0]
    if client.kind == "npm":
        return str(json.loads((folder / "node_modules" / first / "package.json").read_text())["version"])
    ask = f"import importlib.metadata as m; print(m.version({first!r}))"
    line = [str(folder / "bin" / "python"), "-c", ask]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
