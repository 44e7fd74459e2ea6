"""A training recipe as a SageMaker training job: `python -m deploy.sagemaker.job --help`.

The job's container (see `Dockerfile`) runs `entry.py`, which runs `smallcall train` on the recipe that is sent along.
What is sent is built here without AWS and can be printed (`--dry-run`); only to start the job is boto3 imported, which
is not a dependency of smallcall. Credentials are boto3's business: none is read or written here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from slm.training.recipe import Recipe, RecipeError, load_recipe

CHECKPOINTS = "/opt/ml/checkpoints"
"""Where the run folder stands: SageMaker copies it to `checkpoint_s3` as it grows, and back when a spot job goes on."""
_HYPERPARAMETER_CHARS = 2500
"""SageMaker's bound on one hyperparameter's value; a longer recipe goes in pieces."""


def request_of(
    recipe: Recipe,
    *,
    job: str,
    image: str,
    role: str,
    output_s3: str,
    instance: str = "ml.g5.xlarge",
    volume_gb: int = 50,
    hours: float = 6.0,
    spot: bool = False,
    data_s3: str | None = None,
    base_s3: str | None = None,
) -> dict[str, Any]:
    """The arguments of `CreateTrainingJob`.

    Args:
        job: name, up to 63 letters, digits and hyphens.
        image: of the container in ECR.
        role: ARN of the role that the job has; it must read the inputs and write `output_s3`.
        output_s3: `s3://bucket/prefix`; the run folder is kept under it, checkpoints included.
        hours: after which the job is stopped; a spot job may wait as long again.
        data_s3: prefix with `.jsonl` or `.jsonl.gz` rows; None takes those in the image.
        base_s3: prefix with the base model's folder; None lets the container pull the recipe's base.

    Raises:
        ValueError: a name or an address that SageMaker would refuse.
    """
    if not re.fullmatch(r"[a-zA-Z0-9](-?[a-zA-Z0-9]){0,62}", job):
        raise ValueError(f"job: {job!r} is not up to 63 letters, digits and single hyphens")
    if not re.fullmatch(r"arn:aws[a-z-]*:iam::\d{12}:role/.+", role):
        raise ValueError("role: not the ARN of an IAM role")
    for name, address in (("output_s3", output_s3), ("data_s3", data_s3), ("base_s3", base_s3)):
        if address is not None and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?", address):
            raise ValueError(f"{name}: not an s3:// address")
    seconds = round(hours * 3600)
    if not 60 <= seconds <= 28 * 24 * 3600:
        raise ValueError("hours: a job may take from a minute to 28 days")
    stopping = {"MaxRuntimeInSeconds": seconds}
    if spot:
        stopping["MaxWaitTimeInSeconds"] = 2 * seconds
    channels = [_channel(name, at) for name, at in (("data", data_s3), ("base", base_s3)) if at is not None]
    return {
        "TrainingJobName": job,
        "RoleArn": role,
        "AlgorithmSpecification": {"TrainingImage": image, "TrainingInputMode": "File"},
        "HyperParameters": _pieces(recipe.model_dump_json()),
        "ResourceConfig": {"InstanceType": instance, "InstanceCount": 1, "VolumeSizeInGB": volume_gb},
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": spot,
        "OutputDataConfig": {"S3OutputPath": f"{output_s3.rstrip('/')}/output"},
        "CheckpointConfig": {"S3Uri": f"{output_s3.rstrip('/')}/checkpoints/{job}", "LocalPath": CHECKPOINTS},
        **({"InputDataConfig": channels} if channels else {}),
    }


def recipe_text(hyperparameters: dict[str, str]) -> str:
    """The recipe's JSON out of a job's hyperparameters, the inverse of what `request_of` makes of it.

    Raises:
        ValueError: a piece is missing.
    """
    try:
        return "".join(hyperparameters[f"recipe_{index}"] for index in range(int(hyperparameters["recipe_pieces"])))
    except KeyError as exc:
        raise ValueError(f"the hyperparameter {exc} is missing") from exc


def _pieces(text: str) -> dict[str, str]:
    starts = range(0, len(text), _HYPERPARAMETER_CHARS)
    pieces = {f"recipe_{n}": text[start : start + _HYPERPARAMETER_CHARS] for n, start in enumerate(starts)}
    return {"recipe_pieces": str(len(starts)), **pieces}


def _channel(name: str, address: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": address, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def main(argv: Sequence[str] | None = None) -> int:
    """Start a job, or print what would be sent. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="smollm2-135m", help="a recipe's name, or a YAML file")
    parser.add_argument("--job", required=True, help="the job's name")
    parser.add_argument("--image", required=True, help="the container's image in ECR")
    parser.add_argument("--role", required=True, help="ARN of the job's role")
    parser.add_argument("--output-s3", required=True, help="s3://bucket/prefix for checkpoints and the result")
    parser.add_argument("--data-s3", help="prefix with rows of your own")
    parser.add_argument("--base-s3", help="prefix with a base model's folder")
    parser.add_argument("--instance", default="ml.g5.xlarge")
    parser.add_argument("--volume-gb", type=int, default=50)
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--spot", action="store_true", help="interruptible; goes on from its checkpoints")
    parser.add_argument("--region")
    parser.add_argument("--dry-run", action="store_true", help="print the request and send nothing")
    options = vars(parser.parse_args(argv))
    recipe, region, dry_run = options.pop("recipe"), options.pop("region"), options.pop("dry_run")
    try:
        request = request_of(load_recipe(recipe), **options)
    except (RecipeError, ValueError) as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 2
    if dry_run:
        sys.stdout.write(json.dumps(request, indent=1) + "\n")
        return 0
    try:
        import boto3
    except ImportError:
        sys.stderr.write("error: starting a job needs boto3: pip install boto3\n")
        return 2
    sys.stdout.write(
        boto3.client("sagemaker", region_name=region).create_training_job(**request)["TrainingJobArn"] + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
