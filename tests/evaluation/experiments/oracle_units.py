"""A table of 600 units on which other software was run once; its figures are frozen in test_comparison.py."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def unit_table() -> dict[str, npt.NDArray[np.float64]]:
    """Columns of (600,): variant (0 or 1), requests, passes, cost, size."""
    rng = np.random.default_rng(20250)
    size = rng.gamma(2.0, 1.5, 600)
    variant = (rng.random(600) < 0.45).astype(np.float64)
    requests = 1.0 + rng.poisson(2.0 + size / 2)
    passes = rng.binomial(requests.astype(np.int64), np.clip(0.9 - 0.04 * size - 0.05 * variant, 0.05, 0.95))
    cost = requests * (0.4 + 0.2 * size) * (1.0 - 0.3 * variant) + rng.normal(0.0, 0.3, 600)
    return {
        "variant": variant,
        "requests": requests,
        "passes": passes.astype(np.float64),
        "cost": cost,
        "size": size,
    }
