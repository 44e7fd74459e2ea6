"""The uncertainty of a figure: intervals for a pass rate, and a paired bootstrap that resamples whole clusters.

Requests that share a conversation or a tool list are not independent, so clusters are drawn, not rows. Draws are shared
between all figures of a report (paired): the difference of two policies is compared on the same draws. Percentile
intervals from few clusters (under about 30) are too narrow; the number of clusters belongs beside them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from evaluation.metrics import Floats, MetricError


def wilson(passes: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927); rows are taken as independent. (0, 1) for n = 0."""
    if not 0 <= passes <= n:
        raise MetricError(f"{passes} passes of {n} are no share")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2.0)
    p = passes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))
    return max(0.0, centre - half), min(1.0, centre + half)


def cluster_weights(
    clusters: Sequence[Hashable], draws: int, rng: np.random.Generator, *, max_cells: int = 1_000_000
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the counts of each of n rows in each draw: blocks of shape (b, n), `draws` rows in all.

    A draw takes G clusters out of G with replacement (Davison and Hinkley 1997, §3.8, whole clusters only); a row
    counts as often as its cluster. A block has at most `max_cells` numbers, or one draw.
    """
    if not clusters or draws < 1:
        raise MetricError("a bootstrap needs at least one row and one draw")
    index: dict[Hashable, int] = {}
    of_row = np.array([index.setdefault(c, len(index)) for c in clusters])
    share = np.full(len(index), 1.0 / len(index))
    block = max(1, max_cells // len(clusters))
    for start in range(0, draws, block):
        counts = rng.multinomial(len(index), share, size=min(block, draws - start))
        yield np.asarray(counts[:, of_row], dtype=np.int64)


def weighted_means(values: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """Σ w·v / Σ w for every draw: values (n,) or (n, K) and weights (B, n) give (B,) or (B, K)."""
    v, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    total = w.sum(axis=1)
    return np.asarray((w @ v) / (total if v.ndim == 1 else total[:, None]))


def percentile_interval(draws: npt.ArrayLike, *, level: float = 0.95) -> tuple[Floats, Floats]:
    """Lower and upper percentile over the first axis; draws that are not defined (NaN) are left out."""
    values = np.asarray(draws, dtype=np.float64)
    if np.isnan(values).all(axis=0).any():
        raise MetricError("no draw is defined")
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="inverted_cdf")
    return np.asarray(low), np.asarray(high)
