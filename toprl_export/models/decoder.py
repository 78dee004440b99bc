"""The parts of a Hugging Face decoder that the walk uses, under one name for every family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toprl_export.pruning.select import gather_tokens


class Decoder(nn.Module):
    """Token embedding, layers, final norm, rotary table and language-model head of one reference model."""

    def __init__(self, language_model: nn.Module, head: nn.Module) -> None:
        """``language_model`` is a Llama-like stack with ``embed_tokens``, ``layers``, ``norm`` and ``rotary_emb``."""
        super().__init__()
        self.embed: nn.Module = language_model.get_submodule("embed_tokens")
        self.layers: nn.Module = language_model.get_submodule("layers")
        self.norm: nn.Module = language_model.get_submodule("norm")
        self.rotary: nn.Module = language_model.get_submodule("rotary_emb")
        self.head = head

    def __len__(self) -> int:
        """L, the number of layers."""
        return len(list(self.layers.children()))

    def layer(self, index: int) -> nn.Module:
        """Layer ``index``, 0-based."""
        return self.layers.get_submodule(str(index))


class LayerCache:
    """What a Hugging Face attention needs of a cache: keeps one layer's keys and values, after any past ones.

    One object per layer, because after a stage the caches of deeper layers are shorter, which Hugging Face's own cannot
    hold.
    """

    def __init__(self, past: tuple[Tensor, Tensor] | None = None) -> None:
        self._past = past
        self.keys: Tensor
        self.values: Tensor

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append ``[b, kv_heads, s, head_dim]`` to the past and return the whole."""
        del layer_idx
        if self._past is not None:
            keys = torch.cat([self._past[0], keys], dim=2)
            values = torch.cat([self._past[1], values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


def attention_rows(
    layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], living_slots: Tensor, allowed: Tensor
) -> Tensor:
    """The attention of some tokens in ``layer``, averaged over heads: the rows that a scorer needs, never a whole map.

    Args:
        layer: a decoder layer; its own norm and projections are used.
        hidden: the states entering it, ``[b, s, d]``.
        rotary: cos and sin, each ``[b, s, head_dim]``.
        living_slots: of the tokens whose attention it is (see `toprl_export.models.walk`), ``int64 [b, q]``.
        allowed: what each of them may attend to, ``bool [b, q, s]``.

    Returns:
        ``float32 [b, q, s]``, the cost of one product of q rows with the keys.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    query = _heads(attention.q_proj(gather_tokens(normed, living_slots)), attention, "q_norm")  # [b, h, q, hd]
    keys = _heads(attention.k_proj(normed), attention, "k_norm")  # [b, kv, s, hd]
    query = rotated(query, tuple(gather_tokens(part, living_slots) for part in rotary))
    keys = rotated(keys, rotary)
    # Grouped-query attention: every key head serves as many query heads.
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
    scores = (query @ keys.transpose(-1, -2)).float() * attention.scaling  # [b, h, q, s]
    rows: Tensor = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(dim=-1).mean(dim=1)
    return rows


def key_norms(layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The L1 norm of every token's key in ``layer``, over all heads, with its position.

    Args:
        layer: a decoder layer; its own norm and projection are used.
        hidden: the states entering it, ``[b, s, d]``.
        rotary: cos and sin, each ``[b, s, head_dim]``.

    Returns:
        ``float32 [b, s]``.
    """
    attention = layer.self_attn
    keys = rotated(_heads(attention.k_proj(layer.input_layernorm(hidden)), attention, "k_norm"), rotary)
    norms: Tensor = keys.float().abs().sum(dim=(1, 3))  # [b, kv, s, hd] -> [b, s]
    return norms


def _heads(projected: Tensor, attention: Any, norm: str) -> Tensor:
    split = projected.reshape(*projected.shape[:-1], -1, attention.head_dim)  # [b, s, h, hd]
    if hasattr(attention, norm):  # some families normalise queries and keys per head, Llama does not
        split = getattr(attention, norm)(split)
    heads: Tensor = split.transpose(1, 2)  # [b, h, s, hd]
    return heads


def rotated(x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
    """Rotary position embedding of ``[*, h, s, hd]`` by cos and sin, each ``[*, s, hd]``."""
    cos, sin = (part.unsqueeze(-3) for part in rotary)  # [*, 1, s, hd]
    return x * cos + _rotate_half(x) * sin


def _rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat([-right, left], dim=-1)
