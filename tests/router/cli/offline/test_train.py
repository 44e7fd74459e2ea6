"""`smallcall train` from the command line, and a gateway that drafts with what came out."""

import gzip
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import typer
from typer.testing import CliRunner

from router.cli.offline.train import shipped_data, train
from router.lab.gateway_process import gateway_process
from router.lab.train_scores import validation_cases
from router.settings import Settings
from slm.dataset.splits import held_out
from tests.slm.conftest import TIME, WEATHER

app = typer.Typer()
app.command()(train)

ADAPTER = """
name: tiny
base: ignored
data: {tree_tokens: 400, max_tokens: 900, validation_share: 0.3, validation_rows: 4}
augment: {mask_names: 0.2}
optimiser: {learning_rate: 0.005, trees_a_step: 1, steps: 3, max_grad_norm: 0.3}
lora: {rank: 2, alpha: 4}
run: {evaluate_every: 3}
"""


TALK = {
    "messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "tool_calls": [{"type": "custom"}]}]
}
"""A conversation whose answer cannot be taught."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that call the weather tool, some of conversations that are kept out of training, and one without gold."""
    rows = [
        {
            "id": f"r{index}", "source": "s", "split": "train", "category": "simple", "tools": [WEATHER, TIME],
            "messages": [{"role": "user", "content": f"Weather in city {index}?"}],
            "meta": {"conversation": f"c{index}"},
            "gold": {
                "kind": "calls", "calls": [{"name": "get_weather", "arguments": {"city": [f"city {index}"]}}]
            },
        }
        for index in range(24)
    ]  # fmt: skip
    assert sum(held_out(f"s/c{index}", 0.3) for index in range(24)) >= 3
    path = tmp_path_factory.mktemp("train") / "rows.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in (*rows, TALK))
    return path


def trained(base: Path, recipe: str, data: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Train by the command, and a recipe's name or text; the run's scores."""
    if "\n" in recipe:
        (folder / "tiny.yaml").write_text(recipe, encoding="utf-8")
        recipe = str(folder / "tiny.yaml")
    command = ["--recipe", recipe, "--base", str(base), "--data", str(data), "--run", str(folder / "run")]
    outcome = CliRunner().invoke(app, [*command, "--threads", "1", "--cache", str(folder), *options])
    assert outcome.exit_code == 0, outcome.output
    assert "rows.jsonl.gz: rows left out: 1 malformed" in outcome.stderr
    scores: dict[str, Any] = json.loads((folder / "run" / "scores.json").read_text(encoding="utf-8"))
    return scores


quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
"""peft, trl and transformers disagree about names that one of them deprecates."""


@quiet
@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "made"), [(ADAPTER, "adapter"), ("opt-350m", "model")])
async def test_a_trained_opt_answers_behind_a_gateway(
    opt_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, made: str
) -> None:
    """Training, then the worker, the grammar and the gateway, on an adapter and on what the paper's recipe makes: the
    draft of a request that must call is a call of an offered tool."""
    monkeypatch.setenv("SMALLCALL_SMALL__MAX_TOKENS", "200")
    scores = trained(opt_folder, recipe, data, tmp_path, "--score-rows", "0")
    assert scores["folder"] == made
    result = tmp_path / "run" / made
    base, adapter = (opt_folder, str(result)) if made == "adapter" else (result, "none")
    small = {"model": str(base), "adapter": adapter, "max_tokens": 200, "threads": 1}
    settings = Settings.model_validate({"small": small})
    body = {
        "model": "smallcall/small", "messages": [{"role": "user", "content": "What time is it?"}], "tools": [TIME],
        "tool_choice": "required", "smallcall": {"include": ["signals"]},
    }  # fmt: skip
    async with (
        gateway_process(settings, base, tmp_path) as url,
        aiohttp.ClientSession() as session,
        session.post(f"{url}/chat/completions", json=body) as response,
    ):
        answer = await response.json()
    assert response.status == 200, answer
    (call, *_) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_time"
    assert json.loads(call["function"]["arguments"])["zone"] in ("CET", "UTC")


@quiet
@pytest.mark.slow
def test_a_run_ends_with_its_pass_rate(
    llama_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation rows are drafted with what was trained, unless none are asked for; a run that is done scores again."""
    monkeypatch.setenv("SMALLCALL_SMALL__MAX_TOKENS", "24")
    for name, options, drafted in (("some", ["--score-rows", "2"], 2), ("none", ["--score-rows", "0"], None)):
        folder = tmp_path / name
        folder.mkdir()
        scores = trained(llama_folder, ADAPTER, data, folder, *options)
        assert scores["steps"] == 3
        assert (scores.get("pass_rate") or {}).get("n") == drafted
    again = trained(llama_folder, ADAPTER, data, tmp_path / "some", "--score-rows", "2")
    assert again["steps"] == 3
    assert 0 <= again["pass_rate"]["low"] <= again["pass_rate"]["passed"] / 2 <= again["pass_rate"]["high"] <= 1


def test_where_there_is_no_row_to_score_by_it_is_said_why(data: Path, tmp_path: Path) -> None:
    """Rows that hold no gold cost themselves only; where no others are there or kept out, the counts are told."""
    drawn = validation_cases([data], 0.3, 99)
    assert len(drawn.cases) >= 3
    assert (drawn.rows, drawn.goldless) == (25, 1)
    talks = tmp_path / "talks.jsonl"
    talks.write_text(f"{json.dumps(TALK)}\n" * 2, encoding="utf-8")
    assert str(validation_cases([talks], 0.3, 99)).startswith("no validation row to score: 2 of 2 rows hold no gold")
    assert "1 of 25 rows hold no gold" in str(validation_cases([data], 0.0, 99))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipe", "nowhere"], "neither a recipe"),
        (["--recipe", "opt-350m"], "facebook/opt-350m"),
        (["--recipe", "smollm2-135m", "--base", "./no-such-folder"], "no-such-folder"),
    ],
)
def test_what_cannot_be_trained_is_said_in_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    """A wrong recipe or base ends with code 1 and an error that names it, before any model library is loaded."""
    outcome = CliRunner().invoke(app, [*options, "--run", str(tmp_path / "run"), "--cache", str(tmp_path)])
    assert outcome.exit_code == 1
    assert said in outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_file_of_rows_must_exist() -> None:
    """A misspelt file is a usage error."""
    assert CliRunner().invoke(app, ["--data", "no-such-file.jsonl"]).exit_code == 2


def test_a_checkout_has_rows_to_train_on() -> None:
    """Without `--data` the repository's own rows are taken."""
    assert [path.name for path in shipped_data()] == ["train.jsonl.gz", "authored"]
