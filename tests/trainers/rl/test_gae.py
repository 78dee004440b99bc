"""Advantages against numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from toprl_trainers.rl.gae import advantages_and_returns, centred_per_group, explained_variance, normalised_per_stage


def test_three_stages_by_hand():
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 0.5]])
    advantages, returns = advantages_and_returns(rewards, values, discount=0.9, gae_lambda=0.5)
    # δ3 = 2 - 0.5; δ2 = 0 + 0.9·0.5 - 1; δ1 = 1 + 0.9·1 - 0.5; A_t = δ_t + 0.45·A_(t+1)
    torch.testing.assert_close(advantages, torch.tensor([[1.45625, 0.125, 1.5]]))
    torch.testing.assert_close(returns, torch.tensor([[1.95625, 1.125, 2.0]]))


def test_lambda_one_gives_discounted_returns():
    rewards, values = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[7.0, -1.0, 4.0]])
    _, returns = advantages_and_returns(rewards, values, discount=0.5, gae_lambda=1.0)
    torch.testing.assert_close(returns, torch.tensor([[1 + 0.5 * 2 + 0.25 * 3, 2 + 0.5 * 3, 3.0]]))


def test_lambda_zero_gives_one_step_td_errors():
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 4.0]])
    advantages, _ = advantages_and_returns(rewards, values, discount=0.5, gae_lambda=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[1 + 2.0 - 0.5, 2 - 4.0]]))


def test_group_mean_ignores_rows_of_weight_zero():
    advantages = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    centred = centred_per_group(advantages, torch.tensor([1.0, 1.0, 0.0, 1.0]), group=2)
    torch.testing.assert_close(centred, torch.tensor([[-1.0], [1.0], [-10.0], [0.0]]))


def test_normalised_for_each_stage_by_itself():
    advantages = torch.tensor([[1.0, 100.0], [3.0, 300.0], [77.0, 77.0]])
    normal = normalised_per_stage(advantages, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(normal[:2], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), atol=2e-4, rtol=0)


def test_equal_advantages_stay_silent():
    normal = normalised_per_stage(torch.full((4, 2), 0.3) + torch.randn(4, 2) * 1e-8, torch.ones(4))
    assert float(normal.abs().max()) < 1e-2


def test_weightless_batch_is_finite():
    advantages, weights = torch.randn(4, 2), torch.zeros(4)
    assert bool(torch.isfinite(centred_per_group(advantages, weights, 2)).all())
    assert bool(torch.isfinite(normalised_per_stage(advantages, weights)).all())


def test_explained_variance():
    returns, weights = torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.ones(2)
    assert explained_variance(returns, returns, weights) == pytest.approx(1)
    assert explained_variance(torch.full((2, 2), 1.5), returns, weights) == pytest.approx(0)
    assert explained_variance(returns * -1, returns, weights) == pytest.approx(-3)  # Var(2x) = 4 Var(x)
    assert explained_variance(returns, torch.ones(2, 2), weights) == 0
