"""TRL's `SFTTrainer` with the waste taken out, for one process.

Three things cost nothing and change nothing in the result: the language model's head is applied to taught tokens only;
rows come in batches of like length; and the beginning that all rows of a batch have in common (the instruction) is
computed once. Right padding needs no mask, since under causal attention no real token sees what stands behind it. In
several processes TRL's own loss is used instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import SequentialSampler
from transformers import DynamicCache
from trl import SFTTrainer

from slm.dataset import IGNORED

MIN_SHARED = 8
"""A common beginning shorter than this is not worth a forward pass of its own."""


class Collator:
    """Rows to a right-padded batch. `attention_mask` is only read by TRL's own loss."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels` and `attention_mask` of shape (rows, longest row)."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(values: Sequence[int], fill: int) -> list[int]:
            return [*values, *[fill] * (longest - len(values))]

        return {
            "input_ids": torch.tensor([padded(row["input_ids"], self._pad_id) for row in rows]),
            "labels": torch.tensor([padded(row["labels"], IGNORED) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in rows]),
        }


def shared_beginning(ids: torch.Tensor, labels: torch.Tensor) -> int:
    """Tokens at the beginning of a batch that are the same in all rows and not taught; at least one stays behind."""
    same = (ids == ids[:1]).all(dim=0) & (labels == IGNORED).all(dim=0)
    length = int(same.long().cumprod(dim=0).sum())
    width: int = ids.shape[1]
    return max(0, min(length, width - 1) - 1)  # The token before the first taught one predicts it.


def taught_loss(model: Any, ids: torch.Tensor, labels: torch.Tensor, *, share: bool = True) -> torch.Tensor:
    """Sum of the cross-entropy over the taught tokens, in nats.

    Args:
        model: a causal language model of transformers, without its adapter's wrapper.
        ids: (rows, tokens), padded on the right.
        labels: the same shape; `IGNORED` where nothing is taught.
        share: compute a common beginning once.
    """
    decoder = model.get_decoder()
    length = shared_beginning(ids, labels) if share else 0
    if length < MIN_SHARED:
        length = 0
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
    else:
        cache = DynamicCache(config=model.config)
        decoder(input_ids=ids[:1, :length], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(ids.shape[0])
        hidden = decoder(input_ids=ids[:, length:], past_key_values=cache, use_cache=True).last_hidden_state
    target = labels[:, length + 1 :]
    taught = target != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][taught]).float()
    return cross_entropy(logits, target[taught], reduction="sum")


class ThriftyTrainer(SFTTrainer):  # type: ignore[misc]
    """`SFTTrainer` over rows that are tokenised and in order. See the module's docstring."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy over the taught tokens of the step."""
        if self.accelerator.num_processes > 1 or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        ids, labels = inputs["input_ids"], inputs["labels"]
        bare = self.accelerator.unwrap_model(model)
        if hasattr(bare, "get_base_model"):
            bare = bare.get_base_model()
        with self.accelerator.autocast():
            loss = taught_loss(bare, ids, labels)
        mode = "train" if self.model.training else "eval"
        if mode == "train":
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return loss / torch.as_tensor(count).clamp(min=1)
