"""PPO on one batch of rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from toprl_export.pruning.actor import Actor, Critic
from toprl_trainers.rl.gumbel import entropy, log_probability
from toprl_trainers.rl.ppo import clipped_surrogate, token_mean, value_loss
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.processes import ALONE, Processes
from toprl_trainers.toprl.rollout import Rollouts


@dataclass(frozen=True)
class UpdateFigures:
    """Means over the optimizer steps of one update; 0 where it had nothing to learn from and took none."""

    policy_loss: float
    value_loss: float
    entropy: float
    kl: float
    clipped: float


class _Losses(NamedTuple):
    """In the order of `UpdateFigures`."""

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
    processes: Processes = ALONE,
) -> UpdateFigures:
    """``config.epochs`` passes over the images in random minibatches, an optimizer step each.

    A minibatch is drawn from the images of all processes; each adds what those of its own that are in it make up of the
    losses and gradients, so that all take the step that one process with all the images would take.

    Args:
        actor: changed in place.
        critic: changed in place.
        optimizer: holds the parameters of both.
        rollouts: the batch.
        temperature: τ at which it was drawn.
        config: weights and sizes.
        generator: shuffles the images, alike in all processes.
        processes: those whose rollouts these are.

    Raises:
        UserError: the loss or its gradient is not a number.
    """
    images = len(rollouts.weights) // config.rollouts_per_image
    parameters = [*actor.parameters(), *critic.parameters()]
    taken: list[Tensor] = []
    for _ in range(config.epochs):
        order = torch.randperm(images, generator=generator).to(rollouts.weights.device)
        for part in order.tensor_split(config.minibatches):
            if not bool(rollouts.weights[_rows(part, config.rollouts_per_image)].any()):
                continue  # nothing to learn from, in any process; Adam would move all the same
            losses = _losses(actor, critic, rollouts, part, temperature, config)
            total = losses.policy + losses.value - config.entropy_weight * losses.entropy
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            figures = processes.total_gradients(parameters, torch.stack([total, *losses]).detach())
            norms = [nn.utils.clip_grad_norm_(each.parameters(), config.gradient_clip) for each in (actor, critic)]
            if not bool(torch.stack([figures[0], *norms]).isfinite().all()):
                raise processes.ending(
                    "the loss or its gradient is not a number: lower learning_rate or raise temperature_end in the "
                    "recipe"
                )
            optimizer.step()
            taken.append(figures[1:])
    if not taken:
        return UpdateFigures(0.0, 0.0, 0.0, 0.0, 0.0)
    return UpdateFigures(*torch.stack(taken).mean(0).tolist())


def _losses(
    actor: Actor, critic: Critic, rollouts: Rollouts, images: Tensor, temperature: float, config: TOPRLConfig
) -> _Losses:
    group = config.rollouts_per_image
    here = images[(images >= rollouts.part.start) & (images < rollouts.part.stop)]
    rows = _rows(here, group)
    weights = rollouts.weights[rows]
    # Every loss is a mean by these weights, of which this process's images have their share of all the weight.
    share = weights.sum() / rollouts.weights[_rows(images, group)].sum().clamp(min=1e-8)
    surrogates, entropies, values = [], [], []
    for stage, whole in enumerate(rollouts.stages):
        record = whole.rows(here - rollouts.part.start, group)
        logits = record.logits(actor)
        chosen = log_probability(logits, record.kept, temperature)
        advantage = rollouts.advantages[rows, stage]
        surrogates.append(
            clipped_surrogate(chosen, record.log_probability, record.alive, advantage, weights, config.clip)
        )
        entropies.append(token_mean(entropy(logits, temperature), record.alive, weights))
        values.append(record.values(critic))
    return _Losses(
        policy=torch.stack([each.loss for each in surrogates]).mean() * share,
        value=value_loss(torch.stack(values, dim=1), rollouts.returns[rows], weights) * share,
        entropy=torch.stack(entropies).mean() * share,
        kl=torch.stack([each.kl for each in surrogates]).mean() * share,
        clipped=torch.stack([each.clipped for each in surrogates]).mean() * share,
    )


def _rows(images: Tensor, group: int) -> Tensor:
    return (images[:, None] * group + torch.arange(group, device=images.device)).flatten()
