"""One batch of rollouts: prune every image in several ways, let the model answer, reward each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.walk import walk_from, walk_prefix
from toprl_export.pruning.actor import Critic
from toprl_trainers.rl.gae import advantages_and_returns, centred_per_group, normalised_per_stage
from toprl_trainers.rl.reward import dense_quality, stage_rewards
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.data import ImageBlock, model_precision
from toprl_trainers.toprl.policy import SamplingPolicy, StageRecord
from toprl_trainers.toprl.processes import Share


@dataclass(frozen=True)
class Rollouts:
    """b = images × rollouts episodes of T stages, those of all processes; rollouts of an image are successive.

    ``quality`` and ``weights`` are ``float32 [b]`` (weight 0: the unpruned model answers nothing right, so nothing can
    be retained); ``kept_counts``, ``rewards``, ``values``, ``returns`` and ``advantages`` (normalised) ``[b, T]``.
    ``stages`` has the records of this process's images alone: of all images those in ``part``.
    """

    stages: tuple[StageRecord, ...]
    part: range
    quality: Tensor
    weights: Tensor
    kept_counts: Tensor
    rewards: Tensor
    values: Tensor
    returns: Tensor
    advantages: Tensor


@torch.no_grad()
def collect(
    adapter: LVLMAdapter,
    block: ImageBlock,
    policy: SamplingPolicy,
    critic: Critic,
    stage_layers: Sequence[int],
    target_counts: Sequence[int],
    config: TOPRLConfig,
    share: Share | None = None,
) -> Rollouts:
    """Play ``config.rollouts_per_image`` episodes on every image of ``block``.

    Args:
        adapter: the frozen model.
        block: the images.
        policy: draws the masks; fresh, its records are taken over.
        critic: values the states.
        stage_layers: where the stages stand.
        target_counts: tokens each stage is to keep, for the budget term.
        config: rewards, discount and grouping.
        share: which of the update's images these are; None if they are all.

    Raises:
        UserError: a reward is not a number.
    """
    share = share or Share.everything(len(block.visual))
    with share.processes.together():
        alone = _play(adapter, block, policy, critic, tuple(stage_layers), target_counts, config)
    whole = share.rows({name: x for name, x in vars(alone).items() if isinstance(x, Tensor)})
    whole["advantages"] = normalised_per_stage(whole["advantages"], whole["weights"])
    return Rollouts(stages=alone.stages, part=share.part, **whole)


def _play(
    adapter: LVLMAdapter,
    block: ImageBlock,
    policy: SamplingPolicy,
    critic: Critic,
    stage_layers: tuple[int, ...],
    target_counts: Sequence[int],
    config: TOPRLConfig,
) -> Rollouts:
    """The episodes of ``block``, their advantages not normalised yet."""
    group = config.rollouts_per_image
    with model_precision(adapter, config.precision):
        # What comes before the first stage is the same for all masks of an image.
        prefix = walk_prefix(adapter.decoder, block.tokens, block.visual, stage_layers[0], policy.needs)
        prefill = walk_from(adapter.decoder, prefix.repeated(group), stage_layers, policy, policy.needs)
        log_probability, right = block.gold.score(adapter.decoder, prefill.hidden)  # [Q, group]
    if bool(log_probability.isnan().any()):
        raise UserError(
            f"a reward is not a number, for model {adapter.model_id} answers with probabilities that are none once it "
            "is pruned: train in float32 or check its weights"
        )
    quality, weights = episode_quality(block, log_probability, right, config.reward.quality)
    kept_counts = torch.stack([record.kept.sum(1) for record in policy.records], dim=1).float()  # [b, T]
    total = adapter.visual_tokens
    targets = torch.tensor(target_counts, dtype=torch.float32, device=quality.device)
    rewards = stage_rewards(quality, kept_counts / total, targets / total, config.reward)
    values = torch.stack([record.values(critic) for record in policy.records], dim=1)
    advantages, returns = advantages_and_returns(rewards, values, config.discount, config.trace)
    if config.group_baseline and group > 1:
        advantages = centred_per_group(advantages, weights, group)
    return Rollouts(
        stages=tuple(policy.records),
        part=range(len(block.visual)),
        quality=quality,
        weights=weights,
        kept_counts=kept_counts,
        rewards=rewards,
        values=values,
        returns=returns,
        advantages=advantages,
    )


def episode_quality(block: ImageBlock, log_probability: Tensor, right: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Q_p/Q of each rollout, the mean over its image's questions, and each rollout's weight, both ``float32 [b]``.

    Questions that the unpruned model answers wrongly (Q = 0) do not count; an image's weight is the share that does.

    Args:
        block: supplies the unpruned model's results.
        log_probability: of the gold answers under pruning, ``float32 [Q, m]``.
        right: whether the pruned model is right, ``bool [Q, m]``.
        kind: "dense" or "binary".
    """
    images = len(block.visual)
    per_question = right.float()
    if kind == "dense":
        per_question = dense_quality(log_probability, block.full_log_probability[:, None])
    counts = block.full_right.float()  # [Q]
    image = block.gold.image_of_question
    empty = torch.zeros(images, device=counts.device)
    valid = empty.index_add(0, image, counts)  # [g]
    asked = empty.index_add(0, image, torch.ones_like(counts))
    total = torch.zeros(images, right.shape[1], device=counts.device).index_add(
        0, image, per_question * counts[:, None]
    )
    quality = total / valid.clamp(min=1)[:, None]  # [g, m]
    weights = (valid / asked)[:, None].expand_as(quality)
    return quality.flatten(), weights.flatten().contiguous()
