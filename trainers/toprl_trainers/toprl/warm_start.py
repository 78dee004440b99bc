"""Demonstrations before PPO: the actor learns to keep what a baseline keeps at the budget trained for.

The baseline chooses at the agent's own stages and keep counts, whatever its paper's stages are, so that every state
shown is one that the agent will meet. Only the images are drawn at random: a run that was interrupted before its first
checkpoint repeats everything bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toprl_export.models.agreement import require_attention
from toprl_export.models.reference import Pruning, forced_decisions
from toprl_export.models.walk import Decision, walk_prefill
from toprl_export.progress import Progress
from toprl_export.pruning.actor import Actor
from toprl_export.pruning.scorer import StageInputs, make_scorer
from toprl_trainers.rl.gumbel import log_probability, threshold_for_count
from toprl_trainers.toprl.data import BlockSource, looks_at_question
from toprl_trainers.toprl.run import Run


class Demonstration:
    """A ``decide`` for the walk that repeats given choices.

    ``stages`` holds each stage's state and which of its tokens were kept, ``bool [b, n_t]``.

    Args:
        kept: original visual indices kept at each stage, ``int64 [b, k_t]``.
    """

    def __init__(self, kept: tuple[Tensor, ...]) -> None:
        self._decide = forced_decisions(kept)
        self.stages: list[tuple[StageInputs, Tensor]] = []

    def __call__(self, inputs: StageInputs) -> Decision:
        """Repeat the stage's choice."""
        decision = self._decide(inputs)
        chosen = torch.zeros_like(inputs.origin, dtype=torch.bool).scatter(1, decision.kept, True)  # [b, n_t]
        self.stages.append((inputs, chosen))
        return decision


def warm_start(run: Run, actor: Actor, source: BlockSource) -> None:
    """Train ``actor`` on demonstrations if the recipe asks for it, with an optimizer of its own.

    Args:
        run: settings and plan.
        actor: changed in place.
        source: the training images.
    """
    config = run.config
    if config.warm_start is None:
        return
    teacher = Pruning(run.plan.stage_layers, run.trained.keep_counts, make_scorer(config.warm_start.baseline))
    require_attention(run.request.adapter, teacher.scorer.needs)
    optimizer = torch.optim.Adam(actor.parameters(), lr=config.learning_rate)
    with Progress(
        f"imitating {config.warm_start.baseline}", config.warm_start.updates, "batch", silent=not run.processes.main
    ) as bar:
        for number in range(config.warm_start.updates):
            _imitate(run, teacher, actor, source, number, optimizer)
            bar.update()


def _imitate(
    run: Run, teacher: Pruning, actor: Actor, source: BlockSource, number: int, optimizer: torch.optim.Optimizer
) -> None:
    """One batch: what the teacher keeps of it, and as many steps towards that as an update has epochs."""
    config = run.config
    with run.processes.collective_errors():
        demonstration = demonstrate(run, teacher, actor, source, number)
    shard = source.shard(number % len(source))
    for _ in range(config.epochs):
        # The mean over all images is the sum of what each process's own images contribute.
        loss = imitation_loss(actor, demonstration, config.temperature_start) * len(shard.part) / shard.images
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        run.processes.all_reduce_gradients(actor.parameters(), loss.detach().reshape(1))
        nn.utils.clip_grad_norm_(actor.parameters(), config.gradient_clip)
        optimizer.step()


@torch.no_grad()
def demonstrate(run: Run, teacher: Pruning, actor: Actor, source: BlockSource, number: int) -> Demonstration:
    """What the teacher keeps of batch ``number``, and what the actor sees along the way.

    The two may need different things of the walk, so the teacher chooses in one walk and another repeats its choices.
    """
    adapter, teacher_needs = run.request.adapter, teacher.scorer.needs
    block = source.for_update(number, looks_at_question(teacher_needs) or looks_at_question(actor.needs))
    saliency = source.saliency(number % len(source)) if teacher_needs.saliency else None
    layers = teacher.stage_layers
    chosen = walk_prefill(adapter.decoder, block.tokens, block.visual, layers, teacher.decide, teacher_needs, saliency)
    demonstration = Demonstration(chosen.kept)
    walk_prefill(adapter.decoder, block.tokens, block.visual, layers, demonstration, actor.needs)
    return demonstration


def imitation_loss(actor: Actor, demonstration: Demonstration, temperature: float) -> Tensor:
    """Binary cross-entropy of the demonstrated decisions, averaged over tokens, images and stages; a scalar.

    The probabilities are those that PPO would draw with: of scores less the threshold at which as many tokens are kept
    as the teacher keeps, divided by the temperature.
    """
    losses = []
    for inputs, chosen in demonstration.stages:
        scores: Tensor = actor(inputs)  # [b, n_t]
        alive = torch.ones_like(chosen)  # a teacher keeps equally many of every image: no row is padded
        count = float(chosen[0].sum())
        threshold = threshold_for_count(scores.detach(), alive, count, temperature)
        losses.append(-log_probability(scores - threshold, chosen, temperature).mean())
    return torch.stack(losses).mean()
