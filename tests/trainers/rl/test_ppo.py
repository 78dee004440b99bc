"""The clipped surrogate against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from toprl_trainers.rl.ppo import clipped_surrogate, token_mean, value_loss

OLD = torch.tensor([[-1.0, -2.0], [-0.5, -0.5]])
RATIO = torch.tensor([[1.5, 0.9], [0.5, 3.0]])
ALIVE = torch.tensor([[True, True], [True, False]])
ADVANTAGE = torch.tensor([2.0, -1.0])
WEIGHTS = torch.tensor([1.0, 3.0])


def test_two_rows_by_hand():
    surrogate = clipped_surrogate(OLD + RATIO.log(), OLD, ALIVE, ADVANTAGE, WEIGHTS, clip=0.2)
    # row 1: min(3, 2.4) and min(1.8, 1.8); row 2: min(-0.5, -0.8), its dead token does not count
    assert float(surrogate.loss) == pytest.approx(-((2.4 + 1.8) / 2 + 3 * -0.8) / 4)
    assert float(surrogate.clipped) == pytest.approx((0.5 + 3 * 1.0) / 4)
    divergence = [r - 1 - math.log(r) for r in (1.5, 0.9, 0.5)]
    assert float(surrogate.kl) == pytest.approx(((divergence[0] + divergence[1]) / 2 + 3 * divergence[2]) / 4)


def test_gradient_vanishes_where_the_clip_binds():
    log_probability = (OLD + RATIO.log()).requires_grad_()
    torch.autograd.backward(clipped_surrogate(log_probability, OLD, ALIVE, ADVANTAGE, WEIGHTS, clip=0.2).loss)
    gradient = log_probability.grad
    assert gradient is not None
    assert gradient[0, 0] == 0  # already above 1 + ε and the advantage would push it higher
    assert gradient[1, 0] == 0  # already below 1 - ε and the advantage would push it lower
    assert gradient[1, 1] == 0  # dead
    assert float(gradient[0, 1]) == pytest.approx(-0.9 * 2 / 2 / 4)  # -ratio · advantage / alive tokens · weight share


def test_same_policy_gives_the_plain_advantage():
    surrogate = clipped_surrogate(OLD, OLD, ALIVE, ADVANTAGE, WEIGHTS, clip=0.2)
    assert float(surrogate.loss) == pytest.approx(-(2 - 3) / 4)
    assert float(surrogate.kl) == 0 and float(surrogate.clipped) == 0


def test_a_dead_tokens_ratio_may_overflow():
    log_probability = (OLD + RATIO.log()).requires_grad_()
    old = OLD - torch.tensor([[0.0, 0.0], [0.0, 200.0]])
    surrogate = clipped_surrogate(log_probability, old, ALIVE, ADVANTAGE, WEIGHTS, clip=0.2)
    torch.autograd.backward(surrogate.loss)
    expected = clipped_surrogate(OLD + RATIO.log(), OLD, ALIVE, ADVANTAGE, WEIGHTS, clip=0.2)
    assert float(surrogate.loss.detach()) == float(expected.loss) and float(surrogate.kl) == float(expected.kl)
    assert log_probability.grad is not None and log_probability.grad.isfinite().all()


def test_rows_without_tokens_count_nothing():
    mean = token_mean(torch.tensor([[5.0], [7.0]]), torch.tensor([[True], [False]]), torch.ones(2))
    assert float(mean) == pytest.approx(2.5)


def test_value_loss_by_hand():
    values, returns = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    assert float(value_loss(values, returns, torch.tensor([2.0, 0.0]))) == pytest.approx(0.5 * (1 + 4) / 2)
