"""Shared parts of the engine's benches: their common options, the model, and the stamp that a result carries."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from router.cli.provenance import commit
from slm.protocol import DraftCommand, Info, encode
from slm.weights.registry import DEFAULT_MODEL, default_cache, downloaded_file, resolve_model

ADAPTER = Path("slm/adapters/smollm2-135m-toolcall")
RESULTS = Path("evaluation/results")


def options(module: str, documentation: str | None, *, minutes: float) -> argparse.ArgumentParser:
    """A parser with the options that all have.

    Args:
        minutes: default of `--minutes`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=(documentation or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of every forward pass (default: %(default)s)")
    parser.add_argument("--adapter", type=Path, default=ADAPTER, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder (default: %(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=minutes,
        help="what is not measured by then is left out and reported (default: %(default)s)",
    )  # fmt: skip
    return parser


def base_folder() -> Path:
    """The base model's folder. Raises: `slm.weights.registry` errors where it is not there."""
    return resolve_model(DEFAULT_MODEL, default_cache()).path


def base_file() -> Path:
    """The file that the base model came in."""
    found = downloaded_file(DEFAULT_MODEL, default_cache())
    assert found is not None
    return found


def stamp(info: Info, commands: Sequence[DraftCommand]) -> dict[str, Any]:
    """The facts that a result must record about its run: command, commit, data, weights, machine and versions.

    Args:
        commands: the requests, hashed in their order.
    """
    data = hashlib.sha256(b"\n".join(encode(command) for command in commands))
    return {
        "command": " ".join(["python", "-m", *_module_and_options()]),
        "commit": commit(),
        "data_sha256": data.hexdigest(),
        "weights_sha256": info.weights_sha256,
        "adapter_sha256": info.adapter_sha256,
        "machine": {
            "cpu": _cpu_name(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "load_1_minute": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _module_and_options() -> list[str]:
    return [".".join(Path(sys.argv[0]).with_suffix("").parts[-2:]), *sys.argv[1:]]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(folder: Path, name: str, made: Mapping[str, Any], text: str | None = None) -> None:
    """Write a result as JSON and, where there is a text, as Markdown. A run cut short leaves its last whole one."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(made, indent=2) + "\n"), (".md", text)):
        if content is not None:
            partial = folder / f".{name}{suffix}"
            partial.write_text(content)
            partial.replace(folder / f"{name}{suffix}")


class Clock:
    """Measures the time that is left of a run, and reports progress on stderr."""

    def __init__(self, minutes: float) -> None:
        self._began, self._minutes = time.monotonic(), minutes

    def past(self, share: float = 1.0) -> bool:
        """True if more than this share of the time has passed."""
        return self.minutes > self._minutes * share

    @property
    def minutes(self) -> float:
        """Since the start."""
        return (time.monotonic() - self._began) / 60

    def report(self, line: str) -> None:
        """One line of progress."""
        print(f"{self.minutes:6.1f} min  {line}", file=sys.stderr, flush=True)
