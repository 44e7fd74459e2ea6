"""Training: a recipe and rows in, a run folder out. Supervised fine-tuning with TRL, on drafts only.

The run folder holds `recipe.yaml`, `data.json` (hashes of the files and of the token rows, what was refused),
`curve.json` and `curve.png`, `curve/step-N/` (the adapter at each validation but one before the first step),
`checkpoints/`, `scores.json`, and the result: `adapter/` in PEFT's layout, bfloat16, or `model/` where every weight was
trained. A run that was killed goes on from its last whole checkpoint and takes the same steps that it would have taken
(on the same machine and number of threads). Checkpoints hold optimiser states in torch's format: resume only from
folders of your own. Not guaranteed: that a checkpoint outlives a power cut.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig

from slm.dataset.examples import Example, split_by_conversation
from slm.dataset.rows import names_of, read_rows
from slm.engine.model import LoadedModel, load
from slm.malloc import keep_pages
from slm.training.curriculum import TrainingData, training_data, validation_data
from slm.training.lora import AdapterStartError, trainable
from slm.training.packing import Tree, digest
from slm.training.recipe import Recipe
from slm.training.sft import TreeTrainer, collate
from slm.training.trackers import require_trackers
from slm.training.tree_attention import use_tree_attention
from slm.weights.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS, file_sha256

CHECKPOINTS_KEPT = 2
CURVE = "curve"
"""Folder of a run with the adapter of each validation, for a learning curve: `curve/step-45`."""


class TrainingError(ValueError):
    """A run cannot be started or resumed; the message says why."""


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a run: steps done and planned, tokens computed, losses, and the seconds that are left."""

    step: int
    steps: int
    tokens: int
    loss: float | None
    """Mean over the latest steps, in nats per supervised token."""
    validation_loss: float | None
    left_s: float


