"""The loss of rows against the model's own, in both precisions."""

from pathlib import Path

import pytest
import torch

from slm.dataset import Encoded
from slm.model import load
from slm.row_loss import row_losses

ROWS = [Encoded((1, 5, 9, 17, 33, 20), 2), Encoded((1, 7, 40, 3), 3)]


@pytest.mark.parametrize(("autocast", "near"), [(False, 1e-5), (True, 0.05)])
def test_rows_cost_what_the_model_says(llama_folder: Path, autocast: bool, near: float) -> None:
    loaded = load(llama_folder)
    losses = row_losses(loaded, ROWS, autocast=autocast)
    for row, nats in zip(ROWS, losses.nats, strict=True):
        ids = torch.tensor([row.ids])
        with torch.inference_mode():
            told = torch.log_softmax(loaded.model(ids).logits[0, :-1], -1)
        taught = range(row.prompt_tokens, len(row.ids))
        wanted = -sum(float(told[at - 1, row.ids[at]]) for at in taught)
        assert nats == pytest.approx(wanted, rel=near)
    assert losses.tokens == [4, 1]
    assert losses.mean == pytest.approx(sum(losses.nats) / 5)


def test_autocast_computes_in_another_precision(llama_folder: Path) -> None:
    loaded = load(llama_folder)
    assert row_losses(loaded, ROWS, autocast=True).nats != row_losses(loaded, ROWS).nats
