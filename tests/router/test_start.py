"""A gateway that cannot start says so in one line that names the setting and the remedy: real processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from router.lab.gateway_process import free_port
from slm.weights.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("SMALLCALL_")}


def _config(folder: Path, **changes: Any) -> Path:
    file = folder / "smallcall.yaml"
    values = {
        "server": {"port": 0},
        "small": {"enabled": False},
        "ledger": {"url": f"sqlite+aiosqlite:///{folder / 'ledger.db'}"},
        **changes,
    }
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def _ended(file: Path, *command: str, seconds: float = 60) -> tuple[int, str]:
    line = [sys.executable, "-m", "router", *(command or ("serve",)), "--config", str(file)]
    done = subprocess.run(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, env=PLAIN, check=False
    )
    return done.returncode, done.stdout.strip()


@contextmanager
def _taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    """PostgreSQL that nobody serves, and a SQLite file below something that is no folder; in two commands each."""
    gone = f"postgresql+asyncpg://me:secret@127.0.0.1:{free_port()}/none"
    (tmp_path / "file").write_text("")
    below = f"sqlite+aiosqlite:///{tmp_path / 'file' / 'ledger.db'}"
    for url, part in ((gone, "does the server run there"), (below, "can the folder be made and written")):
        for command in (("serve",), ("costs",)):
            code, told = _ended(_config(tmp_path, ledger={"url": url}), *command)
            assert code == 1, told
            assert told.startswith("ledger.url: "), told
            assert part in told
            assert "secret" not in told
            assert len(told.splitlines()) == 1


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """And a host that is not this machine's."""
    with _taken() as port:
        code, told = _ended(_config(tmp_path, server={"port": port}))
    assert (code, told) == (1, f"server.port: 127.0.0.1:{port} is taken: choose another port")
    code, told = _ended(_config(tmp_path, server={"host": "192.0.2.1", "allow_public": True}))
    assert (code, told.startswith("server.host: 192.0.2.1"), len(told.splitlines())) == (1, True, 1), told


def test_a_model_and_an_adapter_that_are_none_are_one_line(tmp_path: Path, llama_folder: Path) -> None:
    """Neither starts a worker."""
    code, told = _ended(_config(tmp_path, small={"model": str(tmp_path / "nowhere"), "adapter": "none"}))
    assert (code, "nowhere" in told, "Traceback" in told) == (1, True, False), told
    assert "small.model" in told
    code, told = _ended(_config(tmp_path, small={"model": str(llama_folder), "adapter": str(tmp_path / "nowhere")}))
    assert (code, told.startswith("small.adapter: "), len(told.splitlines())) == (1, True, 1), told


def test_a_configuration_that_is_wrong_is_one_line(tmp_path: Path) -> None:
    """Not YAML, an unknown key, a wrong value: the line, the key. Exit code 2, as for options."""
    file = tmp_path / "wrong.yaml"
    for text, part in (
        ("server: [1, 2\nsmall: {", "line"),
        ("sever: {port: 1}", "sever"),
        ("server: {port: many}", "server.port"),
    ):
        file.write_text(text, encoding="utf-8")
        code, told = _ended(file)
        assert (code, part in told, len(told.splitlines())) == (2, True, 1), told


@pytest.mark.slow
def test_an_adapter_for_another_model_stops_the_gateway(tmp_path: Path, llama_folder: Path) -> None:
    """Only the worker sees that it does not fit: the gateway ends, with the reason in its last line."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    halves = {"A": np.zeros((2, 3), np.float32), "B": np.zeros((3, 2), np.float32)}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file({name.format(half): value for half, value in halves.items()}, adapter / ADAPTER_WEIGHTS)
    small = {"model": str(llama_folder), "adapter": str(adapter), "threads": 1}
    code, told = _ended(_config(tmp_path, small=small), seconds=170)
    last = told.splitlines()[-1]
    assert code == 1, told
    assert last.startswith("small.model, small.adapter: the worker cannot load")
    assert "made for another shape" in last
    assert told.count('"worker_refused"') == 1
    assert "worker_ended" not in told


def test_the_gateway_says_where_it_listens(tmp_path: Path) -> None:
    """One line on stdout, once; the address answers, also where any free port was asked for."""
    line = [sys.executable, "-m", "router", "serve", "--config", str(_config(tmp_path))]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=PLAIN)
    assert process.stdout is not None
    ending = threading.Timer(60, process.kill)
    ending.start()
    try:
        found = re.fullmatch(r"listening at (http://127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}/healthz", timeout=10) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
        process.wait(30)
    finally:
        ending.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
