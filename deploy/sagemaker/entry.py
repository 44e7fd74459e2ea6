"""What runs in the training job's container: SageMaker's folders in, `smallcall train`, its folders out.

SageMaker starts the image with the word `train`, puts hyperparameters and channels under /opt/ml/input, keeps
/opt/ml/checkpoints in S3 while the job runs, and packs /opt/ml/model when it ends with code 0. On a failure the first
lines of /opt/ml/output/failure are shown as the reason.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.sagemaker.job import recipe_text

Run = Callable[[Sequence[str]], int]


def command_of(root: Path, recipe: Path) -> list[str]:
    """The command line of the training run, from what SageMaker has put under `root`."""
    channels = root / "input" / "data"
    data = sorted(path for ending in ("*.jsonl", "*.jsonl.gz") for path in (channels / "data").glob(ending))
    line = ["smallcall", "train", "--recipe", str(recipe), "--run", str(root / "checkpoints")]
    for path in data:
        line += ["--data", str(path)]
    if (channels / "base").is_dir():
        line += ["--base", str(channels / "base")]
    return line


def train(root: Path, run: Run) -> int:
    """Run the job, going on from its checkpoints where there are some. Returns its exit code."""
    (root / "output").mkdir(parents=True, exist_ok=True)
    (root / "checkpoints").mkdir(parents=True, exist_ok=True)
    try:
        hyperparameters = json.loads((root / "input" / "config" / "hyperparameters.json").read_text(encoding="utf-8"))
        recipe = root / "output" / "recipe.yaml"
        recipe.write_text(recipe_text(hyperparameters), encoding="utf-8")  # JSON is YAML
    except (OSError, ValueError) as exc:
        (root / "output" / "failure").write_text(f"no recipe: {exc}\n", encoding="utf-8")
        return 2
    code = run(command_of(root, recipe))
    if code:
        (root / "output" / "failure").write_text(f"smallcall train ended with code {code}\n", encoding="utf-8")
        return code
    for made in sorted((root / "checkpoints").iterdir()):
        if made.name != "checkpoints":  # optimiser states
            target = root / "model" / made.name
            shutil.copytree(made, target, dirs_exist_ok=True) if made.is_dir() else _copy(made, target)
    return 0


def _copy(made: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(made, target)


if __name__ == "__main__":
    sys.exit(train(Path("/opt/ml"), lambda line: subprocess.run(line, check=False).returncode))
