"""Built graphs against PyTorch at sizes that were not traced, with ×8 weights, and mistakes that must show.

Bounds are absolute for logits (their magnitude is about 5) and relative to the largest value for visual embeddings
(about 200).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.support.onnx_bundle import grouped_bundle, staged_bundle
from tests.support.tiny_llava import tiny_pixels
from toprl_export.models import walk
from toprl_export.pruning.scorer import ScorerNeeds
from toprl_export.runtime.session import EncodedImages

TOLERANCE = 1e-4
MISTAKE = 1e-2
"""What a mistake must at least change, a hundred times what is tolerated."""


@pytest.fixture(scope="module")
def built():
    return staged_bundle()


@pytest.fixture(scope="module")
def session(built):
    return built.open()


def largest_difference(left, right) -> float:
    return float(np.abs(np.asarray(left) - np.asarray(right)).max())


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_vision(built, session, batch):
    pixels = tiny_pixels(batch, seed=batch).numpy()
    expected = built.reference.encode_image(pixels)
    assert largest_difference(session.encode({"pixel_values": pixels}).visual, expected) <= 2e-5 * expected.abs().max()
    assert (
        largest_difference(session.encode({"pixel_values": -pixels}).visual, expected) > MISTAKE * expected.abs().max()
    )


@pytest.mark.parametrize("agent", [0, 1])
@pytest.mark.parametrize("counts", [(25, 25, 25), (13, 9, 4), (7, 7, 2), (1, 1, 1)])
@pytest.mark.parametrize(("batch", "repeat"), [(1, 1), (2, 2), (3, 1)])
def test_pruned_prefill(built, session, batch, repeat, counts, agent):
    request = built.request(counts, agent, batch, repeat)
    result, expected = session.prefill(request), built.expected(request)
    assert largest_difference(result.logits, expected.logits) <= TOLERANCE
    for stage, (kept, wanted) in enumerate(zip(result.kept, expected.kept, strict=True)):
        assert kept.shape == (batch, counts[stage])
        assert np.array_equal(kept, wanted)
        assert (np.diff(kept, axis=1) > 0).all()
    for earlier, later in pairwise(result.kept):
        assert all(set(after) <= set(before) for before, after in zip(earlier, later, strict=True))
    caches = [cache.numpy() for cache in result.cache.caches]
    for layer, (key, value) in enumerate(zip(expected.keys, expected.values, strict=True)):
        assert largest_difference(caches[2 * layer], key) <= TOLERANCE
        assert largest_difference(caches[2 * layer + 1], value) <= TOLERANCE
    assert all(np.array_equal(mask, want) for mask, want in zip(result.cache.masks, expected.masks, strict=True))


@pytest.mark.parametrize(("batch", "repeat"), [(1, 1), (2, 2), (3, 1)])
def test_unpruned_prefill_equals_hugging_face(built, batch, repeat):
    """The model's own forward, from pixels, through none of this project's walk."""
    request, pixels = built.request((25, 25, 25), 0, batch, repeat), tiny_pixels(batch)
    with torch.inference_mode():
        ids, mask, positions = (
            torch.from_numpy(getattr(request.tokens, name)) for name in ("input_ids", "attention_mask", "position_ids")
        )
        network = built.adapter.model
        output = network(input_ids=ids, pixel_values=pixels, attention_mask=mask, position_ids=positions)
        expected = output.logits[:, -1]
    unpruned = built.open(unpruned=True).prefill(request)
    assert unpruned.kept == ()
    assert largest_difference(unpruned.logits, expected) <= TOLERANCE
    full, pruned = (built.open().prefill(replace(request, keep_counts=(k, k, k))) for k in (25, 20))
    assert largest_difference(full.logits, expected) <= TOLERANCE
    assert largest_difference(pruned.logits, expected) > MISTAKE


def test_agents_differ_and_the_index_picks_them(built, session):
    """Control: with the wrong agent the kept tokens and the logits do not match."""
    request = built.request((13, 9, 4), 0)
    other = session.prefill(replace(request, agent_index=1))
    assert not np.array_equal(other.kept[0], built.expected(request).kept[0])
    assert largest_difference(other.logits, built.expected(request).logits) > MISTAKE


def test_a_row_does_not_depend_on_its_neighbours_or_padding(built, session):
    request = built.request((13, 9, 4), 0, batch=3)
    batched = session.prefill(request)
    alone = session.prefill(built.request((13, 9, 4), 0, batch=1))
    assert request.tokens.attention_mask.min() == 0
    # tiny_pixels draws the first image alike for every batch size.
    assert largest_difference(batched.logits[:1], alone.logits) <= TOLERANCE


def test_control_positions_recounted_after_pruning(built, session):
    """Text after the image moved up to follow the kept tokens, as if positions were counted after pruning."""
    request = built.request((13, 9, 4))
    positions = request.tokens.position_ids.copy()
    after = np.arange(positions.shape[1]) > request.tokens.visual_index[:, -1:]
    positions[after] -= 25 - 13
    moved = replace(request, tokens=replace(request.tokens, position_ids=positions))
    assert largest_difference(session.prefill(moved).logits, built.expected(request).logits) > MISTAKE


def test_control_other_tokens_kept(built, session):
    request = built.request((13, 9, 4))
    result = session.prefill(request)
    # One token of the last stage exchanged for another that the stage before kept.
    forced = [torch.from_numpy(kept) for kept in result.kept]
    left_out = next(token for token in result.kept[1][0] if token not in result.kept[2][0])
    forced[2] = forced[2].clone()
    forced[2][0, 0] = int(left_out)
    forced[2] = forced[2].sort(dim=1).values
    visual = torch.from_numpy(request.images.visual)
    pruning = built.pruning(request.keep_counts)
    same = built.reference.prefill(request.tokens, visual, pruning, [torch.from_numpy(kept) for kept in result.kept])
    other = built.reference.prefill(request.tokens, visual, pruning, forced)
    assert largest_difference(result.logits, same.logits) <= TOLERANCE
    assert largest_difference(result.logits[0], other.logits[0]) > MISTAKE
    assert largest_difference(result.logits[1], other.logits[1]) <= TOLERANCE


def test_control_not_causal(built, session, monkeypatch):
    request = built.request((13, 9, 4))
    right = session.prefill(request).logits
    monkeypatch.setattr(walk._Sequence, "mask", lambda self: self.valid[:, None, None, :])
    assert largest_difference(right, built.expected(request).logits) > MISTAKE


@pytest.mark.parametrize(("batch", "repeat"), [(1, 2), (3, 1)])
def test_grouped_heads_a_first_stage_after_layer_0_and_a_fixed_count(batch, repeat):
    built = grouped_bundle()
    counts = built.bundle.keep_counts(15)
    request = built.request(counts, 1, batch, repeat)
    result, expected = built.open().prefill(request), built.expected(request)
    assert [kept.shape for kept in result.kept] == [(batch, 5)]
    assert largest_difference(result.logits, expected.logits) <= TOLERANCE
    assert np.array_equal(result.kept[0], expected.kept[0])
    lengths = [cache.shape()[2] for cache in result.cache.caches]
    text = request.tokens.text_index.shape[1]
    assert lengths == [25 + text, 25 + text, 5 + text, 5 + text]
    assert result.cache.caches[0].shape()[1] == 1  # one key-value head, not repeated


def test_agents_that_see_the_question_choose_by_it():
    """Also the control of the parity above: what these agents see beyond the image reaches their choice."""
    built = grouped_bundle()
    assert built.agents[0].actor.needs == ScorerNeeds(attention="last", attention_layer="next", text=True)
    request = built.request((5,), batch=3)
    one_image = EncodedImages(request.images.visual[:1]).repeated(3)
    kept = built.open().prefill(replace(request, images=one_image)).kept[0].tolist()
    assert len({tuple(row) for row in kept}) > 1
