"""Training runs of tiny random models: the loss, the recipes, a run that is killed and goes on, and what comes out."""

import gzip
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import BloomConfig, BloomForCausalLM

from slm.dataset.examples import IGNORED, encode, example_of
from slm.dataset.rows import names_of
from slm.engine.model import load
from slm.training import trackers as tracking
from slm.training.curriculum import training_data
from slm.training.packing import pack_trees
from slm.training.recipe import Recipe, RecipeError, load_recipe, recipe_names
from tests.slm.conftest import TIME, WEATHER

# peft, trl and transformers disagree about names that one of them deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ROOT = Path(__file__).parents[3]
CITIES = "London Paris Rome Oslo Bern Riga Baku Lima Doha Kyiv Graz Nice".split()


def rows(count: int = 24) -> list[dict[str, Any]]:
    """Rows of two sources that call the weather tool, one in four without a call."""
    made = []
    for index in range(count):
        city = CITIES[index % len(CITIES)]
        calls = [{"name": "get_weather", "arguments": {"city": [city]}}]
        made.append(
            {
                "id": str(index), "source": "ab"[index % 2], "split": "train", "category": "simple",
                "messages": [{"role": "user", "content": f"Weather in {city}{' now' * (index % 5)}?"}],
                "tools": [WEATHER, TIME], "meta": {"conversation": f"c{index}"},
                "gold": {"kind": "no_call"} if index % 4 == 3 else {"kind": "calls", "calls": calls},
            }
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of rows."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())
    return path


def recipe(**changes: Any) -> Recipe:
    """A recipe of six steps, changed as asked."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "base": "tiny",
        "data": {"validation_share": 0.1, "validation_rows": 4, "tree_tokens": 400, "rows_a_group": 2},
        "augment": {"mask_names": 0.3, "remove_gold": 0.1},
        "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
        "optimiser": {"learning_rate": 0.01, "trees_a_step": 2},
        "run": {"evaluate_every": 3},
    }
    return Recipe.model_validate({**fields, **changes})


def silent(_: object) -> None:
    """Progress that nobody watches."""


# ── recipes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tracker_that_is_not_installed_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the field and what to install; `make test-tracking` reports to real ones."""
    from slm.training.train import train

    monkeypatch.setitem(tracking._INSTALLED, "wandb", lambda: False)  # type: ignore[index]
    reporting = recipe(run={"report_to": ["wandb"]})
    with pytest.raises(tracking.TrackerError, match=r"run\.report_to: wandb .* 'smallcall\[wandb\]'"):
        train(reporting, tmp_path / "no base", [], tmp_path / "run", on_progress=silent)
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipes_are_valid() -> None:
    """Every recipe file loads under its own name."""
    assert {"lora-large", "opt-350m", "smollm2-135m"} <= set(recipe_names())
    assert [load_recipe(name).name for name in recipe_names()] == recipe_names()


def test_the_papers_recipe_says_what_the_paper_says() -> None:
    """Every weight, one epoch, 5e-5, float16 where there is a GPU, gradients cut at 0.3."""
    paper = load_recipe("opt-350m")
    assert paper.lora is None
    assert paper.base == "facebook/opt-350m"
    assert (paper.optimiser.epochs, paper.optimiser.learning_rate, paper.optimiser.max_grad_norm) == (1, 5e-5, 0.3)
    assert paper.run.precision == "half"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"optimizer": {}}, "optimizer"),
        ({"optimiser": {"learning_rate": 1e-3, "lr": 1}}, "optimiser.lr"),
        ({"augment": {"mask_names": 1.5}}, "augment.mask_names"),
        ({"data": {"rows": 5}}, "data.rows"),
        ({"lora": None, "run": {"base_dtype": "bfloat16"}}, "run.base_dtype"),
    ],
)
def test_a_wrong_recipe_is_refused_by_the_name_of_its_field(
    changes: dict[str, Any], field: str, tmp_path: Path
) -> None:
    """Unknown keys, values out of range and settings that contradict each other do not start a run."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**recipe().model_dump(mode="json"), **changes}), encoding="utf-8")
    with pytest.raises(RecipeError, match=field):
        load_recipe(str(path))


def test_a_recipe_that_is_not_there_names_those_that_are() -> None:
    """The message lists the known recipes."""
    with pytest.raises(RecipeError, match="smollm2-135m"):
        load_recipe("nowhere")


# ── the training data ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mixture_keeps_its_shares_and_goes_through_a_source_again(llama_folder: Path) -> None:
    """Rows by source follow the shares; a source that runs out is varied anew; the seed decides everything."""
    tokens = load(llama_folder).tokens
    mixed = recipe(data={"sources": {"a": 3, "b": 1}, "rows": 80, "validation_share": 0})
    examples = [example_of(row) for row in rows()]
    data = training_data(examples, mixed, tokens)
    assert data.rows == 80
    assert 45 <= data.sources["a"] <= 75
    assert data == training_data(examples, mixed, tokens)
    other = mixed.model_copy(update={"run": mixed.run.model_copy(update={"seed": 1})})
    assert data.trees != training_data(examples, other, tokens).trees


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["jan/train.jsonl"], ["train.jsonl"]),
        (["jan/train.jsonl", "feb/rows.jsonl"], ["train.jsonl", "rows.jsonl"]),
        (["jan/train.jsonl", "./x/../feb/train.jsonl"], ["jan/train.jsonl", "feb/train.jsonl"]),
        (["/jan/a/train.jsonl", "/feb/a/train.jsonl", "b.gz"], ["jan/a/train.jsonl", "feb/a/train.jsonl", "b.gz"]),
        (["/a/train.jsonl", "/b/a/train.jsonl"], ["/a/train.jsonl", "b/a/train.jsonl"]),
    ],
)
def test_files_of_one_name_are_told_apart_by_their_folders(files: list[str], names: list[str]) -> None:
    """A file whose name no other has keeps it, so that runs with one file go on."""
    assert names_of([Path(file) for file in files]) == names


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("block", [None, 7, 192])
@pytest.mark.parametrize("base", ["llama_folder", "qwen_folder", "opt_folder"])
def test_the_loss_of_a_tree_and_its_gradient_equal_those_of_its_rows(
    base: str, block: int | None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared beginnings, no padding, the head on supervised tokens and attention in blocks (`block` queries; None: the
    model's own) give what the model's own loss gives row by row."""
    from slm.training import tree_attention
    from slm.training.sft import collate, tree_loss

    loaded = load(request.getfixturevalue(base))
    model = loaded.model.requires_grad_(True)
    encoded = [encode(example_of(row), loaded.tokens, 2048) for row in rows(6)]
    plain = torch.zeros(())
    for one in encoded:
        ids = torch.tensor([one.ids])
        labels = torch.tensor([[IGNORED] * one.prompt_tokens + list(one.ids[one.prompt_tokens :])])
        plain = plain + model(input_ids=ids, labels=labels).loss * (len(one.ids) - one.prompt_tokens)
    plain.backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    (tree,) = pack_trees([encoded], 10_000)
    if block is not None:
        monkeypatch.setattr(tree_attention, "BLOCK", block)
        assert tree_attention.use_tree_attention(model)
    assert len(tree) < 0.7 * sum(len(one.ids) for one in encoded)
    batch = collate(
        [{"input_ids": tree.ids, "labels": tree.labels, "parents": tree.parents, "position_ids": tree.depths}]
    )
    loss = tree_loss(model, batch["input_ids"], batch["labels"], batch["parents"], batch["position_ids"])
    loss.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-4)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3)


