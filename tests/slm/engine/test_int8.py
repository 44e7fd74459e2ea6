"""Products in 8 bits: near the exact ones, whoever shares the pass, and finer where it is asked for."""

import pytest
import torch

from slm.engine.int8 import Int8Linear, Int8Table


@pytest.fixture(autouse=True, params=["as here", "without VNNI"])
def _processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VNNI the kernel reads 7 bits; any processor can do that."""
    if request.param == "without VNNI":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)


def made(rows: int, *, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, weights and bias of a layer from 96 to 40."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, 96, generator=generator),
        torch.randn(40, 96, generator=generator),
        torch.randn(40, generator=generator),
    )


def error(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative, by the norm."""
    return float((got - exact).norm() / exact.norm())


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_products_are_near_the_exact_ones(rows: int, fine: bool) -> None:
    """Within the rounding of weights and inputs, with and without a bias."""
    x, weight, bias = made(rows)
    assert error(Int8Linear(weight, bias, fine=fine)(x), x @ weight.T + bias) < 0.015
    assert error(Int8Linear(weight, None, fine=fine)(x), x @ weight.T) < 0.015


@pytest.mark.parametrize("fine", [False, True])
def test_a_row_of_large_numbers_costs_the_others_nothing(fine: bool) -> None:
    """Beside a row ten thousand times as large, and beside a row of noughts, a row is as exact as alone."""
    x, weight, bias = made(3)
    x[1] *= 10_000
    x[2] = 0
    got = Int8Linear(weight, bias, fine=fine)(x)
    assert error(got[:1], x[:1] @ weight.T + bias) < 0.015
    torch.testing.assert_close(got[2], bias)


def test_fine_rows_keep_what_stands_beside_a_large_number() -> None:
    """In a row with one number far above the rest, what 8 bits would lose is kept."""
    x, weight, _ = made(8)
    x[:, 7] *= 300
    rounded = Int8Linear(weight, None, fine=False)
    fine = Int8Linear(weight, None, fine=True)
    # Against the rounded weights themselves: what is left is the rounding of the rows.
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    exact = x.double() @ ((weight / scales).round() * scales).double().T
    assert error(fine(x).double(), exact) < error(rounded(x).double(), exact) / 30


@pytest.mark.parametrize("width", [96, 40])
def test_rows_are_looked_up_near_the_exact_ones(width: int) -> None:
    """By ids of any shape; a large number costs its own block of 32 and no other, a block of noughts stays."""
    weight = torch.randn(9000, width, generator=torch.Generator().manual_seed(2))
    weight[8500] = 0
    weight[8600, 0] = 1e4
    table = Int8Table(weight)
    ids = torch.tensor([[0, 8191, 8192], [8999, 17, 4000]])
    assert table[ids].shape == (2, 3, width)
    assert error(table[ids], weight[ids]) < 0.01
    assert not table[torch.tensor(8500)].any()
    assert width == 40 or error(table[torch.tensor(8600)][32:], weight[8600, 32:]) < 0.01


def test_what_came_in_blocks_of_8_bits_is_kept() -> None:
    """Numbers that are whole levels of their block, as a Q8_0 file's are, come back to rounding."""
    generator = torch.Generator().manual_seed(4)
    levels = torch.randint(-127, 128, (50, 3, 32), generator=generator)
    levels[..., 0] = 127
    weight = (levels * torch.rand(50, 3, 1, generator=generator)).flatten(1)
    torch.testing.assert_close(Int8Table(weight)[torch.arange(50)], weight)