OnProgress = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The outcome of a run."""

    folder: Path
    """The adapter or the model."""
    steps: int
    """Steps that the result was trained for; with `run.patience` those of the best checkpoint, which is then taken."""
    tokens: int
    """Tokens computed in these steps."""
    validation_loss: float | None
    """Validation loss of the result, in nats per supervised token; None where it was not validated."""


def train(
    recipe: Recipe,
    base: Path,
    files: Sequence[Path],
    run: Path,
    *,
    start: Path | None = None,
    on_progress: OnProgress,
    clock: Callable[[], float] = time.monotonic,
    stop_after: int | None = None,
) -> TrainingResult:
    """Train by a recipe, or resume the run in `run`.

    Args:
        base: the base model's folder.
        files: rows in the project's format, of which those of split `train` are read, or OpenAI conversations.
        run: made where it is missing; a folder with a run of another recipe, base, start or data is refused.
        start: folder of an adapter of the recipe's rank to go on from, in place of a fresh one; it is validated before
            the first step, so that the curve shows what the run adds to it.
        stop_after: leave after this many steps with a checkpoint, as if killed (the schedule stays that of the recipe).

    Raises:
        TrainingError: there is nothing to train on, two files are the same, or the folder belongs to another run.
        slm.training.trackers.TrackerError: a tracker of the recipe is not installed.
        slm.engine.model.LoadError: the base cannot be loaded.
        OSError: a file cannot be read or written.
    """
    require_trackers(recipe.run.report_to)
    keep_pages()
    loaded = load(base, dtype=recipe.run.base_dtype)
    data, validation, facts = _datasets(recipe, loaded, files)
    facts["base_weights_sha256"] = loaded.info.weights_sha256
    facts["pattern_version"] = loaded.info.pattern_version
    if start is not None and recipe.lora is not None:
        facts["start_weights_sha256"] = file_sha256(start / ADAPTER_WEIGHTS)
    _prepare_folder(run, recipe, facts)
    left = _newest_checkpoint(run)
    use_tree_attention(loaded.model)
    try:
        model = _model(recipe, loaded, start)
    except AdapterStartError as error:
        raise TrainingError(str(error)) from error
    whole = -(-len(data.trees) // recipe.optimiser.trees_a_step)
    steps = min(whole, recipe.optimiser.steps or whole)
    if left is not None and left.out_of_patience(recipe):
        steps = left.step
    trees = data.trees[: steps * recipe.optimiser.trees_a_step]
    trainer = _trainer(recipe, base, model, trees, validation, run, eval_on_start=start is not None and left is None)
    if trainer.accelerator.num_processes > 1:
        raise TrainingError("training runs in one process: start it without a launcher")
    trainer.add_callback(_Report(on_progress, clock, stop_after))
    if recipe.lora is not None:
        trainer.add_callback(_KeepAdapters(run / CURVE, recipe))
    if recipe.run.patience is not None and validation.trees:
        trainer.add_callback(EarlyStoppingCallback(recipe.run.patience))
    trainer.train(resume_from_checkpoint=str(left.folder) if left else None)
    state = trainer.state
    _write_curve(run, state.log_history)
    if stop_after is not None and state.global_step < state.max_steps:
        return TrainingResult(run / "checkpoints", state.global_step, _tokens(data, recipe, state.global_step), None)
    if recipe.lora is not None:
        folder = run / "adapter"
        export_adapter(trainer.model, folder, recipe.base)
    else:
        folder = run / "model"
        trainer.save_model(str(folder))
    taken = state.global_step
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        taken = state.best_global_step
    losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
    result = TrainingResult(folder, taken, _tokens(data, recipe, taken), losses.get(taken))
    scores = {**asdict(result), "folder": folder.name, "validation_losses": losses}
    (run / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return result


def _tokens(data: TrainingData, recipe: Recipe, steps: int) -> int:
    return sum(map(len, data.trees[: steps * recipe.optimiser.trees_a_step]))


def export_adapter(model: PeftModel, folder: Path, base_name: str) -> None:
    """Write an adapter in PEFT's layout: bfloat16 weights, and a configuration without the machine's paths."""
    model.save_pretrained(str(folder), safe_serialization=True)
    for readme in folder.glob("README.md"):
        readme.unlink()  # peft's own card is empty of facts
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items()}
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    config["target_modules"] = sorted(config["target_modules"])  # a set, in another order each time
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _datasets(
    recipe: Recipe, loaded: LoadedModel, files: Sequence[Path]
) -> tuple[TrainingData, TrainingData, dict[str, Any]]:
    """Training data, validation data, and the facts that `data.json` records about them."""
    examples: list[Example] = []
    facts: dict[str, Any] = {"files": {}}
    seen: dict[str, Path] = {}
    for path, name in zip(files, names_of(files), strict=True):
        rows = read_rows(path, name=name)
        if rows.sha256 in seen:
            raise TrainingError(f"{path} holds the same rows as {seen[rows.sha256]}: give them once")
        seen[rows.sha256] = path
        examples += rows.examples
        facts["files"][name] = {"sha256": rows.sha256, "rows": len(rows.examples), "refused": rows.refused}
    train_rows, validation_rows = split_by_conversation(examples, recipe.data.validation_share)
    data = training_data(train_rows, recipe, loaded.tokens)
    if not data.trees:
        refused = sum((Counter(file["refused"]) for file in facts["files"].values()), Counter(data.refused))
        raise TrainingError(f"no row to train on; refused: {dict(refused)}")
    validation = validation_data(validation_rows, recipe, loaded.tokens)
    for name, part in (("train", data), ("validation", validation)):
        facts[name] = {
            "rows": part.rows,
            "row_tokens": part.row_tokens,
            "tokens": part.tokens,
            "supervised_tokens": part.supervised_tokens,
            "sources": dict(sorted(part.sources.items())),
            "kinds": dict(sorted(part.kinds.items())),
            "constructed": dict(part.constructed),
            "refused": dict(part.refused),
            "sha256": digest(part.trees),
        }
    return data, validation, facts


def _prepare_folder(run: Path, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Write what the run is made of, or check that it is the same. A file is there whole or not at all."""
    texts = {
        "recipe.yaml": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "data.json": json.dumps(facts, indent=1) + "\n",
    }
    run.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = run / name
        if not path.exists():
            part = path.with_name(f"{name}.part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, path)
        elif path.read_text(encoding="utf-8") != text:
            raise TrainingError(f"the run folder holds another {name}: choose another folder")


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    step: int
    folder: Path
    state: Mapping[str, Any]

    def out_of_patience(self, recipe: Recipe) -> bool:
        """True if the run stopped early at this checkpoint, so that no step follows."""
        stopping = self.state["stateful_callbacks"].get(EarlyStoppingCallback.__name__)
        return (
            recipe.run.patience is not None
            and stopping is not None
            and bool(stopping["attributes"]["early_stopping_patience_counter"] >= recipe.run.patience)
        )


def _newest_checkpoint(run: Path) -> _Checkpoint | None:
    """The newest complete checkpoint, whose last file, the trainer's state, can be read. A kill may leave others."""
    made = {int(path.name.rpartition("-")[2]): path for path in (run / "checkpoints").glob("checkpoint-*")}
    for step in sorted(made, reverse=True):
        try:
            state = json.loads((made[step] / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return _Checkpoint(step, made[step], state)
    return None


def _model(recipe: Recipe, loaded: LoadedModel, start: Path | None) -> Any:
    """The model whose weights are trained. Raises AdapterStartError, TrainingError."""
    if recipe.lora is not None:
        return trainable(loaded.model, recipe.lora, start, seed=recipe.run.seed)
    if start is not None:
        raise TrainingError("start: the recipe trains every weight, no adapter")
    return loaded.model.requires_grad_(True)


def _trainer(
    recipe: Recipe,
    base: Path,
    model: Any,
    trees: Sequence[Tree],
    validation: TrainingData,
    run: Path,
    *,
    eval_on_start: bool,
) -> TreeTrainer:
    optimiser, settings = recipe.optimiser, recipe.run
    steps = -(-len(trees) // optimiser.trees_a_step)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.use_cache = False
    arguments = SFTConfig(
        output_dir=str(run / "checkpoints"),
        run_name=recipe.name,
        seed=settings.seed,
        data_seed=settings.seed,
        max_steps=steps,  # the trees are those of all epochs
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=optimiser.trees_a_step,
        learning_rate=optimiser.learning_rate,
        lr_scheduler_type=optimiser.schedule,
        warmup_steps=round(steps * optimiser.warmup_share),
        weight_decay=optimiser.weight_decay,
        max_grad_norm=optimiser.max_grad_norm,
        adam_beta2=optimiser.adam_beta2,
        use_cpu=not torch.cuda.is_available(),
        bf16=settings.precision == "bfloat16" or (settings.precision == "half" and not torch.cuda.is_available()),
        fp16=settings.precision == "half" and torch.cuda.is_available(),
        activation_checkpointing=False,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if validation.trees else "no",
        eval_steps=settings.evaluate_every,
        eval_on_start=eval_on_start and bool(validation.trees),
        save_strategy="steps",
        save_steps=settings.evaluate_every,
        save_total_limit=CHECKPOINTS_KEPT,
        restore_callback_states_from_checkpoint=True,  # patience goes on where it was
        load_best_model_at_end=settings.patience is not None and bool(validation.trees),
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to=list(settings.report_to) or "none",
        disable_tqdm=True,
        max_length=None,
        packing=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return TreeTrainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=_table(trees),
        eval_dataset=_table(validation.trees) if validation.trees else None,
        processing_class=tokenizer,
    )


def _table(trees: Sequence[Tree]) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [tree.ids for tree in trees],
            "labels": [tree.labels for tree in trees],
            "parents": [tree.parents for tree in trees],
            "position_ids": [tree.depths for tree in trees],
        }
    )


class _Report(TrainerCallback):  # type: ignore[misc]
    """Reports progress, and stops the run early on demand."""

    def __init__(self, on_progress: OnProgress, clock: Callable[[], float], stop_after: int | None) -> None:
        self._on_progress, self._clock, self._stop_after = on_progress, clock, stop_after
        self._began, self._first = 0.0, 0
        self._losses: list[float] = []
        self._validation: float | None = None
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first = self._clock(), state.global_step

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._first:  # before any step: no part of a step's time
            self._began = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stop_after is not None and state.global_step >= self._stop_after:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        self._losses = [*self._losses, logs["loss"]][-20:] if "loss" in logs else self._losses
        self._validation = logs.get("eval_loss", self._validation)
        self._tokens = int(logs.get("num_tokens", self._tokens))
        done = state.global_step - self._first
        pace = (self._clock() - self._began) / done if done else 0.0
        mean = sum(self._losses) / len(self._losses) if self._losses else None
        left_s = pace * (state.max_steps - state.global_step)
        self._on_progress(Step(state.global_step, state.max_steps, self._tokens, mean, self._validation, left_s))


class _KeepAdapters(TrainerCallback):  # type: ignore[misc]
    """Writes the adapter at every validation but the one before the first step."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self._folder, self._recipe = folder, recipe

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step:
            export_adapter(model, self._folder / f"step-{state.global_step}", self._recipe.base)


def _write_curve(run: Path, history: Sequence[dict[str, Any]]) -> None:
    kept = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "num_tokens")
    points = [{key: entry[key] for key in kept if key in entry} for entry in history]
    points = [point for point in points if "loss" in point or "eval_loss" in point]
    (run / "curve.json").write_text(json.dumps(points, indent=1) + "\n", encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # matplotlib's dependencies, not ours
        from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for key, label in (("loss", "training"), ("eval_loss", "validation")):
        shown = [(point["step"], point[key]) for point in points if key in point]
        if shown:
            axes.plot(*zip(*shown, strict=True), label=label, marker="o" if key == "eval_loss" else None)
    axes.set_xlabel("step")
    axes.set_ylabel("cross-entropy, nats per supervised token")
    axes.legend()
    figure.savefig(run / "curve.png", dpi=110)
