"""The gateways that are measured: their environments, how each is started, and how it wants to be asked.

Each peer has the settings that its documentation names for speed, and no store and no key check. Ours is asked with a
virtual key that has a budget and both rates, none of them ever reached, and commits a row: at our expense.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.environments import installed, python_with
from router.lab.gateway_process import free_port

_LARGE = "openai/gpt-4o-2024-08-06"
_MINT_TIMEOUT_S = 60
_LIMITS = ("--hard-usd", "1e6", "--soft-usd", "1e6", "--rpm", "10000000", "--tpm", "1000000000")
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class GatewayPlace:
    """The ports and folder of one gateway's run."""

    port: int
    upstream: int
    """Port of the upstream."""
    folder: Path
    """An existing folder of its own, for configuration and files."""
    home: Path
    """Its environment; its own folder where it needs none."""

    @property
    def base(self) -> str:
        """The upstream as a provider."""
        return f"http://127.0.0.1:{self.upstream}/v1"


@dataclass(frozen=True, slots=True)
class GatewayPeer:
    """One gateway."""

    name: str
    start: Callable[[GatewayPlace], list[str]]
    """Writes what configuration it needs and gives its command."""
    model: str = "gpt-4o"
    path: str = _CHAT
    packages: tuple[str, ...] = ()
    """Packages of its environment; the version of the first is reported. None: it runs in ours."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Versions of what npm packages bring along, where the newest does not work."""
    kind: str = "pip"
    ready: str = "/"
    """A path that answers below 500 once it can work."""
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Callable[[GatewayPlace], Mapping[str, str]] = lambda place: {}
    url_file: str = ""
    """Below its folder: it chooses its own port and writes its URL there."""


def made(peer: GatewayPeer, cache: Path) -> Path:
    """The peer's environment, made once. Raises bench.environments.InstallError, OSError."""
    folder = cache / peer.name.lower().replace(" ", "-")
    if not peer.packages:
        return folder
    if peer.kind == "pip":
        python_with(folder, peer.packages)
        return folder
    stamp, wanted = folder / "installed.json", json.dumps([peer.packages, dict(peer.overrides)])
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # npm would keep versions that are not wanted any more.
    shutil.rmtree(folder / "node_modules", ignore_errors=True)
    (folder / "package-lock.json").unlink(missing_ok=True)
    package = {"type": "module", "private": True, "overrides": dict(peer.overrides)}
    (folder / "package.json").write_text(json.dumps(package))
    line = [_program("npm"), "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *peer.packages]
    installed(line, folder)
    stamp.write_text(wanted)
    return folder


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise OSError(f"{name} is not installed")
    return found


def _smallcall(place: GatewayPlace, synchronous: str = "full") -> list[str]:
    """Mints a key in the database that is then served."""
    config = {
        "server": {"port": place.port},
        "small": {"enabled": False},
        "large": {"model": _LARGE, "api_base": place.base, "api_key": "upstream"},
        "ledger": {"url": f"sqlite+aiosqlite:///{place.folder / 'ledger.db'}", "synchronous": synchronous},
    }
    file = place.folder / "smallcall.yaml"
    file.write_text(json.dumps(config))
    command, configured = [sys.executable, "-m", "router"], ["--config", str(file)]
    mint = [*command, "keys", "create", "--name", "bench", *_LIMITS, "--json", *configured]
    got = subprocess.run(mint, check=True, capture_output=True, text=True, timeout=_MINT_TIMEOUT_S)
    (place.folder / "key").write_text(json.loads(got.stdout)["key"])
    return [*command, "serve", *configured]


def _smallcall_normal(place: GatewayPlace) -> list[str]:
    return _smallcall(place, "normal")


def _smallcall_headers(place: GatewayPlace) -> Mapping[str, str]:
    return {"authorization": f"Bearer {(place.folder / 'key').read_text()}"}


def _bare(place: GatewayPlace) -> list[str]:
    return [sys.executable, "-m", "bench.gateway_bare", str(place.port), str(place.upstream)]


def _raw(place: GatewayPlace) -> list[str]:
    return [*_bare(place), "raw"]


def _litellm(place: GatewayPlace) -> list[str]:
    config = {
        "model_list": [
            {
                "model_name": "gpt-4o",
                "litellm_params": {"model": _LARGE, "api_base": place.base, "api_key": "upstream"},
            }
        ],
        "litellm_settings": {"set_verbose": False, "telemetry": False, "num_retries": 0},
        "general_settings": {"disable_spend_logs": True},
    }
    file = place.folder / "litellm.yaml"
    file.write_text(json.dumps(config))
    line = [str(place.home / "bin/litellm"), "--config", str(file), "--port", str(place.port)]
    return [*line, "--host", "127.0.0.1", "--num_workers", "1", "--telemetry", "False"]


def _portkey(place: GatewayPlace) -> list[str]:
    script = place.home / "node_modules/@portkey-ai/gateway/build/start-server.js"
    return [_program("node"), str(script), f"--port={place.port}", "--headless"]


def _portkey_headers(place: GatewayPlace) -> Mapping[str, str]:
    return {"x-portkey-provider": "openai", "x-portkey-custom-host": place.base, "authorization": "Bearer upstream"}


def _tensorzero(place: GatewayPlace) -> list[str]:
    file = place.folder / "tensorzero.toml"
    file.write_text(
        "[gateway]\nobservability.enabled = false\n\n[models.bench]\nrouting = ['up']\n\n"
        "[models.bench.providers.up]\ntype = 'openai'\nmodel_name = 'gpt-4o'\n"
        f"api_base = '{place.base}/'\napi_key_location = 'none'\n"
    )
    script = Path(__file__).parent / "gateway_tensorzero.py"
    return [str(place.home / "bin/python"), str(script), str(file), str(place.folder / "url")]


def _smg(place: GatewayPlace) -> list[str]:
    line = [str(place.home / "bin/python"), "-m", "smg.launch_router", "--host", "127.0.0.1", "--port", str(place.port)]
    worker = f"http://127.0.0.1:{place.upstream}"
    return [*line, "--worker-urls", worker, "--policy", "round_robin", "--prometheus-port", str(free_port())]


PEERS = (
    GatewayPeer("smallcall", _smallcall, model="smallcall/large", ready="/readyz", headers=_smallcall_headers),
    GatewayPeer(
        "smallcall-normal",
        _smallcall_normal,
        model="smallcall/large",
        ready="/readyz",
        headers=_smallcall_headers,
    ),
    GatewayPeer("bare FastAPI", _bare, ready="/docs"),
    GatewayPeer("bare ASGI", _raw, ready=""),
    GatewayPeer(
        "LiteLLM",
        _litellm,
        packages=("litellm[proxy]==1.106.2", "uvloop"),
        ready="/health/liveliness",
        environment={
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOG": "ERROR",
            # It then checks no key, which is in its favour.
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
        },
    ),
    GatewayPeer(
        "Portkey",
        _portkey,
        packages=("@portkey-ai/gateway@1.15.2",),
        # Its streams fail with what it would bring along: "TypeError: immutable", from 1.14 on.
        overrides={"@hono/node-server": "1.13.8"},
        kind="npm",
        headers=_portkey_headers,
    ),
    GatewayPeer(
        "TensorZero",
        _tensorzero,
        model="tensorzero::model_name::bench",
        path="/openai/v1/chat/completions",
        packages=("tensorzero==2026.6.0",),
        ready="/health",
        url_file="url",
    ),
    GatewayPeer("SGLang gateway", _smg, packages=("smg==1.13.0",), ready="/health"),
)
