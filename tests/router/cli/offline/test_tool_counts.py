"""`smallcall study tools`: real drafts of a tiny model among many tools."""

import fcntl
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.__main__ import app


@pytest.fixture(autouse=True)
def tiny(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a small model that answers fast."""
    monkeypatch.setenv("SMALLCALL_SMALL__MODEL", str(llama_folder))
    monkeypatch.setenv("SMALLCALL_SMALL__MAX_TOKENS", "12")


@pytest.mark.slow
def test_pass_rates_and_recall_by_number_of_tools(tmp_path: Path) -> None:
    """The same requests among each number of tools, shown all or a shortlist; recall grows with k."""
    command = [
        "study", "tools", "--rows", "1", "--count", "2", "--count", "30", "--shortlist", "none", "--shortlist", "bm25",
        "--adapter", "none", "--folder", str(tmp_path / "var"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    content = json.loads((tmp_path / "out" / "slm_tools.json").read_text(encoding="utf-8"))
    assert content["command"] == f"smallcall {' '.join(command[:14])} --threads 1", "whoever reads it can run it again"
    assert {(rate["arm"], rate["tools"], rate["n"]) for rate in content["rates"]} == {
        (arm, count, 3) for arm in ("all shown", "bm25") for count in (2, 30)
    }
    assert {(one["ranking"], one["tools"]) for one in content["recalls"]} == {
        (ranking, count) for ranking in ("bm25", "embedding") for count in (2, 30)
    }
    for one in content["recalls"]:
        hits = list(one["at"].values())
        assert hits == sorted(hits)
        assert one["n"] == 3
    assert "| 30 |" in (tmp_path / "out" / "slm_tools.md").read_text(encoding="utf-8")

    (table,) = (tmp_path / "var").glob("all-shown-*/tools-2.parquet")
    with table.with_name(table.name + ".journal").open("a+b") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 1
    assert "another run writes it" in outcome.output
