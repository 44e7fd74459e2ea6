"""TRL's `SFTTrainer` with the waste taken out, for one process.

Its unit is a tree of rows (`slm.training.packing`): what rows have in common is computed once, nothing is padded, and
the head is applied only where a supervised token is predicted. The loss equals that of the rows computed one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback
from trl import SFTTrainer

from slm.dataset.examples import IGNORED
from slm.training.packing import visible


def collate(trees: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Turn a batch of exactly one tree into tensors of shape (1, tokens)."""
    (tree,) = trees
    return {name: torch.tensor([tree[name]]) for name in ("input_ids", "labels", "parents", "position_ids")}


def tree_loss(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, parents: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Return the sum of the cross-entropy over the supervised tokens of a tree, in nats.

    Args:
        model: a causal language model of transformers, without its adapter's wrapper, that takes `position_ids` and a
            mask of four dimensions.
        ids: (1, tokens).
        labels: the same shape; `IGNORED` where a token is not supervised.
        parents: index of the token before, -1 for a row's first.
        positions: number of ancestors.
    """
    mask = torch.from_numpy(visible(parents[0].tolist()))[None, None].to(ids.device)
    decoder = model.get_decoder()
    hidden = decoder(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    supervised = labels[0] != IGNORED
    logits = model.get_output_embeddings()(hidden[0, parents[0, supervised]]).float()
    return cross_entropy(logits, labels[0, supervised], reduction="sum")


class TreeTrainer(SFTTrainer):  # type: ignore[misc]
    """An `SFTTrainer` whose training examples are trees, taken in the order given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_CountsOn(self))

    def count_on(self, history: Sequence[Mapping[str, float]]) -> None:
        """Continue counting tokens from the last `num_tokens` in a log history."""
        counted = [entry["num_tokens"] for entry in history if "num_tokens" in entry]
        self._total_train_tokens = int(counted[-1]) if counted else 0

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy per supervised token, in nats: of the step in training, of the tree in validation."""
        labels = inputs["labels"]
        bare = self.accelerator.unwrap_model(model)
        if hasattr(bare, "get_base_model"):
            bare = bare.get_base_model()
        with self.accelerator.autocast():
            loss = tree_loss(bare, inputs["input_ids"], labels, inputs["parents"], inputs["position_ids"])
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._total_train_tokens += labels.numel()
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        mean = loss / torch.as_tensor(count).clamp(min=1)
        return (mean, {}) if return_outputs else mean


class _CountsOn(TrainerCallback):  # type: ignore[misc]
    """A run that goes on counts on: TRL keeps the number of tokens in no checkpoint but the log's."""

    def __init__(self, trainer: TreeTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.count_on(state.log_history)
