"""`toprl::FlashAttention` as a torch operator, and the context in which a Hugging Face model uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

IMPLEMENTATION = "toprl_flash_attention"
"""The name under which transformers knows the op."""


@torch.library.custom_op("toprl::FlashAttention", mutates_args=())
def flash_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v over the keys that ``mask`` allows.

    Args:
        query: ``[b, heads, q, head_dim]``.
        key: ``[b, kv_heads, k, head_dim]``; ``kv_heads`` divides ``heads`` and is never repeated in memory.
        value: like ``key``.
        mask: ``bool``, true where a query may attend, broadcastable to ``[b, heads, q, k]``; None: everywhere.
        scale: factor of the products.

    Returns:
        ``[b, heads, q, head_dim]``.
    """
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return attended.contiguous()


@flash_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    del key, mask, scale
    return torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The form that transformers calls: the result is ``[b, q, heads, head_dim]``."""
    del module
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return flash_attention(query, key, value, attention_mask, scale).transpose(1, 2), None


@contextmanager
def routed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within the block every attention layer of ``model`` calls the op; afterwards its own implementations are back.

    The layers must be given a boolean mask, or none.
    """
    configs = {id(module.config): module.config for module in model.modules() if isinstance(module, PreTrainedModel)}
    former = [(config, config._attn_implementation) for config in configs.values()]
    AttentionInterface.register(IMPLEMENTATION, _attend)
    try:
        for config, _ in former:
            config._attn_implementation = IMPLEMENTATION
        yield
    finally:
        for config, implementation in former:
            config._attn_implementation = implementation
