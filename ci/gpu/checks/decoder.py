"""PyTorch, pruned against unpruned, on models with the sizes of LLaVA-1.5-7B and LLaVA-NeXT-7B and random weights."""

from __future__ import annotations

import torch

from ci.gpu.context import Context
from ci.gpu.decoder_bench import DecoderBench
from ci.gpu.shapes import LLAVA, LLAVA_NEXT, Shape, random_subject, small


def check_llava(context: Context) -> None:
    """576 visual tokens; 192, 128 and 64 kept on average over the layers."""
    _check(context, LLAVA, (192, 128, 64))


def check_llava_next(context: Context) -> None:
    """2,880 visual tokens; 640, 320 and 160 kept on average over the layers."""
    _check(context, LLAVA_NEXT, (640, 320, 160))


def _check(context: Context, shape: Shape, budgets: tuple[int, int, int]) -> None:
    """In bf16 on a GPU; small shapes keep the same shares of their tokens, at least two."""
    if context.quick:
        full, shape = shape.visual_tokens, small(shape)
        first, second, third = (max(2, budget * shape.visual_tokens // full) for budget in budgets)
        budgets = (first, second, third)
    dtype = torch.bfloat16 if context.device == "cuda" else torch.float32
    DecoderBench.of(context, random_subject(shape, context.device, dtype), budgets).run()
