"""One PPO update of TOP-RL, top to bottom: draw masks, let the pruned model answer, reward, and improve the policy.

Equations are those of the paper (Wang et al., TOP-RL); b is images × rollouts, T the number of stages.

1. **State and action.** Before stage t's layer the state is ``s_t = [t, H_t^v]``, the visual tokens still alive. The
   actor scores them, and `SamplingPolicy` draws a mask ``m_t ~ π(·|s_t)``: independent two-way Gumbel-Softmax draws at
   temperature τ. `StageRecord` keeps what is needed to evaluate the same decision under a later policy.
2. **Transition**, Eq. 3: the survivors pass the decoder layers up to the next stage. Eq. 6-7 neutralise pruned tokens
   by an attention mask; `compacted` gets the same states from shorter rows.
3. **Reward**, Eq. 5: ``r_t = Q_p/Q − α_t·L_t/L``, known once the questions are answered (`episode_quality`, Eq. 1, and
   `rl.reward.stage_rewards`).
4. **Advantages** of the discounted return (Eq. 4): GAE against the critic (`collect`), centred on the rollouts of the
   same image, normalised per stage over the rollouts of all processes.
5. **Objective** (`ppo_update`): PPO's clipped surrogate, whose ratio is taken per token, averaged over alive tokens,
   rollouts and stages; plus the critic's loss; less an entropy bonus. ``epochs`` × ``minibatches`` steps of Adam.

The paper leaves to its appendix how its advantages, its critic and its clipping are set up; what is done here is stated
at each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from toprl_export.errors import UserError
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.walk import Decision, walk_from, walk_prefix
from toprl_export.pruning.actor import Actor, Critic
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select
from toprl_export.seeding import torch_generator
from toprl_trainers.rl.gae import advantages_and_returns, centred_per_group, normalised_per_stage
from toprl_trainers.rl.gumbel import entropy, log_probability, sample_keep, threshold_for_count
from toprl_trainers.rl.ppo import clipped_surrogate, token_mean, value_loss
from toprl_trainers.rl.processes import SINGLE_PROCESS, Processes, Shard
from toprl_trainers.rl.reward import dense_quality, stage_rewards
from toprl_trainers.toprl.config import TOPRLConfig
from toprl_trainers.toprl.data import ImageBlock, model_precision


class ImageDraws:
    """The noise of every rollout of some images, one stage after the other.

    Each image has a random stream of its own, drawn on the CPU, so its draws do not depend on what else is in its batch
    or which process plays it. Every stage draws for all n tokens, the dropped ones included, so a token's noise depends
    neither on which others are left nor on how far rows are padded to the longest of their batch.

    Args:
        seed: of everything random.
        stream: names that distinguish this batch's draws from others.
        images: the images' positions in the update's batch; batch rows are in this order.
        rollouts: of every image, in consecutive rows.
        tokens: n, visual tokens of an image.
    """

    def __init__(
        self, seed: int, stream: tuple[str | int, ...], images: Iterable[int], rollouts: int, tokens: int
    ) -> None:
        self._generators = [torch_generator(seed, *stream, image) for image in images]
        self._size = (2, rollouts, tokens)

    def noise(self, positions: Tensor) -> Tensor:
        """Standard exponential noise of the next stage's tokens, ``float32 [2, b, n_t]``.

        Args:
            positions: which of the n tokens each is, ``int64 [b, n_t]``.
        """
        drawn = [torch.empty(self._size).exponential_(generator=generator) for generator in self._generators]
        every = torch.cat(drawn, dim=1).to(positions.device)  # [2, b, n]
        return every.gather(2, positions.expand(2, -1, -1))  # [2, b, n_t]


@dataclass(frozen=True)
class StageRecord:
    """One stage of a batch of b rollouts: its states, who was drawn, and how likely that was.

    Rollouts of an image share their state at the first stage, where nothing has been dropped yet; it is stored (and
    scored) once, and ``repeats`` is the number of consecutive rollouts that each of its rows stands for.

    ``inputs`` holds ``[b / repeats, …]``; ``alive`` and ``kept`` are ``bool [b, n_t]``, ``threshold`` is
    ``float32 [b / repeats, 1]`` and ``log_probability`` of the draws ``float32 [b, n_t]``.
    """

    inputs: StageInputs
    repeats: int
    alive: Tensor
    kept: Tensor
    threshold: Tensor
    log_probability: Tensor

    def logits(self, actor: Actor) -> Tensor:
        """The actor's logits of keeping under the threshold of the draw, ``float32 [b, n_t]``.

        The threshold stays that of the draw: PPO compares one decision under two policies, and a threshold solved again
        for the new scores would be another decision. No gradient passes through it.
        """
        scores: Tensor = actor(self.inputs)
        return (scores - self.threshold).repeat_interleave(self.repeats, dim=0)

    def values(self, critic: Critic) -> Tensor:
        """The critic's value of each rollout's state, ``float32 [b]``."""
        values: Tensor = critic(self.inputs)
        return values.repeat_interleave(self.repeats, dim=0)

    def of_images(self, images: Tensor, rollouts: int) -> StageRecord:
        """The part that belongs to ``images``, each with its ``rollouts`` rollouts."""
        rows = _rollout_rows(images, rollouts)
        shared = images if self.repeats == rollouts else rows
        return StageRecord(
            inputs=_batch_rows(self.inputs, shared),
            repeats=self.repeats,
            alive=self.alive[rows],
            kept=self.kept[rows],
            threshold=self.threshold[shared],
            log_probability=self.log_probability[rows],
        )


@dataclass
class SamplingPolicy:
    """A ``decide`` for the walk that draws from the actor; ``records`` holds what it did, one entry per stage.

    Attributes:
        actor: the policy.
        counts: tokens that each stage is to keep on average.
        temperature: τ.
        thresholds: fixed threshold of each stage; None solves it for each image so that ``counts`` are met on average.
        rollouts: consecutive rows that are rollouts of the same image.
        draws: the noise of the images' rollouts.
    """

    actor: Actor
    counts: Sequence[int]
    temperature: float
    thresholds: Sequence[float] | None
    rollouts: int
    draws: ImageDraws
    records: list[StageRecord] = field(default_factory=list)

    @property
    def needs(self) -> ScorerNeeds:
        """What the walk must compute for the actor."""
        return self.actor.needs

    def __call__(self, inputs: StageInputs) -> Decision:
        """Draw the stage's mask and keep the drawn tokens, rows padded to the longest."""
        # The frozen model may run under autocast; the policy stays in float32, as the update recomputes it.
        with torch.autocast(inputs.visual.device.type, enabled=False):
            return self._decide(inputs)

    def _decide(self, inputs: StageInputs) -> Decision:
        repeats = self.rollouts if inputs.stage == 0 else 1
        alive = inputs.alive if inputs.alive is not None else torch.ones_like(inputs.origin, dtype=torch.bool)
        text = None if inputs.text is None else inputs.text.float()
        state = _batch_rows(
            replace(inputs, visual=inputs.visual.float(), alive=alive, text=text), slice(None, None, repeats)
        )
        scores = self.actor(state)  # [b / repeats, n_t]
        threshold = self._threshold(inputs.stage, scores, state)
        logits = (scores - threshold).repeat_interleave(repeats, dim=0)  # [b, n_t]
        kept = sample_keep(logits, self.temperature, self.draws.noise(inputs.origin)) & alive
        # Of dropped tokens it means nothing; every loss averages over alive tokens only.
        drawn = log_probability(logits, kept, self.temperature)
        self.records.append(StageRecord(state, repeats, alive, kept, threshold, drawn))
        return compacted(kept)

    def _threshold(self, stage: int, scores: Tensor, state: StageInputs) -> Tensor:
        if self.thresholds is not None:
            return torch.full_like(scores[:, :1], self.thresholds[stage])
        assert state.alive is not None  # filled in by the caller
        # Solved anew for each image: at inference top-k keeps the scheduled number of every image, so only the order of
        # an image's scores matters, not their level, and training should not reward the level either.
        return threshold_for_count(scores, state.alive, self.counts[stage], self.temperature)


