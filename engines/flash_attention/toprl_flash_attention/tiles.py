"""Which kernel runs with which tile. The C++ core (src/plan.cpp) decides by the same rules and the same table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["wide", "narrow", "few"]
"""wide and narrow: `attend`, by the number of queries a program takes; few: `attend_few`, for decoding."""

HEAD_DIMS = (64, 128)
FEW_ROWS = 16
"""Queries of one key-value head, summed over the query heads that share it, up to which the few form is used."""
FULL_GRID = 128
"""Programs under which half as many queries per program keep more of a GPU busy."""
SMALLEST_BLOCK = 64
"""Of queries and of keys, in the wide and narrow forms."""
SPLIT_GRID = 256
"""Programs that the splitting of keys aims at."""
SPLIT_TILES = 8
"""Minimum number of key tiles in a split: fewer are not worth the second kernel."""
MAX_SPLITS = 32


@dataclass(frozen=True)
class Tile:
    """Shape of a program's work.

    Attributes:
        block_q: queries per program.
        block_k: keys per step.
        warps: of 32 threads each.
        stages: steps whose keys and values are in flight, counting the one being worked on.
    """

    block_q: int
    block_k: int
    warps: int
    stages: int


_80 = {
    # sm_86 and sm_89 run these too: a program must do with 99 KiB of shared memory.
    (64, "wide"): Tile(128, 64, 4, 3),
    (64, "narrow"): Tile(64, 64, 4, 3),
    (64, "few"): Tile(FEW_ROWS, 64, 4, 3),
    # 64 queries with 128 columns would be laid out across the warps by columns, which costs more than it gains.
    (128, "wide"): Tile(128, 64, 8, 2),
    (128, "narrow"): Tile(128, 64, 8, 2),
    (128, "few"): Tile(FEW_ROWS, 64, 4, 2),
}
_90 = {
    # Two programs fit on a multiprocessor: one's softmax overlaps the other's products.
    (64, "wide"): Tile(128, 64, 4, 3),
    (64, "narrow"): Tile(64, 64, 4, 3),
    (64, "few"): Tile(FEW_ROWS, 64, 4, 3),
    # 128 queries halve what is read from the L2 cache; two warpgroups hold their sums in registers.
    (128, "wide"): Tile(128, 128, 8, 3),
    (128, "narrow"): Tile(64, 64, 4, 3),
    (128, "few"): Tile(FEW_ROWS, 64, 4, 3),
}
TILES: dict[int, dict[tuple[int, str], Tile]] = {80: _80, 90: _90}
"""By SM, then (head dimension, form); the same with a mask and without."""


def table_of(sm: int) -> dict[tuple[int, str], Tile]:
    """The table for a device of compute capability ``sm`` (89 for 8.9): Hopper has its own."""
    return TILES[90 if sm == 90 else 80]


def choose_form(batch: int, heads: int, kv_heads: int, q_len: int, wide: Tile, narrow: Tile) -> Form:
    """The form for a call of these sizes."""
    if heads // kv_heads * q_len <= FEW_ROWS:
        return "few"
    programs = batch * heads * -(-q_len // wide.block_q)
    return "narrow" if q_len <= narrow.block_q or programs < FULL_GRID else "wide"


def choose_splits(kv_programs: int, tiles: int) -> tuple[int, int]:
    """Splits of the keys in the few form, and tiles of each; ``kv_programs`` is batch · kv heads."""
    wanted = min(MAX_SPLITS, -(-SPLIT_GRID // kv_programs), -(-tiles // SPLIT_TILES))
    per_split = -(-tiles // max(wanted, 1))
    return -(-tiles // per_split), per_split


def workspace_bound(batch: int, kv_heads: int, q_len: int, k_len: int, head_dim: int, masks: int) -> int:
    """Bytes of workspace that do for a call of these sizes and of all smaller ones.

    ``masks`` is the number of different masks, by batch and head: 0 without one.
    """
    blocks, tiles = -(-q_len // SMALLEST_BLOCK), -(-k_len // SMALLEST_BLOCK)
    marks = masks * blocks * tiles
    if tiles <= SPLIT_TILES:
        return marks
    # Several splits are made of fewer than SPLIT_GRID programs, each rounded up by less than one split.
    parts = min(batch * kv_heads * MAX_SPLITS, SPLIT_GRID + batch * kv_heads)
    return max(marks, FEW_ROWS * parts * (head_dim + 2) * 4)
