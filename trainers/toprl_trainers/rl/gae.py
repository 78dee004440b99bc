"""Generalised advantage estimation (Schulman et al., 2016) over episodes of a fixed number of stages."""

from __future__ import annotations

import torch
from torch import Tensor


def advantages_and_returns(
    rewards: Tensor, values: Tensor, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """GAE(γ, λ): sums of TD errors; the episode ends after its last stage, whose successor state has value 0.

    Args:
        rewards: ``float32 [b, T]``.
        values: the critic's estimate of each stage's state, ``float32 [b, T]``.
        discount: γ.
        gae_lambda: λ; 0 gives one-step TD errors, 1 gives Monte-Carlo returns.

    Returns:
        advantages, and the returns that the critic is to predict (advantage + value), both ``float32 [b, T]``.
    """
    advantages = torch.zeros_like(rewards)
    following_value = torch.zeros_like(rewards[:, 0])
    following_advantage = torch.zeros_like(rewards[:, 0])
    for stage in reversed(range(rewards.shape[1])):
        td_error = rewards[:, stage] + discount * following_value - values[:, stage]
        following_advantage = td_error + discount * gae_lambda * following_advantage
        advantages[:, stage] = following_advantage
        following_value = values[:, stage]
    return advantages, advantages + values


def centred_per_group(advantages: Tensor, weights: Tensor, group: int) -> Tensor:
    """Subtract each group's weighted mean: ``group`` consecutive batch rows are rollouts of the same image.

    Args:
        advantages: ``float32 [b, T]``, b a multiple of ``group``.
        weights: ``float32 [b]``; rows of weight 0 do not count.
        group: rollouts per image.
    """
    grouped = advantages.reshape(-1, group, advantages.shape[1])  # [b/group, group, T]
    weight = weights.reshape(-1, group, 1)  # [b/group, group, 1]
    mean = (grouped * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-8)
    centred: Tensor = (grouped - mean).flatten(0, 1)
    return centred


def normalised_per_stage(advantages: Tensor, weights: Tensor) -> Tensor:
    """Zero mean and unit variance over the batch, for each stage by itself. Shapes as `centred_per_group`.

    By itself, because early stages sum more rewards than late ones: in one normalisation their scale would set the
    step, and the late ones would hardly learn.
    """
    weight = weights[:, None] / weights.sum().clamp(min=1e-8)
    centred = advantages - (advantages * weight).sum(0)
    variance = (centred.square() * weight).sum(0)
    # The floor keeps rounding noise of equal advantages from being blown up into a signal.
    return centred / (variance.sqrt() + 1e-4)


def explained_variance(values: Tensor, returns: Tensor, weights: Tensor) -> float:
    """``1 − Var(returns − values) / Var(returns)`` over all stages: 1 is a perfect critic, 0 a constant one.

    Returns 0 where the returns do not vary. Shapes ``[b, T]``, weights ``[b]``.
    """
    weight = weights[:, None].expand_as(returns)

    def variance(x: Tensor) -> Tensor:
        total = weight.sum().clamp(min=1e-8)
        mean = (x * weight).sum() / total
        return ((x - mean).square() * weight).sum() / total

    spread = variance(returns)
    return float(1 - variance(returns - values) / spread) if spread > 1e-12 else 0.0
