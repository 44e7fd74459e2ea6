"""What of a full fine-tune a low-rank adapter could hold: the change of each weight cut down to its largest directions.

ΔW = W_tuned − W_base of every linear layer but the head is replaced by its best approximation of rank r (Eckart and
Young 1936: the r largest singular values). What an adapter cannot hold, embeddings and norms, is put back to the base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from slm.model import Loaded


@dataclass(frozen=True, slots=True)
class _Change:
    base: torch.Tensor
    left: torch.Tensor
    sizes: torch.Tensor
    right: torch.Tensor

    def at(self, rank: int) -> torch.Tensor:
        return self.base + (self.left[:, :rank] * self.sizes[:rank]) @ self.right[:rank]


class RankCut:
    """A fine-tuned model whose change can be cut down. Changes the weights of the model that it is given."""

    def __init__(
        self, tuned: Loaded, base: Loaded, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Decompose every change; the base can be let go afterwards. Raises ValueError where the two do not match."""
        self._model = tuned.model
        names = [name for name, _ in _linear(tuned.model)]
        theirs = dict(base.model.named_parameters())
        self._changes: dict[str, _Change] = {}
        with torch.no_grad():
            for done, name in enumerate(names):
                tell(done, len(names))
                weight = tuned.model.get_parameter(name).float()
                before = theirs[name].float() if name in theirs else None
                if before is None or before.shape != weight.shape:
                    raise ValueError(f"{name}: the base has no such weight, or of another shape")
                left, sizes, right = torch.linalg.svd(weight - before, full_matrices=False)
                self._changes[name] = _Change(before.clone(), left, sizes, right)
            for name, parameter in tuned.model.named_parameters():
                if name not in self._changes:
                    parameter.copy_(theirs[name])

    def cut(self, rank: int) -> None:
        """Give every linear layer its change at this rank; the whole one where the layer has no more."""
        with torch.no_grad():
            for name, change in self._changes.items():
                self._model.get_parameter(name).copy_(change.at(rank))

    def kept(self, rank: int) -> float:
        """Share of the squared change that this rank holds, over all layers."""
        held = sum(float((change.sizes[:rank] ** 2).sum()) for change in self._changes.values())
        whole = sum(float((change.sizes**2).sum()) for change in self._changes.values())
        return held / whole if whole else 1.0

    def bytes(self, rank: int) -> int:
        """Size of an adapter of this rank in bfloat16."""
        return sum(2 * min(rank, len(change.sizes)) * sum(change.base.shape) for change in self._changes.values())

    @property
    def full_rank(self) -> int:
        """The largest rank that cuts anything."""
        return max(len(change.sizes) for change in self._changes.values())


def _linear(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of the linear layers but the head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            yield f"{name}.weight", module.weight
