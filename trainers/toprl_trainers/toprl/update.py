"""PPO on one batch of rollouts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toprl_export.errors import UserError
from toprl_export.pruning.actor import Actor, Critic
from toprl_trainers.rl.gumbel import entropy, log_probability
from toprl_trainers.rl.ppo import clipped_surrogate, token_mean, value_loss
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.rollout import Rollouts


@dataclass(frozen=True)
class UpdateFigures:
    """Means over the optimizer steps of one update."""

    policy_loss: float
    value_loss: float
    entropy: float
    kl: float
    clipped: float


@dataclass(frozen=True)
class _Losses:
    policy: Tensor
    value: Tensor
    entropy: Tensor
    kl: Tensor
    clipped: Tensor


def ppo_update(
    actor: Actor,
    critic: Critic,
    optimizer: torch.optim.Adam,
    rollouts: Rollouts,
    temperature: float,
    config: TOPRLConfig,
    generator: torch.Generator,
) -> UpdateFigures:
    """``config.epochs`` passes over the images in random minibatches, an optimizer step each.

    Args:
        actor: changed in place.
        critic: changed in place.
        optimizer: holds the parameters of both.
        rollouts: the batch.
        temperature: τ at which it was drawn.
        config: weights and sizes.
        generator: shuffles the images.

    Raises:
        UserError: the loss is not a number.
    """
    images = len(rollouts.weights) // config.rollouts_per_image
    taken: list[_Losses] = []
    for _ in range(config.epochs):
        order = torch.randperm(images, generator=generator).to(rollouts.weights.device)
        for part in order.tensor_split(config.minibatches):
            losses = _losses(actor, critic, rollouts, part, temperature, config)
            total = losses.policy + losses.value - config.entropy_weight * losses.entropy
            if not bool(torch.isfinite(total)):
                raise UserError("the loss is not a number: lower learning_rate or raise temperature_end in the recipe")
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            nn.utils.clip_grad_norm_(actor.parameters(), config.gradient_clip)
            nn.utils.clip_grad_norm_(critic.parameters(), config.gradient_clip)
            optimizer.step()
            taken.append(losses)
    return UpdateFigures(
        policy_loss=_mean(step.policy for step in taken),
        value_loss=_mean(step.value for step in taken),
        entropy=_mean(step.entropy for step in taken),
        kl=_mean(step.kl for step in taken),
        clipped=_mean(step.clipped for step in taken),
    )


def _losses(
    actor: Actor, critic: Critic, rollouts: Rollouts, images: Tensor, temperature: float, config: TOPRLConfig
) -> _Losses:
    group = config.rollouts_per_image
    rows = (images[:, None] * group + torch.arange(group, device=images.device)).flatten()
    weights = rollouts.weights[rows]
    surrogates, entropies, values = [], [], []
    for stage, whole in enumerate(rollouts.stages):
        record = whole.rows(images, group)
        logits = record.logits(actor)
        chosen = log_probability(logits, record.kept, temperature)
        advantage = rollouts.advantages[rows, stage]
        surrogates.append(
            clipped_surrogate(chosen, record.log_probability, record.alive, advantage, weights, config.clip)
        )
        entropies.append(token_mean(entropy(logits, temperature), record.alive, weights))
        values.append(record.values(critic))
    return _Losses(
        policy=torch.stack([each.loss for each in surrogates]).mean(),
        value=value_loss(torch.stack(values, dim=1), rollouts.returns[rows], weights),
        entropy=torch.stack(entropies).mean(),
        kl=torch.stack([each.kl for each in surrogates]).mean(),
        clipped=torch.stack([each.clipped for each in surrogates]).mean(),
    )


def _mean(values: Iterable[Tensor]) -> float:
    return float(torch.stack([value.detach() for value in values]).mean())
