"""The kernels' arithmetic in Triton's interpreter on the CPU, against the definition in float64."""

from __future__ import annotations

import importlib.util
import sys
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version

from toprl_flash_attention.tiles import Tile, workspace_bound

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton: pip install 'toprl-export[kernels]'", allow_module_level=True)
if Version(version("triton")) < Version("3.9"):
    pytest.skip("the interpreter of Triton before 3.9 does not work with NumPy 2.4", allow_module_level=True)

SMALL = Tile(32, 32, 4, 2)
"""So that few numbers make several tiles."""


def imported_kernels():
    """Names of the modules to import anew: Triton decides on import whether it interprets. Its C++ part stays."""
    kernels = ("toprl_flash_attention.kernel", "toprl_flash_attention.triton_kernels")
    return [n for n in sys.modules if n in kernels or (n.split(".")[0] == "triton" and not n.startswith("triton._C"))]


@pytest.fixture(scope="module")
def module():
    """`toprl_flash_attention.kernel`, its kernels interpreted."""
    before = {name: sys.modules.pop(name) for name in imported_kernels()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.import_module("toprl_flash_attention.triton_kernels")
        yield importlib.import_module("toprl_flash_attention.kernel")
    for name in imported_kernels():
        del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="module")
def flash_attention(module):
    return module.flash_attention


def operands(batch, heads, kv_heads, q_len, k_len, head_dim=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, q_len, head_dim, generator=generator).half()
    key, value = (torch.randn(batch, kv_heads, k_len, head_dim, generator=generator).half() for _ in range(2))
    return query, key, value


def random_mask(*shape, allowed=0.5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < allowed


def definition(query, key, value, mask=None, *, scale, causal=False):
    """In float64; rows that may attend nothing give zeros."""
    repeat = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(repeat, dim=1) for x in (key, value))
    scores = query.double() @ key.transpose(-1, -2) * scale
    allowed = torch.ones(scores.shape, dtype=torch.bool) if mask is None else mask.expand(scores.shape)
    if causal:
        q_len, k_len = scores.shape[-2:]
        allowed = allowed & torch.ones(q_len, k_len, dtype=torch.bool).tril(k_len - q_len)
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return weights.nan_to_num() @ value


def compare(flash_attention, sizes, mask=None, causal=False, scale=0.2, tile=SMALL):
    inputs = operands(*sizes)
    answer = flash_attention(*inputs, mask, scale=scale, causal=causal, tile=tile)
    truth = definition(*inputs, mask, scale=scale, causal=causal)
    assert answer.dtype == torch.float16
    return (answer.double() - truth).abs().max().item()


EXACT = 2e-3
"""Half precision's rounding of weights and result, for values of about one; the controls are off by far more."""


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 2, 2, 64, 64),  # whole tiles only
        (2, 2, 1, 45, 70),  # ragged, more keys than queries, grouped heads
        (1, 4, 2, 70, 45),  # with causality the first queries attend nothing
        (1, 1, 1, 33, 40, 128),
    ],
)
def test_equals_the_definition(flash_attention, sizes, causal):
    assert compare(flash_attention, sizes, causal=causal) < EXACT


