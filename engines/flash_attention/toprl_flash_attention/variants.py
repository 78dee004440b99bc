"""What is compiled ahead of time: every kernel for every SM, dtype, head dimension and tile that the table asks for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from toprl_flash_attention.tiles import HEAD_DIMS, TILES, Tile

KERNELS = ("attend", "attend_few", "merge_splits", "mark_tiles")
DTYPES = ("fp16", "bf16")
ALIGNMENT = 16
"""What the addresses (in bytes) and the strides (in elements) of query, key, value and out are multiples of."""
_WIDE = {"b", "h"}
"""Strides of batch and head are counted in 64 bits, those of rows in 32."""


@dataclass(frozen=True)
class KernelVariant:
    """One kernel as it is compiled.

    Attributes:
        kernel: its name, one of `KERNELS`.
        sm: 80 or 90.
        dtype: "fp16", "bf16", or "" where the kernel touches neither.
        head_dim: 0 where the kernel does not depend on it.
        masked: whether there is a mask.
        form: "wide", "narrow" or "few"; "" where the kernel has one form.
        tile: the tile; of `mark_tiles` only the block sizes matter, of `merge_splits` only the warps.
    """

    kernel: str
    sm: int
    dtype: str
    head_dim: int
    masked: bool
    form: str
    tile: Tile

    @property
    def constants(self) -> dict[str, int | bool]:
        """The kernel's compile-time arguments."""
        blocks = {"BLOCK_Q": self.tile.block_q, "BLOCK_K": self.tile.block_k}
        if self.kernel == "mark_tiles":
            return {**blocks}
        if self.kernel == "merge_splits":
            return {"HEAD_DIM": self.head_dim}
        return {"HEAD_DIM": self.head_dim, **blocks, "MASKED": self.masked}

    @property
    def image(self) -> str:
        """A name for the machine code: variants with equal code share it."""
        parts = [self.kernel, f"sm{self.sm}", self.dtype, *(f"{value:d}" for value in self.constants.values())]
        return "_".join([*filter(None, parts), f"w{self.tile.warps}", f"s{self.tile.stages}"])


def variants(sms: tuple[int, ...] = tuple(TILES)) -> tuple[KernelVariant, ...]:
    """All that the core library needs for these SMs."""
    found = []
    for sm in sms:
        table = TILES[sm]
        for dtype in DTYPES:
            for masked, ((head_dim, form), tile) in product((False, True), table.items()):
                kernel = "attend_few" if form == "few" else "attend"
                found.append(KernelVariant(kernel, sm, dtype, head_dim, masked, form, tile))
            merging = Tile(1, 1, 4, 1)
            found += [KernelVariant("merge_splits", sm, dtype, head_dim, False, "", merging) for head_dim in HEAD_DIMS]
        blocks = {(tile.block_q, tile.block_k) for (_, form), tile in table.items() if form != "few"}
        found += [KernelVariant("mark_tiles", sm, "", 0, True, "", Tile(q, k, 8, 1)) for q, k in sorted(blocks)]
    return tuple(found)


ArgumentKind = Literal["pointer", "float", "int32", "int64"]


def argument_kind(name: str) -> ArgumentKind:
    """How the argument ``name`` of a kernel is passed."""
    if name in ("query", "key", "value", "out", "mask", "marks", "parts"):
        return "pointer"
    if name == "scale_log2":
        return "float"
    stem, _, dimension = name.rpartition("_")
    return "int64" if stem in ("q", "k", "v", "o", "mask", "marks") and dimension in _WIDE else "int32"


def is_aligned(name: str) -> bool:
    """Whether the argument ``name`` is a multiple of `ALIGNMENT`."""
    stride = len(name) == 3 and name[:2] in ("q_", "k_", "v_", "o_")
    return stride or name in ("query", "key", "value", "out", "parts")