def test_attention_that_a_tree_does_not_have_is_refused() -> None:
    """A window or a cap on the scores is not left out silently; a mask alone is computed."""
    from slm.training.tree_attention import tree_attention

    query, key = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    module = torch.nn.Identity()
    with pytest.raises(NotImplementedError, match="softcap"):
        tree_attention(module, query, key, key, mask, softcap=30.0)
    made, _ = tree_attention(module, query, key, key, mask, softcap=None, sliding_window=None)
    assert made.shape == (1, 5, 4, 8)


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """With glibc every option is taken; elsewhere nothing is changed."""
    from slm.malloc import keep_pages

    assert keep_pages() is (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr("sys.platform", "darwin")
    assert keep_pages() is False


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def curve(run: Path) -> list[dict[str, Any]]:
    """The points of a run's loss curve."""
    points: list[dict[str, Any]] = json.loads((run / "curve.json").read_text(encoding="utf-8"))
    return points


def weights(folder: Path) -> bytes:
    """The bytes of an adapter's weights."""
    return (folder / "adapter_model.safetensors").read_bytes()


KILLED = """
import os, signal, sys
from pathlib import Path
from slm.training.recipe import load_recipe
from slm.training.train import train

def kill(step):
    if step.step == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)

train(load_recipe(sys.argv[1]), Path(sys.argv[2]), [Path(sys.argv[3])], Path(sys.argv[4]), on_progress=kill)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_and_goes_on_has_the_same_curve(llama_folder: Path, data: Path, tmp_path: Path) -> None:
    """SIGKILL at step 29 of 50: optimiser, schedule, dropout, place in the data and count of tokens are taken up as the
    last checkpoint has them, or the one before it where the last is cut off."""
    from slm.training.train import train

    fifty = recipe(optimiser={"learning_rate": 0.01, "trees_a_step": 2, "epochs": 12, "steps": 50},
                   run={"evaluate_every": 12})  # fmt: skip
    (tmp_path / "fifty.yaml").write_text(yaml.safe_dump(fifty.model_dump(mode="json")), encoding="utf-8")
    whole, broken, torn = (tmp_path / name for name in ("whole", "broken", "torn"))
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "fifty.yaml", llama_folder, data, broken, "29"],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert not (broken / "adapter").exists()
    assert {path.name for path in (broken / "checkpoints").glob("checkpoint-*")} == {"checkpoint-12", "checkpoint-24"}
    shutil.copytree(broken, torn)
    state = torn / "checkpoints" / "checkpoint-24" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:-100])
    result = train(fifty, llama_folder, [data], whole, on_progress=silent)
    assert [point["step"] for point in curve(whole) if "loss" in point] == list(range(1, 51))
    assert result.tokens == next(point["num_tokens"] for point in curve(whole) if point["step"] == 50)
    for run, first in ((broken, 25), (torn, 13)):
        steps: list[Any] = []
        train(fifty, llama_folder, [data], run, on_progress=steps.append)
        assert steps[0].step == first
        assert curve(run) == curve(whole)
        assert weights(run / "adapter") == weights(whole / "adapter")


@pytest.mark.slow
def test_an_early_stop_takes_the_best_checkpoint_wherever_the_run_was_left(
    llama_folder: Path, data: Path, tmp_path: Path
) -> None:
    """Patience is counted on after a resume, a run that is out of it takes no step more, and what is reported of it
    is true of the adapter that is taken."""
    from slm.training.train import CURVE, train

    growing = {"learning_rate": 1.0, "warmup_share": 1.0, "trees_a_step": 2, "epochs": 2}
    patient = recipe(optimiser=growing, run={"evaluate_every": 1, "patience": 2})
    result = train(patient, llama_folder, [data], tmp_path / "whole", on_progress=silent)
    validated = {point["step"]: point["eval_loss"] for point in curve(tmp_path / "whole") if "eval_loss" in point}
    last, best = max(validated), min(validated, key=lambda step: validated[step])
    assert (result.steps, result.validation_loss) == (best, validated[best])
    assert best == last - 2
    assert weights(result.folder) == weights(tmp_path / "whole" / CURVE / f"step-{best}")
    broken = tmp_path / "broken"
    left = train(patient, llama_folder, [data], broken, on_progress=silent, stop_after=last - 1)
    assert left.tokens == curve(broken)[-1].get("num_tokens", curve(broken)[-2].get("num_tokens"))
    for _ in ("goes on", "was killed before the adapter was written"):
        again = train(patient, llama_folder, [data], broken, on_progress=silent)
        assert (again.steps, again.tokens) == (result.steps, result.tokens)
        assert curve(broken) == curve(tmp_path / "whole")
        assert weights(again.folder) == weights(result.folder)
        shutil.rmtree(again.folder)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_first_step_begins(llama_folder: Path, data: Path, tmp_path: Path) -> None:
    """A record that was under way bars the folder to nobody; a whole one of another run does."""
    from slm.training.train import TrainingError, train

    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml.part").write_text("name: ti", encoding="utf-8")
    assert train(recipe(), llama_folder, [data], run, on_progress=silent, stop_after=1).steps == 1
    with pytest.raises(TrainingError, match=r"recipe\.yaml"):
        train(recipe(name="other"), llama_folder, [data], run, on_progress=silent)


@pytest.mark.slow
def test_a_run_ends_after_the_steps_that_its_recipe_says(llama_folder: Path, data: Path, tmp_path: Path) -> None:
    """The schedule ends with it: the last step's learning rate is the smallest."""
    from slm.training.train import train

    short = recipe(optimiser={"learning_rate": 0.01, "trees_a_step": 2, "steps": 3, "warmup_share": 0})
    result = train(short, llama_folder, [data], tmp_path / "run", on_progress=silent)
    assert result.steps == 3
    whole = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))["train"]["tokens"]
    assert 0 < result.tokens < whole
    rates = [point["learning_rate"] for point in curve(tmp_path / "run") if "loss" in point]
    assert rates == pytest.approx([0.01, 0.01 * 2 / 3, 0.01 / 3])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama_folder", "qwen_folder"])
