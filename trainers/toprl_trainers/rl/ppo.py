"""The clipped surrogate of PPO (Schulman et al., 2017) for many binary decisions that share one advantage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """``loss`` (scalar, to minimise), mean ``kl`` from old to new policy, and the share ``clipped`` of ratios."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor


def token_mean(x: Tensor, alive: Tensor, weights: Tensor) -> Tensor:
    """Mean over each row's alive tokens, then weighted mean over rows. ``[b, n]``, ``bool [b, n]``, ``[b]``.

    In this order, so that a rollout that kept many tokens does not outweigh one that kept few.
    """
    per_row = (x * alive).sum(1) / alive.sum(1).clamp(min=1)  # [b]
    return (per_row * weights).sum() / weights.sum().clamp(min=1e-8)


def clipped_surrogate(
    log_probability: Tensor, old_log_probability: Tensor, alive: Tensor, advantage: Tensor, weights: Tensor, clip: float
) -> Surrogate:
    """PPO's pessimistic objective with a ratio per token, averaged over alive tokens.

    Clipping per token keeps the trust region independent of how many tokens an image has; the joint ratio of
    hundreds of decisions would leave ``1 ± clip`` at once.

    Args:
        log_probability: of the decisions taken, under the policy being learned, ``float32 [b, n]``.
        old_log_probability: the same under the policy that drew them, ``float32 [b, n]``.
        alive: which tokens were there to decide on, ``bool [b, n]``.
        advantage: shared by all tokens of a row, ``float32 [b]``.
        weights: of the rows, ``float32 [b]``.
        clip: ε.
    """
    # Before the exponential: a dead token's ratio may overflow, and infinity times 0 is NaN.
    log_ratio = torch.where(alive, log_probability - old_log_probability, 0.0)
    ratio = log_ratio.exp()
    shared = advantage[:, None]  # [b, 1]
    pessimistic = (ratio * shared).minimum(ratio.clamp(1 - clip, 1 + clip) * shared)
    outside = ((ratio - 1).abs() > clip).float()
    return Surrogate(
        loss=-token_mean(pessimistic, alive, weights),
        # The estimator r − 1 − log r of KL(old, new) is never negative and varies less than −log r.
        kl=token_mean(ratio - 1 - log_ratio, alive, weights).detach(),
        clipped=token_mean(outside, alive, weights).detach(),
    )


def value_loss(values: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
    """Half the weighted mean squared error over rows and stages. ``[b, T]``, ``[b, T]``, ``[b]``."""
    per_row = 0.5 * (values - returns).square().mean(1)
    return (per_row * weights).sum() / weights.sum().clamp(min=1e-8)
