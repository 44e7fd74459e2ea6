"""Virtual environments that the benches install what they measure against into."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

INSTALL_TIMEOUT_S = 1800
"""Some packages are compiled."""


def python_with(
    folder: Path,
    packages: Sequence[str],
    *,
    options: Sequence[str] = (),
    lent: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Path:
    """The Python of an environment in `folder` that has these packages, which is made where it has not.

    Args:
        packages: requirements as pip takes them, each with its version.
        options: more for `pip install`.
        lent: this environment's packages can be imported there too, behind its own.
        variables: more environment variables while it is installed.

    Raises:
        subprocess.CalledProcessError: pip fails; `stderr` holds what it says.
        subprocess.TimeoutExpired: it takes more than `INSTALL_TIMEOUT_S`.
    """
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps([*packages, *options, lent])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--progress-bar", "off", "--disable-pip-version-check"]
    _run([*pip, *options, *packages], variables)
    if lent:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _run(line: Sequence[str], variables: Mapping[str, str] | None = None) -> None:
    set_there = [f"{name}={value}" for name, value in (variables or {}).items()]
    command = ["/usr/bin/env", *set_there, *line]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
