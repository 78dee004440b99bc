import math

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from toprl_export.pruning.mask import neutralising_mask


def paper_attention(q, k, v, alive, allowed):
    """Eq. 6-7 written out: softmax over exp(P_ij)·G_ij, where a forbidden pair has G_ij = 0."""
    tokens, width = q.shape
    out = np.zeros_like(v)
    for i in range(tokens):
        weights = np.zeros(tokens)
        for j in range(tokens):
            g = 1.0 if i == j else float(alive[j])
            weights[j] = math.exp(q[i] @ k[j] / math.sqrt(width)) * g * float(allowed[i, j])
        out[i] = sum(weights[j] * v[j] for j in range(tokens)) / weights.sum()
    return out


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 9, 6, generator=generator, dtype=torch.float64) * 2 for _ in range(3))
    alive = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 0, 0, 0, 1]], dtype=torch.bool)
    allowed = torch.ones(9, 9, dtype=torch.bool).tril().repeat(2, 1, 1)
    return q, k, v, alive, allowed


def test_the_mask_puts_g_inside_the_softmax(case):
    q, k, v, alive, allowed = case
    masked = scaled_dot_product_attention(q, k, v, attn_mask=neutralising_mask(allowed, alive))
    for row in range(2):
        expected = paper_attention(*(x[row].numpy() for x in (q, k, v, alive, allowed)))
        np.testing.assert_allclose(masked[row].numpy(), expected, atol=1e-12)


def test_masking_equals_dropping(case):
    q, k, v, alive, allowed = case
    masked = scaled_dot_product_attention(q, k, v, attn_mask=neutralising_mask(allowed, alive))
    for row in range(2):
        left = alive[row].nonzero().squeeze(1)
        dropped = scaled_dot_product_attention(*(x[row, left][None] for x in (q, k, v)), is_causal=True)
        torch.testing.assert_close(masked[row, left], dropped[0], rtol=0, atol=1e-12)


def test_without_the_mask_the_outcome_is_another(case):
    q, k, v, alive, allowed = case
    masked = scaled_dot_product_attention(q, k, v, attn_mask=neutralising_mask(allowed, alive))
    ignored = scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    assert (masked - ignored)[alive].abs().max() > 0.1


def test_g_times_the_softmax_is_not_g_inside_it(case):
    q, k, v, alive, allowed = case
    mask = neutralising_mask(allowed, alive)
    scores = (q @ k.mT / math.sqrt(6)).masked_fill(~allowed, -torch.inf).softmax(-1)
    outside = (scores * mask) @ v
    assert (outside - scaled_dot_product_attention(q, k, v, attn_mask=mask))[alive].abs().max() > 0.1


def test_g_never_allows_what_was_forbidden(case):
    _, _, _, alive, allowed = case
    padded = allowed.clone()
    padded[:, :, 0] = False
    mask = neutralising_mask(padded, alive)
    assert not (mask & ~padded).any()
    assert not mask[:, 0].any()
