"""`smallcall study ablations | ranks`: real runs of a tiny model, told row by row."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from evaluation.loss_table import ArmLoss, SetLoss, loss_cells, render_losses
from router.cli import app
from router.cli_lab import ABLATED
from slm.ablations import ANOTHER_SEED, NOTHING_VARIED, SHIPPED, ablation_rows, arms_of, budgeted, unseen_tool
from slm.recipe import Augment, load_recipe
from slm.rows import read_rows
from slm.splits import held_out

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SEEN = next(name for name in (f"get_{letter}" for letter in "abcdefgh") if not unseen_tool(name))
UNSEEN = next(name for name in (f"get_{number}" for number in range(999)) if unseen_tool(name))
RECIPE = """
name: tiny
base: ignored
data: {tree_tokens: 300, validation_share: 0.3, validation_rows: 4}
augment: {mask_names: 0.5, tool_errors: 0.2}
lora: {rank: 2, alpha: 4}
optimiser: {learning_rate: 0.01, trees_a_step: 1}
run: {evaluate_every: 3}
"""


def row(index: int, called: str, conversation: str) -> dict[str, Any]:
    """A row that calls one of two tools."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [
        {"type": "function", "function": {"name": name, "description": "Get it", "parameters": schema}}
        for name in (SEEN, UNSEEN)
    ]
    return {
        "id": f"r{index}", "source": "s", "split": "train", "category": "c", "tools": tools,
        "messages": [{"role": "user", "content": f"What of city {index}?"}], "meta": {"conversation": conversation},
        "gold": {"kind": "calls", "calls": [{"name": called, "arguments": {"city": [f"city {index}"]}}]},
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty conversations, in each fifth a call of a tool that is left out."""
    path = tmp_path_factory.mktemp("lab") / "rows.jsonl.gz"
    rows = [row(2 * n, SEEN, f"c{n}") for n in range(40)]
    rows += [row(2 * n + 1, UNSEEN, f"c{n}") for n in range(0, 40, 5)]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)
    return path


def test_what_is_measured_is_not_taught(data: Path, tmp_path: Path) -> None:
    """No conversation of an unseen tool is in the arms' rows, and none of the known set is taught from them."""
    rows = ablation_rows(data, tmp_path / "rows.jsonl.gz", 0.3)
    left = read_rows(rows.file).examples
    assert {example.gold_names for example in left} == {frozenset({SEEN})}
    assert {example.gold_names for example in rows.unseen} == {frozenset({UNSEEN})}
    assert not {example.conversation for example in rows.unseen} & {example.conversation for example in left}
    assert len(rows.unseen) == 8
    assert rows.known
    assert all(held_out(example.conversation, 0.3) for example in rows.known)
    again = ablation_rows(data, tmp_path / "again.jsonl.gz", 0.3)
    assert rows.file.read_bytes() == again.file.read_bytes()
    assert rows.known == again.known


def test_the_arms_change_one_thing_each() -> None:
    """Every augmentation of the recipe is off in one arm; ranks and learning rates differ from the recipe's own."""
    recipe = load_recipe(ABLATED)
    assert recipe.run.precision == recipe.run.base_dtype == "bfloat16", "the frozen base is not converted at every step"
    assert recipe.augment == load_recipe("smollm2-135m-fifth").augment, (
        "what is ablated is what the adapter was taught by"
    )
    arms = arms_of(recipe)
    assert arms[ANOTHER_SEED].run.seed != recipe.run.seed
    assert arms[ANOTHER_SEED].model_copy(update={"run": recipe.run}) == recipe
    for name in Augment.model_fields:
        assert getattr(recipe.augment, name), "an augmentation that is off cannot be ablated"
        changed = arms[f"without {name}"]
        assert getattr(changed.augment, name) == 0
        assert changed.model_copy(update={"augment": recipe.augment}) == recipe
    assert not any(getattr(arms[NOTHING_VARIED].augment, name) for name in Augment.model_fields)
    assert {arms[f"rank {rank}"].lora.rank for rank in (8, 64)} == {8, 64}  # type: ignore[union-attr]
    assert [name for name in arms if arms[name].lora is None] == [
        "every weight, learning rate 5e-05", "every weight, learning rate 0.0002",
    ]  # fmt: skip
    assert len(set(map(repr, arms.values()))) == len(arms)
    small = budgeted(recipe, 40_000)
    spent = (small.optimiser.steps or 0) * small.optimiser.trees_a_step * small.data.tree_tokens
    assert 0.9 < spent / 40_000 < 1.1


@pytest.mark.slow
def test_each_arm_is_trained_once_and_told_beside_the_recipe(
    llama_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses by row with a paired change, drafts of a sample; a second run trains nothing and says the same."""
    monkeypatch.setenv("SMALLCALL_SMALL__MAX_TOKENS", "16")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    command = [
        "study", "ablations", "--recipe", str(recipe), "--base", str(llama_folder), "--data", str(data),
        "--tokens", "600", "--loss-rows", "4", "--pass-rows", "1", "--folder", str(tmp_path / "var"),
        "--out", str(tmp_path / "out"),
        "--only", "without mask_names", "--only", "every weight, learning rate 0.0002",
    ]  # fmt: skip
    told = []
    for _ in range(2):
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, outcome.output
        told.append((tmp_path / "out" / "ablations.json").read_bytes())
    assert told[0] == told[1]
    arms = {arm["arm"]: arm for arm in json.loads(told[0])["arms"]}
    assert list(arms) == [SHIPPED, "without mask_names", "every weight, learning rate 0.0002"]
    losses = {name: arm["sets"]["unseen tools"]["nats"] for name, arm in arms.items()}
    assert len({tuple(one) for one in losses.values()}) == 3
    assert all(len(one) == 4 for one in losses.values())
    assert all(one["drafted"] == 1 for arm in arms.values() for one in arm["sets"].values())
    assert "| without mask_names |" in (tmp_path / "out" / "ablations.md").read_text(encoding="utf-8")
    assert not list((tmp_path / "var").rglob("checkpoint-*"))
    assert not list((tmp_path / "var").rglob("model.safetensors"))
    assert "--only 'without mask_names'" in json.loads(told[0])["command"]
    other = CliRunner().invoke(app, [word if word != "4" else "3" for word in command])
    assert other.exit_code == 1
    assert "of other rows" in other.output, "arms measured otherwise do not mix"


def test_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    """The message names the arms."""
    outcome = CliRunner().invoke(app, ["study", "ablations", "--only", "magic", "--folder", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "without mask_names" in " ".join(outcome.output.replace("│", " ").split())


def test_a_change_is_paired_and_has_no_interval_around_itself() -> None:
    """A constant shift is found exactly, however much the rows differ; the reference has no change."""
    nats, tokens = [1.0, 50.0, 9.0, 30.0], [10, 100, 10, 50]
    shifted = [value + 0.1 * count for value, count in zip(nats, tokens, strict=True)]
    arms = [
        ArmLoss(arm=name, sets={"s": SetLoss(nats=values, tokens=tokens, passed=1, drafted=2)})
        for name, values in (("base", nats), ("other", shifted))
    ]
    base, other = loss_cells(arms, "base")
    assert base.change is None
    assert base.loss == pytest.approx(sum(nats) / sum(tokens))
    assert base.low < base.loss < base.high
    assert (other.change, other.change_low, other.change_high) == pytest.approx((0.1, 0.1, 0.1))
    assert "+0.100 (+0.100 to +0.100)" in render_losses("T", "about", arms, "base", {})
    strange = ArmLoss(arm="strange", sets={"s": SetLoss(nats=nats, tokens=[1, 2, 3, 4])})
    with pytest.raises(ValueError, match="other rows"):
        loss_cells([arms[0], strange], "base")


@pytest.mark.slow
def test_a_delta_of_low_rank_is_found(llama_folder: Path, tmp_path: Path) -> None:
    """A model whose change has rank 2 keeps its loss at rank 2, loses some at rank 1, and embeddings go back."""
    import shutil

    import torch

    tuned = tmp_path / "tuned"
    shutil.copytree(llama_folder, tuned)
    weights = load_file(tuned / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            left, right = (torch.randn(size, 2, generator=generator) for size in weight.shape)
            weights[name] = weight + 0.2 * left @ right.T
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    command = [
        "study", "ranks", str(tuned), "--base", str(llama_folder), "--rank", "1", "--rank", "2", "--loss-rows", "3",
        "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    told = json.loads((tmp_path / "out" / "ranks.json").read_bytes())
    assert "--loss-rows 3 --rank 1 --rank 2 --base" in told["command"]
    arms = {arm["arm"]: arm for arm in told["arms"]}
    whole, one, two = (arms[name]["sets"]["known tools"]["nats"] for name in ("as trained", "rank 1", "rank 2"))
    assert two == pytest.approx(whole, rel=1e-3)
    assert one != pytest.approx(whole, rel=1e-3)
    assert arms["rank 2"]["notes"]["change kept"] == "100.0 %"
    assert list(arms) == ["as trained", "linear layers only, full rank", "rank 2", "rank 1"]