@pytest.mark.parametrize("shape", [(1, 1, 50, 70), (2, 1, 50, 70), (1, 2, 50, 70), (2, 1, 1, 70), (1, 2, 50, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_are_broadcast(flash_attention, shape, causal):
    assert compare(flash_attention, (2, 2, 1, 50, 70), random_mask(*shape), causal) < EXACT


@pytest.mark.parametrize("sizes", [(1, 2, 2, 1, 90), (2, 8, 2, 3, 90), (1, 2, 1, 1, 1200), (1, 2, 2, 2, 1)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_few_queries_over_many_keys(flash_attention, sizes, masked, causal):
    batch, _, _, q_len, k_len = sizes
    mask = random_mask(batch, 1, q_len, k_len) if masked else None
    assert compare(flash_attention, sizes, mask, causal) < EXACT


@pytest.mark.parametrize("q_len", [1, 40])
def test_a_query_that_may_attend_nothing_gives_zeros(flash_attention, q_len):
    mask = random_mask(1, 1, q_len, 70)
    mask[:, :, 0] = False
    query, key, value = operands(1, 2, 2, q_len, 70)
    answer = flash_attention(query, key, value, mask, scale=0.2, tile=SMALL)
    assert not answer[:, :, 0].any()
    if q_len > 1:
        assert answer[:, :, 1:].any()


def test_the_mask_the_causality_and_the_scale_matter(flash_attention):
    inputs = operands(1, 2, 2, 40, 70)
    mask = random_mask(1, 1, 40, 70)
    right = definition(*inputs, mask, scale=0.2, causal=True)
    for wrong in ({"mask": None}, {"causal": False}, {"scale": 0.3}):
        arguments = {"mask": mask, "scale": 0.2, "causal": True, **wrong}
        assert (flash_attention(*inputs, **arguments, tile=SMALL).double() - right).abs().max() > 20 * EXACT


def test_tiles_that_a_mask_forbids_are_not_read(flash_attention):
    """Padding in front and causality: what lies in a forbidden tile may be anything, even no number."""
    query, key, value = operands(1, 2, 2, 96, 96)
    place = torch.arange(96)
    mask = ((place[:, None] >= place) & (place >= 32))[None, None]
    truth = definition(query, key, value, mask, scale=0.2)
    key[:, :, :32], value[:, :, :32] = torch.nan, torch.nan
    answer = flash_attention(query, key, value, mask, scale=0.2, tile=SMALL)
    assert (answer.double() - truth).abs().max() < EXACT


def test_the_marks_of_a_mask_are_those_of_its_tiles(module):
    place = torch.arange(70)
    mask = ((place[:50, None] + 20 >= place) & (place >= 33))[None, None].repeat(2, 1, 1, 1)
    mask[1, 0, 7, 40] ^= True
    marks = torch.full((2, 1, 2, 3), -1, dtype=torch.int8)
    kernels = sys.modules["toprl_flash_attention.triton_kernels"]
    kernels.mark_tiles[(12,)](mask.view(torch.int8), marks, 50, 70, 70, *mask.stride()[:3], 1, BLOCK_Q=32, BLOCK_K=32)
    padded = torch.zeros(2, 64, 96, dtype=torch.bool)
    padded[:, :50, :70] = mask[:, 0]
    tiles = padded.view(2, 2, 32, 3, 32)
    rows = (torch.arange(64) < 50).view(1, 2, 32, 1, 1)
    some, every = tiles.any(4).any(2), (tiles | ~rows).all(4).all(2)
    assert torch.equal(marks[:, 0].long(), some.long() + (some & every).long())


def test_any_strides_will_do(flash_attention):
    query, key, value = operands(2, 4, 2, 40, 50)
    expected = flash_attention(query, key, value, scale=0.2, tile=SMALL)
    by_row = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    cache = torch.full((2, 2, 80, 64), torch.nan, dtype=torch.float16)
    cache[:, :, :50] = key
    columns = value.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(flash_attention(*by_row, scale=0.2, tile=SMALL), expected)
    assert torch.equal(flash_attention(query, cache[:, :, :50], columns, scale=0.2, tile=SMALL), expected)


def test_it_writes_where_it_is_told_and_works_where_it_is_told(flash_attention):
    mask = random_mask(1, 1, 40, 50)
    for sizes, allowed in (((1, 2, 2, 40, 50), mask), ((1, 2, 1, 1, 1200), None)):
        query, key, value = operands(*sizes)
        out = torch.full_like(query, torch.nan)
        space = torch.full((workspace_bound(1, *sizes[2:], 64, 1),), 255, dtype=torch.uint8)
        given = flash_attention(query, key, value, allowed, scale=0.2, out=out, workspace=space)
        assert given is out
        assert torch.equal(out, flash_attention(query, key, value, allowed, scale=0.2))
        assert not (space == 255).all()
        with pytest.raises(ValueError, match="workspace has"):
            flash_attention(query, key, value, allowed, scale=0.2, workspace=space[:0])


def test_no_queries_or_no_keys_are_no_mistake(flash_attention):
    query, key, value = operands(1, 2, 2, 5, 7)
    assert flash_attention(query[:, :, :0], key, value, scale=1.0).shape == (1, 2, 0, 64)
    assert not flash_attention(query, key[:, :, :0], value[:, :, :0], scale=1.0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 40, 64).half()}, "must be \\[batch"),
        ({"key": torch.zeros(1, 2, 50, 128).half()}, "do not fit"),
        ({"query": torch.zeros(1, 3, 40, 64).half()}, "do not divide"),
        ({"query": torch.zeros(1, 2, 40, 64)}, "float16"),
        ({"scale": 0.0}, "positive"),
        ({"scale": float("nan")}, "positive"),
        ({"mask": torch.ones(1, 1, 40, 49, dtype=torch.bool)}, "broadcasts"),
        ({"mask": torch.ones(1, 1, 40, 50)}, "expected bool"),
        ({"out": torch.zeros(1, 2, 40, 64)}, "dtype of query"),
    ],
)
def test_what_does_not_fit_is_refused(flash_attention, change, message):
    query, key, value = operands(1, 2, 2, 40, 50)
    with pytest.raises(ValueError, match=message):
        flash_attention(**{"query": query, "key": key, "value": value, "scale": 0.2, **change})


def test_other_head_dimensions_are_refused(flash_attention):
    with pytest.raises(ValueError, match="head dimension 80"):
        flash_attention(*operands(1, 2, 2, 40, 50, 80), scale=0.2)
