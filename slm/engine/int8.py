"""Products with weights in 8 bits, by the kernel that torch's wheels bring for x86 (FBGEMM).

Each row of a weight matrix has its own scale, and so has each row of what it is multiplied with: rows are brought to
the range [−1, 1] before the kernel, which knows one scale a product, and back behind it. So a row of large numbers
costs the others in its pass nothing.

A row with one large number among small ones loses the small ones in 8 bits. `fine` products read their rows twice, once
rounded to 8 bits and once what the rounding left over, magnified: about 16 bits for what is multiplied (14 where the
processor has no VNNI and the kernel reads 7). In a step that is bound by reading the weights that is nearly free, in a
prompt it doubles the work.

A matrix that rows are looked up in has a scale for each 32 numbers: where its file held it in such blocks of 8 bits, as
the larger base's does, nothing is lost by it.
"""

from __future__ import annotations

import warnings

import torch

_LEVELS = 127
"""Quantisation levels of a weight on either side of zero."""
_LEAST = 1e-12
"""A row whose largest magnitude is below this counts as zero."""


_BLOCK = 32
_ROWS_AT_ONCE = 8192


class Int8Table:
    """Rows to be looked up, `table[ids]` of shape (…, width), in float32 outside.

    Args:
        weight: shape (rows, width); not kept.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.shape = weight.shape
        self.device = weight.device
        rows, width = weight.shape
        block = _BLOCK if width % _BLOCK == 0 else width
        self._levels = torch.empty(rows, width // block, block, dtype=torch.int8)
        self._scales = torch.empty(rows, width // block, 1)
        for start in range(0, rows, _ROWS_AT_ONCE):
            some = slice(start, start + _ROWS_AT_ONCE)
            blocks = weight[some].float().view(-1, width // block, block)
            self._scales[some] = blocks.abs().amax(dim=-1, keepdim=True).clamp_min_(_LEAST).div_(_LEVELS)
            self._levels[some] = (blocks / self._scales[some]).round_()

    def __getitem__(self, ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return (self._levels[ids] * self._scales[ids]).flatten(-2)


class Int8Linear:
    """A linear layer with 8-bit weights: x · Wᵀ + b, float32 of shape (rows, in) to float32 of shape (rows, out).

    Args:
        weight: shape (out, in); not kept.
        bias: shape (out,).
        fine: whether rows are read in about 16 bits.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, *, fine: bool) -> None:
        weight = weight.float()
        scales = weight.abs().amax(dim=1).clamp_min(_LEAST) / _LEVELS
        with warnings.catch_warnings():  # torch announces an end of quantised tensors; the release is pinned.
            warnings.simplefilter("ignore")
            self._packed = torch.ops.quantized.linear_prepack(
                torch.quantize_per_channel(weight, scales, torch.zeros(len(scales), dtype=torch.long), 0, torch.qint8),
                None,
            )
        self._bias = None if bias is None else bias.float()
        self._fine = fine
        # Without VNNI the kernel adds pairs of products in 16 bits, where full ranges would overflow: it reads 7 bits.
        self._reduce_range = not torch.cpu._is_vnni_supported()
        self._read = _LEVELS // 2 if self._reduce_range else _LEVELS
        # Its kernel takes the scale from the least and greatest number: this row makes that one level, exactly.
        self._range = torch.zeros(1, weight.shape[1])
        self._range[0, 0], self._range[0, -1] = -1.0, (self._read + 1) / self._read

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer to `x`, float32 of shape (rows, in)."""
        most = x.abs().amax(dim=-1, keepdim=True).clamp_min_(_LEAST)  # torch's norm is thirty times slower here
        y = (self._finely(x / most) if self._fine else self._product(x / most)).mul_(most)
        return y if self._bias is None else y.add_(self._bias)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, self._reduce_range)
        return y

    def _finely(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        rounded = (x * self._read).round_().mul_(1 / self._read)
        magnified = 2 * self._read  # what a rounding leaves over is at most half a level
        y = self._product(torch.cat((rounded, (x - rounded).mul_(magnified), self._range)))
        return torch.add(y[:rows], y[rows : 2 * rows], alpha=1 / magnified)
