"""FlashAttention from torch: `flash_attention` runs the Triton kernels on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from toprl_flash_attention.tiles import HEAD_DIMS, Tile, choose_form, choose_splits, table_of

DTYPES = (torch.float16, torch.bfloat16)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    out: Tensor | None = None,
    workspace: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ) v over the allowed keys, without ever holding the products (Dao 2023).

    Sums are kept in float32. A query that may attend nothing gives zeros. Runs on the current stream.

    Args:
        query: float16 or bfloat16 ``[b, heads, q, head_dim]``, ``head_dim`` 64 or 128; any strides.
        key: ``[b, kv_heads, k, head_dim]``; ``kv_heads`` divides ``heads`` and is never repeated in memory.
        value: like ``key``.
        mask: bool, true where a query may attend, broadcastable to ``[b, heads, q, k]``; None: everywhere.
        scale: positive factor of the products.
        causal: query ``i`` attends to keys up to ``i + k - q`` (aligned at the bottom right).
        out: where to write, shaped like ``query`` with a contiguous last dimension; None: a new tensor.
        workspace: bytes to use in place of new memory, as many as `tiles.workspace_bound` says.
        tile: another tile than the table's, for tuning; only where the form is not the few one.

    Returns:
        ``[b, heads, q, head_dim]`` of the dtype of ``query``.

    Raises:
        ValueError: shapes, dtypes, devices or ``scale`` do not fit.
    """
    _check(query, key, value, mask, scale, out)
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device) if out is None else out
    if not query.numel() or not key.numel():
        return out.zero_()
    kv_heads, k_len = key.shape[1:3]
    tiles = _tiles(query)
    wide, narrow, few = (tiles[query.shape[-1], form] for form in ("wide", "narrow", "few"))
    form = choose_form(query.shape[0], query.shape[1], kv_heads, query.shape[2], wide, narrow)
    diagonal = k_len - query.shape[2] if causal else k_len
    call = _Call(query, key, value, out, None if mask is None else _bytes(mask, k_len), scale, diagonal, workspace)
    with _device(query):
        if form == "few":
            _run_few(call, few)
        else:
            _run(call, tile or (wide if form == "wide" else narrow))
    return out


@dataclass(frozen=True)
class _Call:
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    mask: Tensor | None
    scale: float
    diagonal: int
    workspace: Tensor | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and head dimension."""
        batch, heads, q_len, head_dim = self.query.shape
        return batch, heads, q_len, head_dim

    @property
    def arguments(self) -> list[Any]:
        """What `attend` and `attend_few` share behind their pointers."""
        heads, q_len, kv_heads, k_len = *self.query.shape[1:3], *self.key.shape[1:3]
        sizes = [self.scale * math.log2(math.e), heads, heads // kv_heads, q_len, k_len, self.diagonal]
        return sizes + [stride for x in (self.query, self.key, self.value, self.out) for stride in _strides(x)]

    @property
    def mask_strides(self) -> list[int]:
        return [0, 0, 0] if self.mask is None else _strides(self.mask)

    def space(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory for intermediate results."""
        if self.workspace is None:
            return torch.empty(shape, dtype=dtype, device=self.query.device)
        size = math.prod(shape) * dtype.itemsize
        if self.workspace.nbytes < size:
            raise ValueError(f"workspace has {self.workspace.nbytes} bytes, expected {size}")
        return self.workspace.view(torch.uint8)[:size].view(dtype).view(shape)


