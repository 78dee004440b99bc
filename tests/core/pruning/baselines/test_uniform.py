import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from toprl_export.pruning.baselines.controls import RandomScorer, UniformScorer
from toprl_export.pruning.scorer import StageInputs
from toprl_export.pruning.select import gather_tokens, select


def inputs(tokens: int, batch: int = 1) -> StageInputs:
    return StageInputs(0, torch.zeros(batch, tokens, 2), None, torch.arange(tokens).expand(batch, tokens))


def gaps(kept: Tensor) -> Tensor:
    """From each kept token to the next."""
    return kept[1:] - kept[:-1]


@given(st.integers(3, 3000), st.data())
def test_any_count_is_spread_evenly(tokens, data):
    count = data.draw(st.integers(2, tokens))
    kept = select(UniformScorer()(inputs(tokens)), count)[0]
    assert kept[0] == 0
    sizes = gaps(kept).unique()
    assert len(sizes) <= 3  # the three-gap theorem
    assert sizes.max() <= 3 * tokens / count + 1


def test_gaps_are_neighbouring_fibonacci_numbers():
    assert set(gaps(select(UniformScorer()(inputs(576)), 64)[0]).tolist()) == {5, 8, 13}


def test_random_pruning_is_not_so_even():
    assert gaps(select(RandomScorer(0)(inputs(576)), 64)[0]).max() > 3 * 576 / 64 + 1


@pytest.mark.parametrize("count", [16, 32, 64, 72, 121, 192])
def test_it_is_even_in_both_directions(count):
    """No place of 24 × 24 is far from a kept one: at most twice as far as from the middle of its share of the image."""
    kept = select(UniformScorer()(inputs(576)), count)[0]
    stripes = torch.arange(0, 576, 8)  # the control: every eighth token fills three columns and leaves the others empty
    assert farthest(kept) <= 2 * math.sqrt(576 / count / 2)
    assert farthest(stripes) > 2 * math.sqrt(576 / 72 / 2)


def farthest(kept: Tensor) -> float:
    """Largest distance of a place on a grid 24 wide to its nearest kept one."""
    grid = torch.stack([torch.arange(576) // 24, torch.arange(576) % 24], dim=1).double()
    return float(torch.cdist(grid, grid[kept]).amin(1).max())


def test_every_score_is_another():
    assert len(UniformScorer()(inputs(4096))[0].unique()) == 4096


def test_later_stages_thin_out_what_the_earlier_left():
    first = select(UniformScorer()(inputs(576)), 121)
    again = StageInputs(1, torch.zeros(1, 121, 2), None, first)
    kept = gather_tokens(first, select(UniformScorer()(again), 30))
    assert kept.tolist() == select(UniformScorer()(inputs(576)), 30).tolist()


class Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scorer = UniformScorer()

    def forward(self, origin: Tensor) -> Tensor:
        return self.scorer(StageInputs(0, origin, None, origin))


def test_it_exports(as_onnx):
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    run = as_onnx(Score(), (torch.arange(20).reshape(2, 10),), (dims,))
    for batch, tokens in [(1, 576), (3, 37)]:
        stage = inputs(tokens, batch=batch)
        np.testing.assert_array_equal(run(stage.origin)[0], UniformScorer()(stage))
