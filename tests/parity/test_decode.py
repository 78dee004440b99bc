"""Decoding over caches of different lengths against running the grown prompt again without any cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from toprl_export.runtime.layout import TokenBatch
from toprl_export.runtime.session import EncodedImages

STEPS = 12
TOLERANCE = 1e-4
MISTAKE = 1e-2


def grown(tokens: TokenBatch, new: np.ndarray) -> TokenBatch:
    """The prompts with one more text token ``[b]`` each."""
    rows, length = tokens.input_ids.shape
    return TokenBatch(
        input_ids=np.column_stack([tokens.input_ids, new]),
        attention_mask=np.column_stack([tokens.attention_mask, np.ones(rows, dtype=np.int64)]),
        position_ids=np.column_stack([tokens.position_ids, tokens.next_position]),
        visual_index=tokens.visual_index,
        text_index=np.column_stack([tokens.text_index, np.full(rows, length)]),
    )


def errors(built, request, position_shift: int = 0, forget_pads: bool = False) -> list[float]:
    """Per step, the largest difference of a logit from the recomputation with the same tokens kept."""
    session = built.open()
    result = session.prefill(request)
    kept = [torch.from_numpy(one) for one in result.kept]
    visual, pruning = torch.from_numpy(request.images.visual), built.pruning(request.keep_counts, request.agent_index)
    cache, tokens, logits = result.cache, request.tokens, result.logits
    cache.position = cache.position + position_shift
    if forget_pads:
        cache.masks = [np.ones_like(mask) for mask in cache.masks]
    found = []
    for _ in range(STEPS):
        new = logits.argmax(axis=1)
        tokens = grown(tokens, new)
        logits = session.decode(cache, new)
        expected = built.reference.prefill(tokens, visual, pruning, forced_kept=kept).logits.numpy()
        found.append(float(np.abs(logits - expected).max()))
    return found


@pytest.mark.parametrize("counts", [(25, 25, 25), (13, 9, 4), (1, 1, 1)])
@pytest.mark.parametrize("batch", [1, 3])
def test_twelve_steps(batch, counts):
    built = staged_bundle()
    assert max(errors(built, built.request(counts, 1, batch))) <= TOLERANCE


def test_grouped_heads():
    built = grouped_bundle()
    assert max(errors(built, built.request(built.bundle.keep_counts(15), 0, batch=2))) <= TOLERANCE


def test_controls_positions_and_padding():
    built = staged_bundle()
    request = built.request((13, 9, 4), batch=3)
    assert min(errors(built, request, position_shift=-12)) > MISTAKE
    assert min(errors(built, request, forget_pads=True)) > MISTAKE


def test_the_unpruned_session_decodes_like_hugging_face():
    built = staged_bundle()
    session, request = built.open(unpruned=True), built.request((25, 25, 25), batch=3)
    result = session.prefill(request)
    tokens, logits = request.tokens, result.logits
    for _ in range(STEPS):
        new = logits.argmax(axis=1)
        tokens = grown(tokens, new)
        logits = session.decode(result.cache, new)
        expected = built.reference.prefill(tokens, torch.from_numpy(request.images.visual)).logits.numpy()
        assert np.abs(logits - expected).max() <= TOLERANCE


def test_rows_of_one_batch_do_not_mix():
    built = staged_bundle()
    session, request = built.open(), built.request((13, 9, 4), batch=2)
    turned = EncodedImages(request.images.visual * np.array([[[1]], [[-1]]], dtype=np.float32))
    first = session.prefill(request).cache
    second = session.prefill(replace(request, images=turned)).cache
    new = np.array([7, 8])
    one, two = session.decode(first, new), session.decode(second, new)
    assert np.abs(one[0] - two[0]).max() <= TOLERANCE
    assert np.abs(one[1] - two[1]).max() > MISTAKE
