"""The training job: what is sent, and what the container makes of it; no AWS."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy.sagemaker.entry import command_of, train
from deploy.sagemaker.job import CHECKPOINTS, main, recipe_text, request_of
from slm.training.recipe import Recipe, load_recipe

FIELDS: dict[str, Any] = {
    "job": "smallcall-1", "image": "1.dkr.ecr.eu-west-1.amazonaws.com/x",
    "role": "arn:aws:iam::123456789012:role/train", "output_s3": "s3://bucket/runs/",
}  # fmt: skip


@pytest.mark.parametrize("name", ["smollm2-135m", "opt-350m", "lora-large"])
def test_the_recipe_comes_through_whole(name: str) -> None:
    """In pieces that SageMaker takes, and equal to what was sent."""
    request = request_of(load_recipe(name), **FIELDS)
    parameters = request["HyperParameters"]
    assert all(isinstance(value, str) and len(value) <= 2500 for value in parameters.values())
    assert Recipe.model_validate_json(recipe_text(parameters)) == load_recipe(name)
    json.dumps(request)


def test_a_spot_job_may_wait_and_goes_on_from_checkpoints() -> None:
    """Waiting is never shorter than running; inputs are channels; checkpoints stand where the run folder does."""
    request = request_of(load_recipe("opt-350m"), **FIELDS, spot=True, hours=2, data_s3="s3://bucket/rows")
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 7200, "MaxWaitTimeInSeconds": 14400}
    assert request["CheckpointConfig"] == {
        "S3Uri": "s3://bucket/runs/checkpoints/smallcall-1",
        "LocalPath": CHECKPOINTS,
    }
    assert [channel["ChannelName"] for channel in request["InputDataConfig"]] == ["data"]
    plain = request_of(load_recipe("opt-350m"), **FIELDS)
    assert "InputDataConfig" not in plain
    assert "MaxWaitTimeInSeconds" not in plain["StoppingCondition"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"job": "a--b"}, "job"),
        ({"role": "me"}, "role"),
        ({"output_s3": "/tmp/x"}, "output_s3"),
        ({"data_s3": "http://x"}, "data_s3"),
        ({"hours": 0}, "hours"),
    ],
)
def test_what_sagemaker_would_refuse_is_refused_by_its_name(changed: dict[str, Any], said: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValueError, match=f"^{said}:"):
        request_of(load_recipe("opt-350m"), **{**FIELDS, **changed})


def test_a_dry_run_prints_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing of AWS is imported; a wrong recipe is an error of its own."""
    line = ["--job", "j", "--image", "i", "--role", FIELDS["role"], "--output-s3", "s3://bucket/x", "--dry-run"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["TrainingJobName"] == "j"
    assert main(["--recipe", "nothing", *line]) == 2
    assert "neither a recipe" in capsys.readouterr().err


def folder(root: Path) -> Path:
    """What SageMaker puts there."""
    config = root / "input" / "config"
    config.mkdir(parents=True)
    parameters = request_of(load_recipe("smollm2-135m"), **FIELDS)["HyperParameters"]
    (config / "hyperparameters.json").write_text(json.dumps(parameters), encoding="utf-8")
    (root / "input" / "data" / "data").mkdir(parents=True)
    (root / "input" / "data" / "data" / "rows.jsonl").write_text("", encoding="utf-8")
    return root


def test_the_container_runs_the_same_command_and_packs_the_result(tmp_path: Path) -> None:
    """The recipe that was sent, the channels as options; everything but optimiser states is packed."""
    root, lines = folder(tmp_path), list[Sequence[str]]()

    def run(line: Sequence[str]) -> int:
        lines.append(line)
        for name in ("adapter/weights", "checkpoints/state"):
            (root / "checkpoints" / name).parent.mkdir(parents=True)
            (root / "checkpoints" / name).write_text("x", encoding="utf-8")
        (root / "checkpoints" / "data.json").write_text("{}", encoding="utf-8")
        return 0

    assert train(root, run) == 0
    (line,) = lines
    assert line[:3] == ["smallcall", "train", "--recipe"]
    assert load_recipe(line[3]) == load_recipe("smollm2-135m")
    assert line[line.index("--data") + 1].endswith("rows.jsonl")
    assert sorted(str(p.relative_to(root / "model")) for p in (root / "model").rglob("*") if p.is_file()) == [
        "adapter/weights", "data.json",
    ]  # fmt: skip
    assert "--base" not in command_of(root, Path("r"))


def test_a_failure_is_told_where_sagemaker_looks(tmp_path: Path) -> None:
    """The run's exit code, or that there is no recipe."""
    assert train(folder(tmp_path / "a"), lambda line: 3) == 3
    assert "code 3" in (tmp_path / "a" / "output" / "failure").read_text(encoding="utf-8")
    assert train(tmp_path / "b", lambda line: 0) == 2
    assert "no recipe" in (tmp_path / "b" / "output" / "failure").read_text(encoding="utf-8")
