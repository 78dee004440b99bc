"""PyTorch, pruned against unpruned, on models with the sizes of LLaVA-1.5-7B and LLaVA-NeXT-7B and random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ci.gpu.agreement import check_agreement
from ci.gpu.context import Context, NotRun
from ci.gpu.decoder_bench import DecoderBench
from ci.gpu.shapes import LLAVA, LLAVA_NEXT, Shape, random_subject, small
from ci.gpu.ways import CAUSAL, FLASH, KERNEL, KERNEL_MASKED, MASKED, register_ways

PYTORCH = (CAUSAL, MASKED, FLASH)
OURS = (CAUSAL, KERNEL, KERNEL_MASKED)
"""In a process of its own: what a faulty kernel leaves of a GPU context computes nothing more."""
SHALLOW = 4


def check_llava(context: Context) -> None:
    """576 visual tokens; 192, 128 and 64 kept on average over the layers."""
    _check(context, LLAVA, {192: (CAUSAL,), 128: PYTORCH, 64: (CAUSAL,)}, (1, 4, 8))


def check_llava_next(context: Context) -> None:
    """2,880 visual tokens; 640, 320 and 160 kept on average over the layers."""
    _check(context, LLAVA_NEXT, {640: (CAUSAL,), 320: PYTORCH, 160: (CAUSAL,)}, (1, 4, 8))


def check_llava_next_kernel(context: Context) -> None:
    """320 kept, by our kernel.

    Raises:
        NotRun: it is not to be had here.
    """
    dtype = _dtype(context)
    missing = register_ways(dtype)
    if KERNEL in missing:
        raise NotRun(missing[KERNEL])
    _check(context, LLAVA_NEXT, {320: OURS}, (1, 8))


def _check(context: Context, shape: Shape, budgets: Mapping[int, Sequence[str]], batches: Sequence[int]) -> None:
    """Small shapes keep the same shares of their tokens, at least two."""
    if context.quick:
        full, shape = shape.visual_tokens, small(shape)
        budgets = {max(2, budget * shape.visual_tokens // full): ways for budget, ways in budgets.items()}
    device, dtype = context.device, _dtype(context)
    budget, ways = max(budgets.items(), key=lambda item: len(item[1]))

    def agree() -> None:
        check_agreement(context, random_subject(replace(shape, layers=SHALLOW), device, dtype), budget, ways)

    def race() -> None:
        DecoderBench(context, random_subject(shape, device, dtype), budgets, batches).run()

    context.measure("agreement", "shallow model", agree)
    context.measure("batches", "whole model", race)


def _dtype(context: Context) -> torch.dtype:
    return torch.bfloat16 if context.device == "cuda" else torch.float32
