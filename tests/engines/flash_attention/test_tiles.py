"""The table of tiles and the rules that choose from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_flash_attention.tiles import FEW_ROWS, HEAD_DIMS, MAX_SPLITS, TILES, choose_form, choose_splits, table_of
from toprl_flash_attention.variants import variants


@pytest.mark.parametrize("sm", TILES)
def test_every_case_has_a_tile(sm):
    wanted = {(d, form) for d in HEAD_DIMS for form in ("wide", "narrow", "few")}
    assert set(TILES[sm]) == wanted
    assert all(tile.block_q == FEW_ROWS for (_, form), tile in TILES[sm].items() if form == "few")


@pytest.mark.parametrize(("sm", "of"), [(80, 80), (86, 80), (89, 80), (90, 90), (100, 80), (120, 80)])
def test_only_hopper_has_a_table_of_its_own(sm, of):
    assert table_of(sm) is TILES[of]


@pytest.mark.parametrize(
    ("sizes", "form"),
    [
        ((1, 32, 32, 1), "few"),
        ((4, 32, 8, 4), "few"),
        ((4, 32, 8, 5), "narrow"),  # 20 rows of one key-value head, 64 queries in a program
        ((8, 32, 32, 64), "narrow"),
        ((1, 32, 32, 320), "narrow"),  # 96 wide programs would leave a GPU half idle
        ((1, 32, 32, 2880), "wide"),
        ((8, 32, 32, 320), "wide"),
    ],
)
def test_the_form_follows_the_sizes(sizes, form):
    table = TILES[90]
    assert choose_form(*sizes, table[128, "wide"], table[128, "narrow"]) == form


@given(programs=st.integers(1, 5000), tiles=st.integers(1, 20000))
def test_splits_cover_all_tiles_and_none_is_empty(programs, tiles):
    splits, per_split = choose_splits(programs, tiles)
    assert 1 <= splits <= MAX_SPLITS
    assert (splits - 1) * per_split < tiles <= splits * per_split


def test_a_long_cache_of_few_heads_is_split():
    assert choose_splits(32, 47)[0] > 1
    assert choose_splits(512, 47)[0] == 1


def test_what_is_compiled_is_what_the_table_asks_for():
    found = variants()
    cases = {(v.sm, v.dtype, v.head_dim, v.masked, v.form): v.tile for v in found if v.form}
    assert cases == {
        (sm, dtype, head_dim, masked, form): tile
        for sm, table in TILES.items()
        for dtype in ("fp16", "bf16")
        for masked in (False, True)
        for (head_dim, form), tile in table.items()
    }
    marked = {(v.sm, v.tile.block_q, v.tile.block_k) for v in found if v.kernel == "mark_tiles"}
    needed = {(v.sm, v.tile.block_q, v.tile.block_k) for v in found if v.masked and v.form in ("wide", "narrow")}
    assert marked == needed
    assert all(v.image != w.image or v.constants == w.constants for v in found for w in found)
