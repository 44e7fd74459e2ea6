"""A training run reports to MLflow and to Weights & Biases, and both hold its losses. `make test-tracking`.

Needs the extras `mlflow` and `wandb`, which the lock file leaves out; without them this fails and says how to get them.
Nothing leaves the machine: MLflow writes files in a temporary folder, W&B runs offline.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from router.settings import load_settings
from slm.training.recipe import Recipe
from slm.training.trackers import TrackerError
from slm.training.train import train
from slm.weights.registry import resolve_model

STEPS = 4
_WANDB_LOSS = re.compile(rb"\x12\ntrain/loss\x82\x01.([0-9.e-]+)", re.DOTALL)
"""A loss in W&B's log of protobuf records: field 2, the key; field 16, its value as JSON behind a byte of length."""
ROWS = 16


def tiny_base(folder: Path) -> Path:
    """A random Llama of two layers with the shipped base's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(
        resolve_model("smollm2-135m-instruct", load_settings().cache_folder).path, local_files_only=True
    )
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rows(path: Path) -> Path:
    """Requests for the weather."""
    tool: dict[str, Any] = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    with path.open("w", encoding="utf-8") as file:
        for index in range(ROWS):
            call = {"name": "get_weather", "arguments": {"city": ["Oslo"]}}
            row = {
                "id": str(index), "source": "a", "split": "train", "category": "simple", "tools": [tool],
                "messages": [{"role": "user", "content": f"Weather in Oslo{'!' * index}"}],
                "gold": {"kind": "calls", "calls": [call]}, "meta": {"conversation": str(index)},
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    return path


def run(folder: Path) -> tuple[int, int]:
    """Losses that MLflow and W&B hold; raises AssertionError where they are not those of the run's curve."""
    os.environ |= {
        "MLFLOW_TRACKING_URI": (folder / "mlflow").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # a database takes the whole of mlflow, not its skinny package
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_SILENT": "true",
    }
    recipe = Recipe.model_validate(
        {
            "name": "tracked",
            "base": "tiny",
            "data": {"tree_tokens": 200, "validation_rows": 0},
            "lora": {"rank": 2, "alpha": 4},
            "optimiser": {"learning_rate": 0.01, "trees_a_step": 1, "steps": STEPS},
            "run": {"report_to": ["mlflow", "wandb"]},
        }
    )
    train(recipe, tiny_base(folder / "base"), [rows(folder / "rows.jsonl")], folder / "run", on_progress=lambda _: None)
    curve = [entry["loss"] for entry in json.loads((folder / "run" / "curve.json").read_text()) if "loss" in entry]
    assert len(curve) == STEPS, curve
    mlflow = _mlflow_losses()
    assert mlflow == curve, f"MLflow holds {mlflow}, the curve {curve}"
    wandb = _wandb_losses(folder)
    assert wandb == curve, f"W&B holds {wandb}, the curve {curve}"
    return len(mlflow), len(wandb)


def _mlflow_losses() -> list[float]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (found,) = (one for e in client.search_experiments() for one in client.search_runs([e.experiment_id]))
    assert found.info.run_name == "tracked", found.info.run_name
    history = client.get_metric_history(found.info.run_id, "loss")
    return [metric.value for metric in sorted(history, key=lambda one: one.step)]


def _wandb_losses(folder: Path) -> list[float]:
    import wandb

    wandb.finish()  # as the end of a process does
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    losses = [float(found[1]) for found in _WANDB_LOSS.finditer(log.read_bytes())]
    return losses[::2]  # each stands in the history and in the summary that follows it


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        try:
            told = "{} losses in MLflow and {} in W&B equal those of the run\n".format(*run(Path(made)))
        except TrackerError as error:
            sys.exit(str(error))
    sys.stdout.write(told)