def compacted(kept: Tensor) -> Decision:
    """Keep the marked tokens of every row, and enough others, marked dead, to make rows as long as the longest.

    Dead tokens are seen by themselves alone (Eq. 6-7), so this equals masking all dropped tokens, at the cost of the
    kept ones. ``kept`` is ``bool [b, n]``.
    """
    longest = max(1, int(kept.sum(1).max()))  # a row of no tokens would be an empty tensor
    # Scores of 1 and 0: the kept tokens of a row are chosen first, then dropped ones, lowest index first.
    index = select(kept.float(), longest)  # [b, longest]
    return Decision(index, kept.gather(1, index))


def _batch_rows(inputs: StageInputs, rows: Tensor | slice) -> StageInputs:
    """The same stage of some batch rows."""
    taken: dict[str, Any] = {
        name: value[rows] if isinstance(value, Tensor) else value for name, value in vars(inputs).items()
    }
    return StageInputs(**taken)


def _rollout_rows(images: Tensor, rollouts: int) -> Tensor:
    """Batch rows of the images' rollouts, ``int64 [images · rollouts]``."""
    return (images[:, None] * rollouts + torch.arange(rollouts, device=images.device)).flatten()


@dataclass(frozen=True)
class Rollouts:
    """b = images × rollouts episodes of T stages, those of all processes; rollouts of an image are consecutive.

    ``quality`` and ``weights`` are ``float32 [b]`` (weight 0: the unpruned model answers nothing correctly, so nothing
    can be retained); ``kept_counts``, ``rewards``, ``values``, ``returns`` and ``advantages`` (normalised) ``[b, T]``.
    ``stages`` has the records of this process's images alone, which are those in ``part``.
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
    config: TOPRLConfig,
    shard: Shard | None = None,
) -> Rollouts:
    """Play ``config.rollouts_per_image`` episodes on every image of ``block``.

    Args:
        adapter: the frozen model.
        block: the images.
        policy: draws the masks; fresh, its records are taken over.
        critic: values the states.
        stage_layers: decoder layers before which the stages stand.
        config: rewards, discount and grouping.
        shard: which of the update's images these are; None if they are all.

    Raises:
        UserError: a reward is NaN.
    """
    shard = shard or Shard.whole(len(block.visual))
    with shard.processes.collective_errors():
        mine = _play(adapter, block, policy, critic, tuple(stage_layers), config)
    every = shard.gather({name: x for name, x in vars(mine).items() if isinstance(x, Tensor)})
    # After gathering: statistics of one process's rollouts alone would make the step depend on how many there are.
    every["advantages"] = normalised_per_stage(every["advantages"], every["weights"])
    return Rollouts(stages=mine.stages, part=shard.part, **every)


def _play(
    adapter: LVLMAdapter,
    block: ImageBlock,
    policy: SamplingPolicy,
    critic: Critic,
    stage_layers: tuple[int, ...],
    config: TOPRLConfig,
) -> Rollouts:
    """The episodes of ``block``, their advantages not normalised yet."""
    group = config.rollouts_per_image
    with model_precision(adapter, config.precision):
        # The layers before the first stage are the same for all masks of an image: run once, then repeated.
        prefix = walk_prefix(adapter.decoder, block.tokens, block.visual, stage_layers[0], policy.needs)
        prefill = walk_from(adapter.decoder, prefix.repeated(group), stage_layers, policy, policy.needs)
        log_probability, correct = block.gold.score(adapter.decoder, prefill.hidden)  # [Q, group]
    if bool(log_probability.isnan().any()):
        raise UserError(
            f"NaN reward: the pruned model {adapter.model_id} gives its answers the probability NaN: train in float32 "
            "or check its weights"
        )
    quality, weights = episode_quality(block, log_probability, correct, config.reward.quality)  # [b]
    kept_counts = torch.stack([record.kept.sum(1) for record in policy.records], dim=1).float()  # [b, T]
    total = adapter.visual_tokens
    targets = torch.tensor(policy.counts, dtype=torch.float32, device=quality.device)
    rewards = stage_rewards(quality, kept_counts / total, targets / total, config.reward)
    values = torch.stack([record.values(critic) for record in policy.records], dim=1)
    advantages, returns = advantages_and_returns(rewards, values, config.discount, config.gae_lambda)
    if config.group_baseline and group > 1:
        # An image's difficulty shifts all its rollouts' rewards; what is left distinguishes good masks from bad ones.
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


def episode_quality(block: ImageBlock, log_probability: Tensor, correct: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Q_p/Q of each rollout (Eq. 1), averaged over its image's questions, and each rollout's weight: ``float32 [b]``.

    Where the unpruned model answers wrongly, Q = 0 and the ratio does not exist: pruning can neither retain nor lose
    anything. Such questions do not count, and an image's weight is the share of its questions that do.

    Args:
        block: supplies the unpruned model's results.
        log_probability: of the gold answers under pruning, ``float32 [Q, m]``, m rollouts of each image.
        correct: whether the pruned model answers correctly, ``bool [Q, m]``.
        kind: "dense" or "binary".
    """
    images = len(block.visual)
    per_question = correct.float()
    if kind == "dense":
        per_question = dense_quality(log_probability, block.full_log_probability[:, None])
    counts = block.full_correct.float()  # [Q]
    image = block.gold.image_of_question
    empty = torch.zeros(images, device=counts.device)
    valid = empty.index_add(0, image, counts)  # [g]
    questions = empty.index_add(0, image, torch.ones_like(counts))  # [g]
    total = torch.zeros(images, correct.shape[1], device=counts.device).index_add(
        0, image, per_question * counts[:, None]
    )
    quality = total / valid.clamp(min=1)[:, None]  # [g, m]
    weights = (valid / questions)[:, None].expand_as(quality)
    return quality.flatten(), weights.flatten().contiguous()


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
    processes: Processes = SINGLE_PROCESS,
) -> UpdateFigures:
    """``config.epochs`` passes over the images in random minibatches, an optimizer step each.

    A minibatch is drawn from the images of all processes. Each process adds what its own images in it contribute to
    losses and gradients, so all take the step that a single process with all the images would take.

    Args:
        actor: changed in place.
        critic: changed in place.
        optimizer: holds the parameters of both.
        rollouts: the batch.
        temperature: τ at which it was drawn.
        config: weights and sizes.
        generator: shuffles the images, in the same state in all processes.
        processes: those whose rollouts these are.

    Raises:
        UserError: the loss or its gradient is NaN or infinite.
    """
    images = len(rollouts.weights) // config.rollouts_per_image
    parameters = [*actor.parameters(), *critic.parameters()]
    taken: list[Tensor] = []
    for _ in range(config.epochs):
        # Drawn on the CPU, where the generator gives every process the same order on any device.
        order = torch.randperm(images, generator=generator).to(rollouts.weights.device)
        for minibatch in order.tensor_split(config.minibatches):
            if not bool(rollouts.weights[_rollout_rows(minibatch, config.rollouts_per_image)].any()):
                continue  # nothing to learn from, in any process; Adam's momentum would move the weights all the same
            losses = _losses(actor, critic, rollouts, minibatch, temperature, config)
            # The bonus pays the policy for staying undecided, so that it goes on exploring.
            total = losses.policy + losses.value - config.entropy_weight * losses.entropy
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(total)
            figures = processes.all_reduce_gradients(parameters, torch.stack([total, *losses]).detach())
            # Clipped apart, so that a large gradient of the critic does not scale down the actor's.
            norms = [nn.utils.clip_grad_norm_(each.parameters(), config.gradient_clip) for each in (actor, critic)]
            if not bool(torch.stack([figures[0], *norms]).isfinite().all()):
                raise processes.collective_error(
                    "NaN or infinite loss or gradient: lower learning_rate or raise temperature_end in the recipe"
                )
            optimizer.step()
            taken.append(figures[1:])
    if not taken:
        return UpdateFigures(0.0, 0.0, 0.0, 0.0, 0.0)
    return UpdateFigures(*torch.stack(taken).mean(0).tolist())


def _losses(
    actor: Actor, critic: Critic, rollouts: Rollouts, images: Tensor, temperature: float, config: TOPRLConfig
) -> _Losses:
    """What this process's images contribute to a minibatch's losses."""
    group = config.rollouts_per_image
    here = images[(images >= rollouts.part.start) & (images < rollouts.part.stop)]
    rows = _rollout_rows(here, group)
    weights = rollouts.weights[rows]
    # Every loss is a mean by these weights, of which this process's images have their share of all the weight.
    share = weights.sum() / rollouts.weights[_rollout_rows(images, group)].sum().clamp(min=1e-8)
    # Per stage, then averaged: a stage of few tokens weighs as much as one of many.
    surrogates, entropies, values = [], [], []
    for stage, whole in enumerate(rollouts.stages):
        record = whole.of_images(here - rollouts.part.start, group)
        # At the τ of the draw, not of the next update: else every ratio would differ from 1 before the first step.
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
