"""`smallcall study curve | tools`: real drafts of a tiny model, from run folders and among many tools."""

import fcntl
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from router.cli import app


@pytest.fixture(autouse=True)
def tiny(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a small model that answers fast."""
    monkeypatch.setenv("SMALLCALL_SMALL__MODEL", str(llama_folder))
    monkeypatch.setenv("SMALLCALL_SMALL__MAX_TOKENS", "12")


def run_folder(path: Path, base: Path) -> Path:
    """What `smallcall train` leaves behind, with the adapters of two steps."""
    for step in (2, 10):
        folder = path / "curve" / f"step-{step}"
        folder.mkdir(parents=True)
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        name = "base_model.model.model.layers.0.self_attn.q_proj"
        weights = {f"{name}.lora_A.weight": torch.full((1, 48), 0.1 * step), f"{name}.lora_B.weight": torch.ones(48, 1)}
        save_file(weights, folder / "adapter_model.safetensors")
    recipe = f"name: tiny\nbase: {base}\noptimiser: {{learning_rate: 0.1}}\n"
    (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (path / "data.json").write_text(json.dumps({"train": {"rows": 100, "tokens": 1000}}), encoding="utf-8")
    points = [{"step": 2, "loss": 1.0, "num_tokens": 200}, {"step": 2, "eval_loss": 0.5},
              {"step": 10, "loss": 0.5, "num_tokens": 1000}]  # fmt: skip
    (path / "curve.json").write_text(json.dumps(points), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_curve_tells_each_kept_step_beside_the_base(llama_folder: Path, tmp_path: Path) -> None:
    """Steps in order, rows reckoned from tokens, the same cases at each, a picture."""
    run = run_folder(tmp_path / "run", llama_folder)
    options = ["--rows", "4", "--folder", str(tmp_path / "var"), "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, ["study", "curve", str(run), *options])
    assert outcome.exit_code == 0, outcome.output
    points = json.loads((tmp_path / "out" / "learning_curve.json").read_text(encoding="utf-8"))["points"]
    assert [(point["step"], point["rows"], point["validation_loss"]) for point in points] == [
        (0, 0, None), (2, 20, 0.5), (10, 100, None),
    ]  # fmt: skip
    assert all({name: rate["n"] for name, rate in point["rates"].items()} == {"in_domain": 10, "heldout_tools": 4}
               for point in points)  # fmt: skip
    assert (tmp_path / "out" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "| 10 | 100 | – |" in (tmp_path / "out" / "learning_curve.md").read_text(encoding="utf-8")


def test_a_run_that_kept_nothing_has_no_curve(llama_folder: Path, tmp_path: Path) -> None:
    """It says what would be needed."""
    (tmp_path / "recipe.yaml").write_text(f"name: t\nbase: {llama_folder}\noptimiser: {{learning_rate: 1}}\n")
    outcome = CliRunner().invoke(app, ["study", "curve", str(tmp_path)])
    assert outcome.exit_code == 1
    assert "keeps its adapters" in outcome.output.replace("\n", " ")


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
