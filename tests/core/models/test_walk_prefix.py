"""Layers before the first stage, run once for several masks, against walks that run every layer for each mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.tiny_llava import tiny_adapter, tiny_pixels, tiny_tokens
from toprl_export.models.llava import LlavaAdapter
from toprl_export.models.reference import to_tensors
from toprl_export.models.walk import NO_NEEDS, Decision, Prefill, TokenTensors, walk_from, walk_prefill, walk_prefix
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select

MASKS, STAGES, COUNTS = 3, (2, 3), (9, 4)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def adapter() -> LlavaAdapter:
    return tiny_adapter()


@pytest.fixture(scope="module")
def batch(adapter: LlavaAdapter) -> tuple[TokenTensors, Tensor]:
    with torch.no_grad():
        return to_tensors(tiny_tokens(adapter, 2), adapter.device), adapter.encode_image(tiny_pixels(2))


class Chooser:
    """Different tokens for every row; ``seen`` holds what it was given."""

    def __init__(self) -> None:
        self.seen: list[StageInputs] = []

    def __call__(self, inputs: StageInputs) -> Decision:
        self.seen.append(inputs)
        order = torch.Generator().manual_seed(inputs.stage)
        return Decision(select(torch.rand(inputs.origin.shape, generator=order), COUNTS[inputs.stage]))


def repeated(tokens: TokenTensors) -> TokenTensors:
    fields = {name: x.repeat_interleave(MASKS, dim=0) for name, x in vars(tokens).items() if x is not None}
    return replace(tokens, **fields)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def both(adapter: LlavaAdapter, batch: tuple[TokenTensors, Tensor], needs: ScorerNeeds, layers: int = 2):
    tokens, visual = batch
    shared, alone = Chooser(), Chooser()
    prefix = walk_prefix(adapter.decoder, tokens, visual, layers, needs).repeated(MASKS)
    ours = walk_from(adapter.decoder, replace(prefix, layer=2), STAGES, shared, needs)
    whole = visual.repeat_interleave(MASKS, dim=0)
    theirs = walk_prefill(adapter.decoder, repeated(tokens), whole, STAGES, alone, needs)
    return ours, theirs, shared.seen, alone.seen


NEEDS = [
    NO_NEEDS,
    ScorerNeeds(attention="last", text=True),
    ScorerNeeds(attention="text"),
    ScorerNeeds(attention="last", attention_layer="next"),
]


@pytest.mark.parametrize("needs", NEEDS, ids=["nothing", "last", "text", "next"])
def test_a_shared_prefix_changes_nothing(
    adapter: LlavaAdapter, batch: tuple[TokenTensors, Tensor], needs: ScorerNeeds
) -> None:
    ours, theirs, seen, expected = both(adapter, batch, needs)
    assert relative_error(ours.logits, theirs.logits) < TOLERANCE
    assert relative_error(ours.hidden, theirs.hidden) < TOLERANCE
    assert all(torch.equal(a, b) for a, b in zip(ours.kept, theirs.kept, strict=True))
    for ours_at, theirs_at in zip(seen, expected, strict=True):
        assert relative_error(ours_at.visual, theirs_at.visual) < TOLERANCE
        for name in ("attention", "text", "question_mask"):
            a, b = getattr(ours_at, name), getattr(theirs_at, name)
            assert (a is None) == (b is None)
            assert a is None or relative_error(a.float(), b.float()) < TOLERANCE


def test_the_comparison_would_notice_a_missing_layer(adapter: LlavaAdapter, batch: tuple[TokenTensors, Tensor]) -> None:
    ours, theirs, *_ = both(adapter, batch, NO_NEEDS, layers=1)
    assert relative_error(ours.logits, theirs.logits) > 100 * TOLERANCE


def test_only_the_layers_that_were_run_are_told_of(adapter: LlavaAdapter, batch: tuple[TokenTensors, Tensor]) -> None:
    ours, theirs, *_ = both(adapter, batch, NO_NEEDS)
    assert len(ours.keys) == len(ours.values) == 2 and len(theirs.keys) == 4
    assert relative_error(ours.keys[0], theirs.keys[2]) < TOLERANCE
    assert [mask.shape for mask in ours.masks] == [mask.shape for mask in theirs.masks[1:]]


def test_an_empty_prefix_is_the_whole_walk(adapter: LlavaAdapter, batch: tuple[TokenTensors, Tensor]) -> None:
    def run(start: bool) -> Prefill:
        if start:
            return walk_from(adapter.decoder, walk_prefix(adapter.decoder, *batch, 0), (0, 2), Chooser())
        return walk_prefill(adapter.decoder, *batch, (0, 2), Chooser())

    with torch.no_grad():
        assert torch.equal(run(True).logits, run(False).logits)


def test_a_stage_behind_the_start_is_refused(adapter: LlavaAdapter, batch: tuple[TokenTensors, Tensor]) -> None:
    with torch.no_grad(), pytest.raises(ValueError, match="behind the stage before layer 0"):
        walk_from(adapter.decoder, walk_prefix(adapter.decoder, *batch, 2), (0, 2), Chooser())
