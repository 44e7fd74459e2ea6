"""Attention over a tree of rows without the scores that the mask hides.

A tree's mask is mostly empty: a row sees what it begins with and itself, not its neighbours. So queries are taken in
blocks, and each block reads only the keys that one of its queries sees. The result is that of one masked attention
over everything, to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "smallcall_tree"
NOT_COMPUTED = ("position_bias", "s_aux", "sliding_window", "softcap")
"""Arguments of attention functions that some models use and that this one does not support."""
BLOCK = 192
"""Queries per block. Smaller blocks read fewer masked keys; larger blocks make better use of a core."""


def use_tree_attention(model: PreTrainedModel) -> bool:
    """Make the model compute its attention by `tree_attention`; return False if its kind does not allow that.

    It must then be called with a boolean mask of shape (1, 1, tokens, tokens).
    """
    AttentionInterface.register(NAME, tree_attention)
    try:
        model.set_attn_implementation(NAME)
    except (ValueError, ImportError):
        return False
    return bool(model.config._attn_implementation == NAME)


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over blocks of queries, with the signature that transformers expects of attention functions.

    Args:
        query: (1, heads, tokens, head_dim).
        key: (1, heads of keys, tokens, head_dim); heads of queries may share one.
        value: like `key`.
        attention_mask: (1, 1, tokens, tokens), True where a query (third axis) sees a key.

    Returns:
        (1, tokens, heads, head_dim), and no weights.

    Raises:
        NotImplementedError: the model asks for more than a mask (`NOT_COMPUTED`), which must not be left out silently.
    """
    if asked := [name for name in NOT_COMPUTED if more.get(name) is not None]:
        raise NotImplementedError(f"attention with {', '.join(asked)} is not trained on trees")
    shared = query.shape[1] // key.shape[1]
    parts = []
    for start in range(0, query.shape[2], BLOCK):
        mask = attention_mask[:, :, start : start + BLOCK]
        seen = mask[0, 0].any(0).nonzero()[:, 0]
        keys, values = (one.index_select(2, seen).repeat_interleave(shared, dim=1) for one in (key, value))
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start : start + BLOCK],
                keys,
                values,
                attn_mask=mask.index_select(3, seen),
                dropout_p=dropout if module.training else 0.0,
                scale=scaling,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None
