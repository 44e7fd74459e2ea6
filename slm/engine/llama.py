"""A Llama's forward pass in few operations: about a third of the time that transformers takes for one token.

The formulas are those of transformers' `LlamaForCausalLM`, and of `Qwen2ForCausalLM`, a Llama with biases in query,
key and value: RMSNorm, rotary position embedding by halves, grouped-query attention, SwiGLU. What differs is how they
are dispatched: query, key and value weights are one matrix, and so are gate and up; the linear layers of all chunks are
one product, only attention is computed chunk by chunk, since each reads its own keys; nothing is allocated for keys and
values during a pass.

In int8 all linear layers are those of `slm.engine.int8`. The MLP's way down and the head read their rows finely: there
a rounding to 8 bits costs most (docs/decisions/0005).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from slm.engine.int8 import Int8Linear, Int8Table
from slm.engine.kv_cache import KVCache, TokenChunk
from slm.engine.signals import Pass, Table

Linear = Callable[[torch.Tensor], torch.Tensor]
PROBED_SIXTHS = (3, 4, 5)
"""Depths at which inner states are kept for the signals, in sixths of the layers."""
_KINDS = (LlamaForCausalLM, Qwen2ForCausalLM)
_ROPE_KINDS = {"default", "linear", "llama3"}
"""Kinds of rotary embedding whose angles depend on nothing but the position."""


def fits(model: PreTrainedModel) -> bool:
    """True if `LlamaForward` computes the same function as this model."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        type(model) in _KINDS
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and getattr(config, "pretraining_tp", 1) == 1
        and rope.get("rope_type", "default") in _ROPE_KINDS
    )


@dataclass(frozen=True, slots=True)
class _DecoderLayer:
    attention_norm: torch.Tensor
    qkv: Linear
    out: Linear
    mlp_norm: torch.Tensor
    gate_up: Linear
    down: Linear


