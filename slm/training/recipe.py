"""A training recipe: the data, the base model and the method, as YAML; unknown keys and wrong values are refused."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from slm.dataset.splits import VALIDATION_SHARE

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Tracker = Literal["mlflow", "wandb", "tensorboard"]


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names every wrong field."""


class _RecipePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_RecipePart):
    """The rows that are trained on, and the bounds on their size."""

    sources: Mapping[str, Annotated[float, Field(gt=0)]] | None = None
    """Share of the rows by source, relative to each other; those not named are left out. None takes all rows once."""
    rows: Count | None = None
    """Rows drawn by `sources`; a source that runs out is gone through again, varied anew."""
    max_tokens: Count = 1024
    """A row whose prompt and draft are longer is left out."""
    max_tools: Count = 8
    rows_a_group: Count = 1
    """Rows of a source that offer one list of tools, where that cannot change an answer; their tokens are shared."""
    tree_tokens: Count = 1024
    """Tokens of a tree of rows, the unit of a forward pass."""
    validation_share: Share = VALIDATION_SHARE
    """Share of the conversations kept out of training."""
    validation_rows: Annotated[int, Field(ge=0)] = 128


class Augment(_RecipePart):
    """Variations of rows; each value is the share of rows, from 0 to 1, that the variation applies to."""

    shuffle_tools: Share = 1.0
    other_tools: Share = 0.0
    """One to three tools of other sources are offered too, where every row that shares the list makes a call."""
    mask_names: Share = 0.0
    """Tools and parameters that have a description get made-up names."""
    remove_gold: Share = 0.0
    """The called tools are taken away: no call is right."""
    vary_signatures: Share = 0.0
    """Descriptions are cut shorter."""
    paraphrase: Share = 0.0
    """Descriptions in other words, names in another style (`slm.dataset.paraphrase`)."""
    ask_back: Share = 0.0
    """A required value is taken out of the request where a rule allows it (`slm.dataset.missing_values`): the draft
    asks."""
    join_calls: Share = 0.0
    """Share of each source's rows that make several calls. Where its own rows are fewer, requests are joined, or one is
    asked for several values (`slm.dataset.parallel_calls`), as far as the source has rows that allow it."""
    tool_errors: Share = 0.0
    """A wrong call and its tool's complaint come before (`slm.dataset.tool_errors`): the draft puts it right."""


class Lora(_RecipePart):
    """A low-rank adapter on all linear layers but the head."""

    rank: Count = 16
    alpha: Count = 32
    dropout: Share = 0.0
    from_layer: Annotated[int, Field(ge=0)] = 0
    """Layers below are left as they are, those of a start adapter included: nothing is computed backwards there."""


class Optimiser(_RecipePart):
    """AdamW and its schedule."""

    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_share: Share = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    epochs: Count = 1
    """Passes over the rows, each varied anew."""
    trees_a_step: Count = 4
    """Trees of rows to a step of the optimiser; see `data.tree_tokens`."""
    steps: Count | None = None
    """Stop after this many steps, and end the schedule there; None goes through all rows."""


class Run(_RecipePart):
    """Settings that do not change the mathematics, except for the seed and early stopping."""

    seed: int = 0
    precision: Literal["float32", "bfloat16", "half"] = "float32"
    """Precision of the computation; `half` is float16 on a GPU and bfloat16 elsewhere. Trained weights stay float32."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of a base that stays frozen under an adapter; bfloat16 takes half of the memory."""
    evaluate_every: Count = 50
    """Steps between validations and checkpoints."""
    patience: Count | None = None
    """Stop after this many validations without a better loss. An adapter that the run starts from is no candidate."""
    report_to: tuple[Tracker, ...] = ()
    """Experiment trackers that losses and arguments are sent to, each an extra of the package; configured by their own
    environment variables (`MLFLOW_TRACKING_URI`, `WANDB_MODE`)."""


class Recipe(_RecipePart):
    """One training run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
    base: str
    """A known model name or a folder in Hugging Face layout."""
    note: str = ""
    """Remarks for readers: where the settings come from, and what is not known about them."""
    data: Data = Data()
    augment: Augment = Augment()
    lora: Lora | None = None
    """None trains every weight."""
    optimiser: Optimiser
    run: Run = Run()

    @model_validator(mode="after")
    def _agrees(self) -> Recipe:
        if self.lora is None and self.run.base_dtype != "float32":
            raise ValueError("run.base_dtype: a base that is trained itself stays float32")
        if self.data.sources is None and self.data.rows is not None:
            raise ValueError("data.rows: needs data.sources to draw from")
        if self.data.sources is not None and self.data.rows is None:
            raise ValueError("data.sources: needs data.rows, the number of rows to draw")
        if self.run.patience is not None and not (self.data.validation_share and self.data.validation_rows):
            raise ValueError("run.patience: needs validation rows")
        return self


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("slm") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(spec: str) -> Recipe:
    """Load a shipped recipe by its name, or a recipe from the path of a YAML file.

    Raises:
        RecipeError: there is no such recipe, or it is not valid.
    """
    if spec in recipe_names():
        text = (resources.files("slm") / "recipes" / f"{spec}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(spec).read_text(encoding="utf-8")
        except OSError as exc:
            known = ", ".join(recipe_names())
            raise RecipeError(f"{spec!r} is neither a recipe ({known}) nor a file that can be read") from exc
    try:
        return Recipe.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as exc:
        raise RecipeError(f"{spec}: not YAML") from exc
    except ValidationError as exc:
        wrong = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in exc.errors())
        raise RecipeError(f"{spec}: {wrong}") from exc
