"""The compiled kernels on a GPU against the definition in float64: from torch, and through the C interface.

The library is the one that FLASH_ATTENTION_LIBRARY names (build.sh builds it).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from toprl_flash_attention.kernel import flash_attention
from toprl_flash_attention.library import CoreLibrary, contiguous_params

pytestmark = pytest.mark.gpu
LIBRARY = os.environ.get("FLASH_ATTENTION_LIBRARY")
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
CASES = [
    # (batch, heads, kv_heads, q, k, head_dim), shape of the mask
    ((1, 4, 4, 1024, 1024, 128), None),
    ((2, 8, 2, 777, 1333, 128), None),
    ((2, 8, 2, 333, 200, 64), (2, 1, 333, 200)),
    ((8, 32, 32, 600, 600, 128), (8, 1, 600, 600)),
    ((1, 32, 8, 1, 3000, 128), (1, 1, 1, 3000)),
    ((4, 32, 32, 1, 400, 64), None),
    ((2, 32, 8, 4, 1500, 128), None),
]


@pytest.fixture(scope="module")
def library():
    if LIBRARY is None:
        pytest.skip("FLASH_ATTENTION_LIBRARY names no built library")
    return CoreLibrary(Path(LIBRARY))


def from_torch(query, key, value, mask, causal):
    return flash_attention(query, key, value, mask, scale=0.1, causal=causal)


def through_the_library(library, query, key, value, mask, causal):
    shape = None if mask is None else mask.shape
    params = contiguous_params(NAMES[query.dtype], query.shape, key.shape, shape, scale=0.1, causal=causal)
    space = torch.empty(max(library.workspace_size(params), 1), dtype=torch.uint8, device="cuda")
    out = torch.full_like(query, torch.nan)
    params.query, params.key, params.value = (x.data_ptr() for x in (query, key, value))
    params.mask = None if mask is None else mask.data_ptr()
    params.out, params.workspace, params.workspace_size = out.data_ptr(), space.data_ptr(), space.nbytes
    library.forward(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return out


@pytest.mark.parametrize("way", ["torch", "library"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("sizes", "mask"), CASES)
def test_its_error_is_at_most_twice_that_of_torch(request, way, dtype, causal, sizes, mask):
    batch, heads, kv_heads, q_len, k_len, head_dim = sizes
    generator = torch.Generator("cuda").manual_seed(0)
    draw = {"dtype": dtype, "device": "cuda", "generator": generator}
    query = torch.randn(batch, heads, q_len, head_dim, **draw)
    key, value = (torch.randn(batch, kv_heads, k_len, head_dim, **draw) for _ in range(2))
    allowed = torch.ones(1, 1, q_len, k_len, dtype=torch.bool, device="cuda")
    if mask is not None:
        allowed = torch.rand(mask, device="cuda", generator=generator) < 0.5
    given = None if mask is None else allowed
    if causal:
        allowed = allowed & torch.ones(q_len, k_len, dtype=torch.bool, device="cuda").tril(k_len - q_len)
    attends = allowed.any(-1, keepdim=True)

    def torch_attention(*inputs):
        answer = scaled_dot_product_attention(*inputs, attn_mask=allowed, scale=0.1, enable_gqa=True)
        return answer.double().nan_to_num() * attends

    truth = torch_attention(query.double(), key.double(), value.double())
    if way == "torch":
        answer = from_torch(query, key, value, given, causal)
    else:
        answer = through_the_library(request.getfixturevalue("library"), query, key, value, given, causal)
    assert (answer.double() - truth).norm() <= 2 * (torch_attention(query, key, value) - truth).norm()