class LlamaForward:
    """The lean forward pass of a Llama or Qwen2 model; it takes the model over.

    Without `int8` the model stays usable: its parameters become views of the joined ones, so weights are held once.
    """

    def __init__(self, model: PreTrainedModel, *, int8: bool = False) -> None:
        config, decoder = model.config, model.model
        self._eps = float(config.rms_norm_eps)
        self._heads, self._kv_heads = int(config.num_attention_heads), int(config.num_key_value_heads)
        self._head_dim = int(decoder.layers[0].self_attn.head_dim)
        self._scale = float(decoder.layers[0].self_attn.scaling)
        self._embedding, self.head = _tables(decoder.embed_tokens.weight, model.lm_head.weight, int8)
        """`head`: see `slm.engine.forward.Forward`."""
        self._norm = decoder.norm.weight.detach()
        self._cos, self._sin = _angles(model)
        self._layers = [
            _DecoderLayer(
                layer.input_layernorm.weight.detach(),
                _joined([layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj], int8),
                _joined([layer.self_attn.o_proj], int8),
                layer.post_attention_layernorm.weight.detach(),
                _joined([layer.mlp.gate_proj, layer.mlp.up_proj], int8),
                _joined([layer.mlp.down_proj], int8, fine=True),
            )
            for layer in decoder.layers
        ]
        self._head = _joined([model.lm_head], int8, fine=True)
        if int8:
            decoder.embed_tokens.weight.data = torch.empty(0)
        count = len(self._layers)
        self._probed = {count * share // 6 for share in PROBED_SIXTHS} - {0, count}

    def __call__(self, chunks: Sequence[TokenChunk]) -> Pass:
        """Run one pass over all chunks; implements `slm.engine.forward.Forward`."""
        device = self._embedding.device
        places, positions, kept = _places(chunks, device)
        ids = torch.tensor([id_ for chunk in chunks for id_ in chunk.ids], device=device)
        x = self._embedding[ids]
        cos, sin = self._cos[positions], self._sin[positions]
        masks = [_causal(place, self._heads // self._kv_heads, x) for place in places]
        size = (x.shape[-1],)
        probes = []
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            if index in self._probed:
                probes.append(x[kept])
            qkv = layer.qkv(F.rms_norm(x, size, layer.attention_norm, self._eps))
            attended = self._attended(index, qkv, places, masks, cos, sin)
            if index == last:  # keys and values are written: of the other rows nothing more is read
                x, attended = x[kept], attended[kept]
                if not len(kept):
                    break
            x = x + layer.out(attended)
            gate, up = layer.gate_up(F.rms_norm(x, size, layer.mlp_norm, self._eps)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        for place in places:
            place.kv.set_length(place.end)
        states = F.rms_norm(torch.stack([*probes, x]), size, self._norm, self._eps)
        return Pass(self._head(states[-1]) if len(kept) else x.new_empty(0, self.head.shape[0]), states)

    def _attended(
        self,
        index: int,
        qkv: torch.Tensor,
        places: Sequence[_Place],
        masks: Sequence[torch.Tensor | None],
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of one layer: shape (tokens, heads · head_dim). Grouped heads become rows of queries."""
        heads, kv_heads, dim = self._heads, self._kv_heads, self._head_dim
        qkv = qkv.view(-1, heads + 2 * kv_heads, dim)
        turning = qkv[:, : heads + kv_heads]
        turned = torch.addcmul(turning * cos, turning.roll(dim // 2, -1), sin)
        kv = torch.stack((turned[:, heads:], qkv[:, heads + kv_heads :])).transpose(1, 2)
        group = heads // kv_heads
        parts = []
        for place, mask in zip(places, masks, strict=True):
            rows = slice(place.row, place.row + place.count)
            stored = place.kv.layer(index)
            stored[:, :, place.start : place.end] = kv[:, :, rows]
            query = turned[rows, :heads].view(place.count, kv_heads, group, dim).permute(1, 2, 0, 3)
            query = query.reshape(1, kv_heads, group * place.count, dim)
            keys, values = stored[:, None, :, : place.end]
            out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=self._scale)
            out = out.view(kv_heads, group, place.count, dim).permute(2, 0, 1, 3)
            parts.append(out.reshape(place.count, heads * dim))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, slots=True)
class _Place:
    """Position of a chunk: `count` rows from `row` in the pass, tokens [start, end) in its `kv`."""

    kv: KVCache
    row: int
    count: int
    start: int

    @property
    def end(self) -> int:
        return self.start + self.count


def _places(chunks: Sequence[TokenChunk], device: torch.device) -> tuple[list[_Place], torch.Tensor, torch.Tensor]:
    """Places of the chunks, position of each row, and the rows whose logits are wanted."""
    places: list[_Place] = []
    positions: list[int] = []
    kept: list[int] = []
    for chunk in chunks:
        place = _Place(chunk.kv, len(positions), len(chunk.ids), chunk.kv.length)
        places.append(place)
        positions.extend(range(place.start, place.end))
        kept.extend(range(len(positions) - chunk.rows, len(positions)))
    return places, torch.tensor(positions, device=device), torch.tensor(kept, dtype=torch.long, device=device)


def _causal(place: _Place, group: int, like: torch.Tensor) -> torch.Tensor | None:
    """Causal mask to be added to the scores: shape (group · count, end), with the dtype and device of `like`. None
    where every query sees every key."""
    if place.count == 1:
        return None
    full = like.new_full((place.count, place.end), -torch.inf)
    return full.triu(place.start + 1).repeat(group, 1)


def _angles(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of every position: shape (context, 1, head_dim); sin is negative for the first half,
    so that turning is x · cos + roll(x, head_dim / 2) · sin."""
    weight = model.model.embed_tokens.weight
    positions = torch.arange(model.config.max_position_embeddings, device=weight.device)
    cos, sin = model.model.rotary_emb(weight, positions.unsqueeze(0))
    half = sin.shape[-1] // 2
    sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)
    return cos[0].unsqueeze(1).clone(), sin.unsqueeze(1)


def _tables(embedding: torch.Tensor, head: torch.Tensor, int8: bool) -> tuple[Table, Table]:
    """Both as matrices to look rows up in; tied ones are held once."""
    if not int8:
        return embedding.detach(), head.detach()
    made = Int8Table(embedding.detach())
    return made, made if head is embedding else Int8Table(head.detach())


def _joined(layers: Sequence[torch.nn.Linear], int8: bool, *, fine: bool = False) -> Linear:
    """Linear layers over one input as one; their own weights become views, or are given up in int8."""
    weight = layers[0].weight.detach() if len(layers) == 1 else torch.cat([layer.weight.detach() for layer in layers])
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
    if int8:
        for layer in layers:
            layer.weight.data = torch.empty(0)
        return Int8Linear(weight, bias, fine=fine)
    if len(layers) > 1:
        for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
            layer.weight.data = part
    return lambda x: F.linear(x, weight, bias)
