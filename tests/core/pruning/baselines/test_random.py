import re

import pytest
import torch

from toprl_export.errors import UserError
from toprl_export.pruning.baselines.controls import RandomScorer
from toprl_export.pruning.scorer import StageInputs
from toprl_export.pruning.select import select

MESSAGE = "random pruning cannot be exported, it draws anew at every call: build with an agent"


def inputs(batch: int = 4, tokens: int = 64) -> StageInputs:
    return StageInputs(0, torch.zeros(batch, tokens, 2), None, torch.arange(tokens).expand(batch, tokens))


def test_every_image_is_pruned_differently():
    kept = {tuple(row) for row in select(RandomScorer(7)(inputs(20)), 8).tolist()}
    assert len(kept) == 20


def test_a_seed_repeats_whatever_the_global_state():
    first = RandomScorer(7)
    draws = [first(inputs()) for _ in range(2)]
    torch.manual_seed(99)
    again = RandomScorer(7)
    assert all(torch.equal(draw, again(inputs())) for draw in draws)
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], RandomScorer(8)(inputs()))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    RandomScorer(7)(inputs())
    assert torch.equal(before, torch.get_rng_state())


def test_every_token_is_kept_equally_often():
    kept = select(RandomScorer(1)(inputs(4000, 16)), 4)
    share = torch.bincount(kept.flatten(), minlength=16) / 4000
    # Standard deviation of each share: sqrt(.25 · .75 / 4000) = 0.0068.
    assert (share - 0.25).abs().max() < 5 * 0.0068


def test_it_cannot_be_exported():
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scorer = RandomScorer()

        def forward(self, visual: torch.Tensor) -> torch.Tensor:
            return self.scorer(StageInputs(0, visual, None, visual))

    with pytest.raises(UserError, match=f"^{re.escape(MESSAGE)}$"):
        torch.export.export(Wrapper(), (torch.zeros(1, 4, 2),))
