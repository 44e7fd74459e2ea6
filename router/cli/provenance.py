"""The commit that a figure was made at."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path


def commit() -> str:
    """The commit checked out here, with `+changes` where the tree is not clean; `unknown` outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)  # noqa: S607
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def given(option: str, *values: object) -> list[object]:
    """An option once for each value that is not None."""
    return [word for value in values if value is not None for word in (option, value)]


def provenance(command: str, *options: object) -> dict[str, str]:
    """What a result says of its making: the command, so that it can be run again, and the commit.

    Files and folders are told by their names alone: where they lay says something of a machine only.
    """
    return {"command": f"{command} {shlex.join(map(_told, options))}", "commit": commit()}


def _told(option: object) -> str:
    path = Path(str(option))
    return path.name if isinstance(option, Path) or (len(path.parts) > 1 and path.exists()) else str(option)
