import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from toprl_export.pruning.baselines.random import RandomScorer
from toprl_export.pruning.baselines.uniform import UniformScorer
from toprl_export.pruning.scorer import StageInputs
from toprl_export.pruning.select import gather_tokens, select


def inputs(tokens: int, alive: Tensor | None = None, batch: int = 1) -> StageInputs:
    return StageInputs(0, torch.zeros(batch, tokens, 2), alive, torch.arange(tokens).expand(batch, tokens))


def spread(kept: Tensor, tokens: int) -> tuple[int, int]:
    """Smallest and largest gap between kept tokens, the end of the row included."""
    gaps = np.diff([*kept.tolist(), tokens])
    return int(gaps[:-1].min(initial=tokens)), int(gaps.max())


@given(st.integers(1, 3000), st.data())
def test_any_count_is_spread_evenly(tokens, data):
    count = data.draw(st.integers(1, tokens))
    kept = select(UniformScorer()(inputs(tokens)), count)[0]
    smallest, largest = spread(kept, tokens)
    assert kept[0] == 0
    assert largest <= 2 * smallest
    assert largest <= 2 * tokens / count + 1


def test_a_power_of_two_is_an_exact_stride():
    assert select(UniformScorer()(inputs(576)), 72)[0].tolist() == list(range(0, 576, 8))


def test_random_pruning_is_not_so_even():
    smallest, largest = spread(select(RandomScorer(0)(inputs(576)), 72)[0], 576)
    assert largest > 4 * smallest


def test_every_score_is_another():
    assert len(UniformScorer()(inputs(4096))[0].unique()) == 4096


def test_later_stages_spread_over_the_tokens_still_there():
    alive = torch.zeros(2, 100, dtype=torch.bool)
    alive[0, 40:72] = True
    alive[1, ::5] = True
    scores = UniformScorer()(inputs(100, alive, batch=2)).masked_fill(~alive, -torch.inf)
    assert select(scores, 4).tolist() == [[40, 48, 56, 64], [0, 20, 40, 80]]


def test_masked_and_gathered_tokens_are_scored_alike():
    kept = select(RandomScorer(3)(inputs(50, batch=3)), 17)
    alive = torch.zeros(3, 50, dtype=torch.bool).scatter_(1, kept, True)
    masked = gather_tokens(UniformScorer()(inputs(50, alive, batch=3)), kept)
    assert torch.equal(masked, UniformScorer()(inputs(17, batch=3)))


class Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scorer = UniformScorer()

    def forward(self, visual: Tensor) -> Tensor:
        return self.scorer(StageInputs(0, visual, None, visual))


def test_it_exports(as_onnx):
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    run = as_onnx(Score(), (torch.zeros(2, 10, 4),), (dims,))
    for batch, tokens in [(1, 576), (3, 37)]:
        expected = UniformScorer()(inputs(tokens, batch=batch))
        np.testing.assert_array_equal(run(torch.zeros(batch, tokens, 4))[0], expected)
