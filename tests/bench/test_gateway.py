"""`python -m bench.gateway`: a folder for the results that cannot be had is found out before anything is measured."""

import subprocess
import sys
from pathlib import Path


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "bench.gateway", "--only", "smallcall", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)


def test_the_folder_of_the_results_is_made_before_measuring(tmp_path: Path) -> None:
    """A core that no machine has ends the measuring at once; the folder is there by then."""
    out = tmp_path / "new" / "deep"
    assert _run("--out", str(out), "--server-core", "9999", "--load-core", "9999").returncode != 0
    assert out.is_dir()
    (tmp_path / "file").write_text("")
    wrong = _run("--out", str(tmp_path / "file" / "deep"))
    assert (wrong.returncode, "--out" in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False), wrong.stderr
