"""Virtual environments that the benches install what they measure against into."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

INSTALL_TIMEOUT_S = 3600
"""Some packages are compiled."""


class InstallError(subprocess.SubprocessError):
    """A contender cannot be installed; the message is the installer's last words."""


def python_with(
    folder: Path,
    packages: Sequence[str],
    *,
    options: Sequence[str] = (),
    lent: bool = False,
    variables: Mapping[str, str] | None = None,
) -> Path:
    """The Python of an environment in `folder` that has these packages, which is made anew where it has not.

    Args:
        packages: requirements as pip takes them, each with its version.
        options: more for `pip install`.
        lent: this environment's packages can be imported there too, behind its own.
        variables: more environment variables while it is installed.

    Raises:
        InstallError: the environment cannot be made, pip fails, or takes more than `INSTALL_TIMEOUT_S`.
        OSError: the folder cannot be written.
    """
    python, stamp = folder / "bin" / "python", folder / "installed.json"
    lender = sysconfig.get_path("purelib") if lent else None
    wanted = json.dumps([*packages, *options, lender, dict(variables or {}), sys.version])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    stamp.unlink(missing_ok=True)
    installed([sys.executable, "-m", "venv", "--clear", str(folder)])
    set_there = [f"{name}={value}" for name, value in (variables or {}).items()]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--progress-bar", "off", "--disable-pip-version-check"]
    installed(["/usr/bin/env", *set_there, *pip, *options, *packages])
    if lender is not None:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "lent.pth").write_text(lender + "\n", encoding="utf-8")
    stamp.write_text(wanted, encoding="utf-8")
    return python


def installed(line: Sequence[str], folder: Path | None = None) -> None:
    """Run an installer in a folder. Raises InstallError, OSError."""
    try:
        got = subprocess.run(line, cwd=folder, timeout=INSTALL_TIMEOUT_S, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{line[0]}: no end within {INSTALL_TIMEOUT_S} s") from error
    if got.returncode:
        raise InstallError((got.stderr or got.stdout).strip()[-400:])