def test_an_adapter_comes_out_that_the_engine_loads(
    request: pytest.FixtureRequest, architecture: str, data: Path, tmp_path: Path
) -> None:
    """The loss falls, the run folder says what was done, and the adapter changes the model."""
    from slm.training.train import TrainingError, train

    base = request.getfixturevalue(architecture)
    seen: list[Any] = []
    longer = recipe(optimiser={"learning_rate": 0.02, "trees_a_step": 2, "epochs": 4})
    result = train(longer, base, [data], tmp_path / "run", on_progress=seen.append)
    training = [point["loss"] for point in curve(tmp_path / "run") if "loss" in point]
    assert sum(training[-3:]) < 0.8 * sum(training[:3])
    assert seen[-1].step == seen[-1].steps == result.steps
    facts = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert facts["files"]["rows.jsonl.gz"]["rows"] == 24
    assert {"recipe.yaml", "curve.png", "scores.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    config = json.loads((result.folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny"
    bare, adapted = load(base), load(base, result.folder)
    assert adapted.info.adapter_sha256 is not None
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(bare.model.get_parameter(name), adapted.model.get_parameter(name))
    with pytest.raises(TrainingError, match=r"recipe\.yaml"):
        train(recipe(), base, [data], tmp_path / "run", on_progress=silent)


@pytest.mark.slow
def test_data_files_of_one_name_do_not_hide_each_other(llama_folder: Path, tmp_path: Path) -> None:
    """Each has its own hash, counts and source; equal ids of two files are two rows. The same file twice is refused."""
    from slm.training.train import TrainingError, train

    files = [tmp_path / month / "train.jsonl" for month in ("jan", "feb")]
    for path, broken in zip(files, (["{"], ["[]", "{"]), strict=True):
        path.parent.mkdir()
        talks = [
            {"id": str(index), "tools": [TIME], "messages": [
                {"role": "user", "content": f"Hello from {path.parent.name}, {index}"},
                {"role": "assistant", "content": "Hello."}]}
            for index in range(12)
        ]  # fmt: skip
        path.write_text("\n".join([*map(json.dumps, talks), *broken]), encoding="utf-8")
    halved = recipe(data={"validation_share": 0.5, "validation_rows": 99, "tree_tokens": 400})
    train(halved, llama_folder, files, tmp_path / "run", on_progress=silent, stop_after=1)
    facts = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    counts = {name: (part["rows"], part["refused"]) for name, part in facts["files"].items()}
    assert counts == {
        "jan/train.jsonl": (12, {"not JSON": 1}),
        "feb/train.jsonl": (12, {"not an object": 1, "not JSON": 1}),
    }
    assert len({part["sha256"] for part in facts["files"].values()}) == 2
    assert facts["train"]["sources"].keys() == counts.keys()
    assert facts["train"]["rows"] + facts["validation"]["rows"] == 24
    with pytest.raises(TrainingError, match="holds the same rows as"):
        train(halved, llama_folder, [files[0], files[0]], tmp_path / "twice", on_progress=silent)


@pytest.mark.slow
def test_a_run_goes_on_from_an_adapter_and_leaves_its_lower_layers(
    llama_folder: Path, data: Path, tmp_path: Path
) -> None:
    """The start adapter's lower layers come out unchanged, the others trained; each validation leaves its adapter, and
    the first is the start's own."""
    from safetensors.torch import load_file

    from slm.training.train import CURVE, TrainingError, train

    made = train(recipe(), llama_folder, [data], tmp_path / "first", on_progress=silent)
    first = made.folder
    upper = recipe(lora={"rank": 2, "alpha": 4, "from_layer": 1})
    again = train(upper, llama_folder, [data], tmp_path / "again", start=first, on_progress=silent).folder
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, again))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.0." not in name}
    facts = json.loads((tmp_path / "again" / "data.json").read_text(encoding="utf-8"))
    assert len(facts["start_weights_sha256"]) == 64
    kept = tmp_path / "again" / CURVE
    assert "step-3" in (names := {path.name for path in kept.iterdir()})
    assert "step-0" not in names
    began = json.loads((tmp_path / "again" / "curve.json").read_text(encoding="utf-8"))[0]
    assert began["step"] == 0, "what the run begins with is validated too"
    assert began["eval_loss"] == pytest.approx(made.validation_loss, rel=1e-3)
    scores = json.loads((tmp_path / "again" / "scores.json").read_text(encoding="utf-8"))
    assert scores["validation_losses"]["0"] == began["eval_loss"]
    assert load(llama_folder, kept / "step-3").info.adapter_sha256 is not None
    wide = recipe(lora={"rank": 4, "alpha": 4})
    with pytest.raises(TrainingError, match="start: rank 2 and alpha 4"):
        train(wide, llama_folder, [data], tmp_path / "wide", start=first, on_progress=silent)
    with pytest.raises(TrainingError, match=r"data\.json"):
        train(upper, llama_folder, [data], tmp_path / "again", on_progress=silent)


def test_layers_that_cannot_be_told_apart_are_not_trained_silently(llama_folder: Path) -> None:
    """`from_layer` needs a layer of that number by the usual name."""
    from slm.training.lora import AdapterStartError, trainable
    from slm.training.recipe import Lora

    other = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=8, n_layer=2, n_head=2))
    for model, first in ((other, 1), (load(llama_folder).model, 2)):
        with pytest.raises(AdapterStartError, match=f"no layer {first}"):
            trainable(model, Lora(rank=2, alpha=4, from_layer=first), None, seed=0)


@pytest.mark.slow
def test_every_weight_of_an_opt_model_can_be_trained(opt_folder: Path, data: Path, tmp_path: Path) -> None:
    """The paper's kind of run, in mixed bfloat16 on the CPU, gives a model folder that loads."""
    from slm.training.train import train

    full = recipe(lora=None, run={"precision": "half", "evaluate_every": 3})
    result = train(full, opt_folder, [data], tmp_path / "run", on_progress=silent)
    assert result.folder.name == "model"
    name = "model.decoder.layers.0.fc1.weight"
    before, after = (load(folder).model.get_parameter(name) for folder in (opt_folder, result.folder))
    assert not torch.equal(before, after)
