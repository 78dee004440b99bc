"""The type that a graph computes in: a copy of the reference model with its weights cast."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from toprl_export.models.adapter import LVLMAdapter

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""From precisions to the types of weights and caches, by the names that torch and NumPy share."""
_KEPT_BUFFERS = ("inv_freq", "original_inv_freq")
"""Rotary frequencies stay in float32: rounded ones turn distant tokens by a visibly wrong angle."""


def in_precision(adapter: LVLMAdapter, precision: str) -> LVLMAdapter:
    """``adapter`` itself where its weights have the type, else a copy whose weights do; the original is left alone.

    Weights are cast one by one, so that beside the original only the cast ones take memory.

    Args:
        adapter: the reference model.
        precision: fp32, fp16 or bf16.
    """
    dtype: torch.dtype = getattr(torch, DTYPES[precision])
    if adapter.dtype == dtype:
        return adapter
    # A deep copy that finds a tensor in its memo takes that one in the place of a copy.
    memo: dict[int, Any] = {}
    for parameter in adapter.model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    for name, buffer in adapter.model.named_buffers():
        kept = name.rpartition(".")[2] in _KEPT_BUFFERS or not buffer.is_floating_point()
        memo[id(buffer)] = buffer if kept else buffer.to(dtype)
    return type(adapter)(
        model_id=adapter.model_id,
        revision=adapter.revision,
        model=copy.deepcopy(adapter.model, memo),
        tokenizer=adapter.tokenizer,
        image_processor=adapter.image_processor,
        prompt_format=adapter.prompt_format,
    )