def _check(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, out: Tensor | None) -> None:
    if any(x.dim() != 4 for x in (query, key, value)):
        raise ValueError("query, key and value must be [batch, heads, length, head_dim]")
    batch, heads, q_len, head_dim = query.shape
    if key.shape != value.shape or key.shape[0] != batch or key.shape[3] != head_dim:
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit"
        )
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head dimension {head_dim}, expected one of {HEAD_DIMS}")
    if not key.shape[1] or heads % key.shape[1]:
        raise ValueError(f"{key.shape[1]} key-value heads do not divide {heads} heads")
    if query.dtype not in DTYPES or {query.dtype, key.dtype, value.dtype} != {query.dtype}:
        raise ValueError("query, key and value must all be float16, or all bfloat16")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale}, expected a positive number")
    wanted = (batch, heads, q_len, key.shape[2])
    if mask is not None and (mask.dtype != torch.bool or not _broadcasts(mask, wanted)):
        raise ValueError(f"mask is {mask.dtype} {tuple(mask.shape)}, expected bool that broadcasts to {wanted}")
    if out is not None and (out.shape != query.shape or out.dtype != query.dtype or out.stride(-1) != 1):
        raise ValueError("out must have the shape and dtype of query and a contiguous last dimension")
    if any(x is not None and x.device != query.device for x in (key, value, mask, out)):
        raise ValueError("all tensors must be on one device")
    if not query.is_cuda and type(_kernels().attend).__name__ != "InterpretedFunction":
        raise ValueError("CPU tensors need Triton's interpreter: TRITON_INTERPRET=1 before the kernels are imported")


def _broadcasts(mask: Tensor, wanted: tuple[int, ...]) -> bool:
    return mask.dim() == 4 and all(size in (1, whole) for size, whole in zip(mask.shape, wanted, strict=True))


def _kernels() -> Any:
    """The kernels; importing them imports Triton."""
    return import_module("toprl_flash_attention.triton_kernels")


def _tiles(query: Tensor) -> dict[tuple[int, str], Tile]:
    if not query.is_cuda:
        return table_of(90)
    major, minor = torch.cuda.get_device_capability(query.device)
    return table_of(10 * major + minor)


def _device(query: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(query.device) if query.is_cuda else nullcontext()


def _bytes(mask: Tensor, k_len: int) -> Tensor:
    """The mask as bytes whose last dimension is whole and contiguous; the others may still be of size 1."""
    if mask.shape[3] != k_len:
        mask = mask.expand(-1, -1, -1, k_len)
    if mask.stride(3) != 1:
        mask = mask.contiguous()
    return mask.view(torch.int8)


def _strides(x: Tensor) -> list[int]:
    """Of batch, head and row; 0 where there is one only."""
    return [x.stride(i) if x.shape[i] > 1 else 0 for i in range(3)]


def _run(call: _Call, tile: Tile) -> None:
    batch, heads, q_len, head_dim = call.shape
    mask, k_len = call.mask, call.key.shape[2]
    blocks, tiles = -(-q_len // tile.block_q), -(-k_len // tile.block_k)
    marks, marks_strides = None, [0, 0]
    if mask is not None:
        marks = call.space((*mask.shape[:2], blocks, tiles), torch.int8)
        marks_strides = _strides(marks)[:2]
        _kernels().mark_tiles[(marks.numel(),)](
            mask, marks, q_len, k_len, call.diagonal, *call.mask_strides, mask.shape[1],
            BLOCK_Q=tile.block_q, BLOCK_K=tile.block_k, num_warps=8,
        )  # fmt: skip
    _kernels().attend[(blocks * batch * heads,)](
        call.query, call.key, call.value, call.out, mask, marks, *call.arguments, *call.mask_strides, *marks_strides,
        HEAD_DIM=head_dim, BLOCK_Q=tile.block_q, BLOCK_K=tile.block_k, MASKED=mask is not None,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip


def _run_few(call: _Call, tile: Tile) -> None:
    batch, heads, q_len, head_dim = call.shape
    programs, rows = batch * call.key.shape[1], batch * heads * q_len
    splits, per_split = choose_splits(programs, -(-call.key.shape[2] // tile.block_k))
    # [row, split, head_dim], then two of [row, split]
    parts = call.space((rows * splits * (head_dim + 2) if splits > 1 else 0,), torch.float32)
    _kernels().attend_few[(splits * programs,)](
        call.query, call.key, call.value, call.out, call.mask, parts, *call.arguments, *call.mask_strides,
        splits, per_split, rows,
        HEAD_DIM=head_dim, BLOCK_Q=tile.block_q, BLOCK_K=tile.block_k, MASKED=call.mask is not None,
        num_warps=tile.warps, num_stages=tile.stages, enable_fp_fusion=True,
    )  # fmt: skip
    if splits > 1:
        _kernels().merge_splits[(rows,)](
            parts, call.out, heads, q_len, *_strides(call.out), splits, rows, HEAD_DIM=head_dim, enable_fp_fusion=True
        )
