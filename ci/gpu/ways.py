"""The attention implementations that a decoder can be run by, under names that transformers knows.

Those that take no mask are for prompts that begin with the image, where what the walk's mask says is plain causality:
tokens stand in their order, kept ones too, and none is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ci.gpu.context import MISSING, NotRun

MASKED = "sdpa"
"""Hugging Face's own way with SDPA: the walk hands it a mask, its own forward none."""
CAUSAL = "toprl_ci_causal"
KERNEL = "toprl_ci_kernel"
KERNEL_MASKED = "toprl_ci_kernel_masked"
FLASH = "toprl_ci_flash_attn"
OPEN = "toprl_ci_not_causal"
NAMES = {
    MASKED: "SDPA, mask",
    CAUSAL: "SDPA, causal",
    KERNEL: "our kernel",
    KERNEL_MASKED: "our kernel, mask",
    FLASH: "flash-attn",
}
HALF_ONLY = (KERNEL, KERNEL_MASKED, FLASH)
TAKE_MASKS = (MASKED, KERNEL_MASKED)

Heads = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
"""Query, key, value ``[b, heads, s, head_dim]``, the walk's mask ``bool [b, 1, q, k]`` and scale to
``[b, heads, q, head_dim]``."""


def register_ways(dtype: torch.dtype) -> dict[str, str]:
    """Make every way known to transformers.

    Args:
        dtype: of the model that is to be run.

    Returns:
        why each of those that cannot be used here is not there, by its name.
    """
    makers: dict[str, Callable[[], Heads]] = {
        CAUSAL: lambda: partial(_sdpa, causal=True),
        OPEN: lambda: partial(_sdpa, causal=False),
        KERNEL: partial(_our_kernel, masked=False),
        KERNEL_MASKED: partial(_our_kernel, masked=True),
        FLASH: _flash_attn,
    }
    missing = {}
    for name, make in makers.items():
        if dtype == torch.float32 and name in HALF_ONLY:
            missing[name] = "it takes fp16 and bf16, the model is fp32"
            continue
        try:
            _register(name, make())
        except MISSING as error:
            missing[name] = str(error)
    return missing


@contextmanager
def attention(config: Any, way: str) -> Iterator[None]:
    """Within the block the layers of ``config`` attend by ``way``."""
    former = config._attn_implementation
    config._attn_implementation = way
    try:
        yield
    finally:
        config._attn_implementation = former


def load_kernel() -> Callable[..., Tensor]:
    """`toprl_flash_attention.kernel.flash_attention`.

    Raises:
        NotRun: there is no Triton.
    """
    if find_spec("triton") is None:
        raise NotRun("triton is not installed")
    function: Callable[..., Tensor] = import_module("toprl_flash_attention.kernel").flash_attention
    return function


def _register(name: str, heads: Heads) -> None:
    from transformers import AttentionInterface

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        del module
        return heads(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None

    AttentionInterface.register(name, attend)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, *, causal: bool) -> Tensor:
    del mask
    grouped = query.shape[1] != key.shape[1]
    wanted = causal and query.shape[2] > 1
    return scaled_dot_product_attention(query, key, value, is_causal=wanted, scale=scale, enable_gqa=grouped)


def _our_kernel(masked: bool) -> Heads:
    function = load_kernel()

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        return function(query, key, value, mask if masked else None, scale=scale, causal=not masked)

    return attend


def _flash_attn() -> Heads:
    function = import_module("flash_attn").flash_attn_func

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        del mask
        turned = (x.transpose(1, 2) for x in (query, key, value))
        answer: Tensor = function(*turned, softmax_scale=scale, causal=True)
        return answer.transpose(1, 2)

    return attend
