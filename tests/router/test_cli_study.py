"""`smallcall study slm`: a gateway for each arm, real answers of a tiny model, and a table of them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli import app


@pytest.mark.slow
def test_the_small_model_is_scored_and_a_second_run_asks_nothing(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every case has an answer or a reason; the table of a second run is the same and needs no gateway's answer."""
    monkeypatch.setenv("SMALLCALL_SMALL__MODEL", str(llama_folder))
    monkeypatch.setenv("SMALLCALL_SMALL__MAX_TOKENS", "24")
    command = [
        "study", "slm", "--per-group", "1", "--only", "heldout_tools", "--arm", "zero-shot",
        "--folder", str(tmp_path / "traces"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    results = []
    for _ in range(2):
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, outcome.output
        results.append(json.loads((tmp_path / "out" / "slm.json").read_text(encoding="utf-8")))
    assert results[0]["sets"] == results[1]["sets"]
    cells = {cell["group"]: cell for cell in results[0]["sets"][0]["cells"]}
    assert {name: cell["n"] for name, cell in cells.items()} == {
        "hwu64": 1, "seal-tools": 1, "sgd": 1, "star": 1, "all": 4,
    }  # fmt: skip
    assert "http_500" not in cells["all"]["reasons"]
    assert "| all |" in (tmp_path / "out" / "slm.md").read_text(encoding="utf-8")


def test_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    """The message names the arms."""
    outcome = CliRunner().invoke(app, ["study", "slm", "--arm", "best", "--folder", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "zero-shot" in outcome.output
