"""Tables of made-up drafts with a known rule of what is right, for tests of fitting."""

import numpy as np

from policies.classifier.dataset import FeatureTable
from policies.features.catalog import COLUMN, FEATURES, LEARNED
from policies.types import HIDDEN_SIZE, HiddenPlace


def made_table(rows: int, *, seed: int = 1, tools: int = 30, hidden: bool = True) -> FeatureTable:
    """Right where the weakest value token and one hidden number are high enough; a tenth of all signals is missing.

    Two rows a conversation, one tool a conversation: components are the tools.
    """
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(rows, len(FEATURES))).astype(np.float32)
    vectors[rng.random(vectors.shape) < 0.1] = np.nan
    for name in LEARNED:
        vectors[:, COLUMN[name]] = np.nan
    states = rng.normal(size=(rows, len(HiddenPlace), HIDDEN_SIZE)).astype(np.float32)
    signal = 1.5 * np.nan_to_num(vectors[:, COLUMN["value_logprob_min"]]) + (states[:, 1, 0] if hidden else 0)
    passed = signal + rng.normal(size=rows) > 0
    if not hidden:
        states[:] = np.nan
    conversations = np.arange(rows) // 2
    tool = conversations % tools
    return FeatureTable(
        vectors=vectors,
        hidden=states,
        offered=[(f"t{t}", f"t{(t + 1) % tools}") for t in tool],
        planned=[(f"t{t}",) for t in tool],
        passed=passed,
        conversations=[f"c{c}" for c in conversations],
        components=[f"k{t}" for t in tool],
    )
