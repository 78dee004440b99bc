"""Demonstrations before PPO, or instead of it: the actor learns to keep what a teacher keeps at the budget trained for.

The teacher is a baseline, or "gradient", which knows the gold answers: it keeps the tokens on whose states their
log-probability depends most. It chooses at the agent's own stages and keep counts, whatever its paper's stages are, so
that every state shown is one that the agent will meet. A recipe of no PPO updates is supervised learning alone. Only
the images are drawn at random: a run that was interrupted before its first checkpoint repeats everything bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.agreement import require_attention
from toprl_export.models.reference import Pruning, forced_decisions
from toprl_export.models.walk import Decision, walk_prefill
from toprl_export.progress import Progress
from toprl_export.pruning.actor import Actor
from toprl_export.pruning.scorer import StageInputs, make_scorer
from toprl_export.pruning.select import select
from toprl_trainers.rl.gumbel import log_probability, threshold_for_count
from toprl_trainers.toprl.config import GRADIENT
from toprl_trainers.toprl.data import BlockSource, ImageBlock, looks_at_question
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
    teacher = teacher_of(run, config.warm_start.baseline)
    optimizer = torch.optim.Adam(actor.parameters(), lr=config.learning_rate)
    with Progress(
        f"imitating {config.warm_start.baseline}", config.warm_start.updates, "batch", silent=not run.processes.main
    ) as bar:
        for number in range(config.warm_start.updates):
            _imitate(run, teacher, actor, source, number, optimizer)
            bar.update()


def _imitate(
    run: Run, teacher: Teacher, actor: Actor, source: BlockSource, number: int, optimizer: torch.optim.Optimizer
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
def demonstrate(run: Run, teacher: Teacher, actor: Actor, source: BlockSource, number: int) -> Demonstration:
    """What the teacher keeps of batch ``number``, and what the actor sees along the way.

    The two may need different things of the walk, so the teacher chooses in one walk and another repeats its choices.
    """
    decoder, layers = run.request.adapter.decoder, run.plan.stage_layers
    one_question = looks_at_question(actor.needs)
    if isinstance(teacher, GradientTeacher):
        block = source.for_update(number, one_question)
        # With one question an image, a batch asks others whenever it comes again.
        kept = teacher.kept(block, number if one_question else number % len(source))
    else:
        needs = teacher.scorer.needs
        block = source.for_update(number, looks_at_question(needs) or one_question)
        saliency = source.saliency(number % len(source)) if needs.saliency else None
        kept = walk_prefill(decoder, block.tokens, block.visual, layers, teacher.decide, needs, saliency).kept
    demonstration = Demonstration(kept)
    walk_prefill(decoder, block.tokens, block.visual, layers, demonstration, actor.needs)
    return demonstration


class GradientTeacher:
    """Keeps what has the largest `gradient_saliency`; remembers it, because a walk back through the model is dear.

    Args:
        run: plan and keep counts.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: dict[int, tuple[Tensor, ...]] = {}

    def kept(self, block: ImageBlock, number: int) -> tuple[Tensor, ...]:
        """Original visual indices kept at each stage, ``int64 [g, k_t]``; ``number`` tells blocks apart."""
        if number not in self._known:
            adapter, layers = self._run.request.adapter, self._run.plan.stage_layers
            alive = torch.arange(adapter.visual_tokens, device=block.visual.device).expand(len(block.visual), -1)
            chosen = []
            saliency = gradient_saliency(adapter, block, layers)
            for scores, count in zip(saliency, self._run.trained.keep_counts, strict=True):
                alive = alive.gather(1, select(scores.gather(1, alive), count))
                chosen.append(alive)
            self._known[number] = tuple(chosen)
        return self._known[number]


Teacher = Pruning | GradientTeacher


def teacher_of(run: Run, name: str) -> Teacher:
    """The teacher of a name: a baseline at the run's stages, or the gradient."""
    if name == GRADIENT:
        return GradientTeacher(run)
    teacher = Pruning(run.plan.stage_layers, run.trained.keep_counts, make_scorer(name))
    require_attention(run.request.adapter, teacher.scorer.needs)
    return teacher


def gradient_saliency(adapter: LVLMAdapter, block: ImageBlock, stage_layers: tuple[int, ...]) -> tuple[Tensor, ...]:
    """How much the gold answers' log-probability depends on each visual token's state entering each stage.

    The norm of its gradient, in the unpruned model, summed over an image's questions that the model answers correctly.
    Of three first-order scores it kept the most answers right: of 56 training questions of mini-count 88% with 64, 32
    and 15 tokens left, where the absolute product of gradient and state kept 75% and the signed one 48%.

    Args:
        adapter: the frozen model.
        block: images, questions and gold answers.
        stage_layers: decoder layers before which the stages stand.

    Returns:
        one ``float32 [g, n]`` for each stage.
    """
    states: list[Tensor] = []

    def keep_all(inputs: StageInputs) -> Decision:
        states.append(inputs.visual)
        return Decision(inputs.origin)

    with torch.enable_grad():
        visual = block.visual.detach().requires_grad_()
        walked = walk_prefill(adapter.decoder, block.tokens, visual, stage_layers, keep_all)
        log_probability, _ = block.gold.score(adapter.decoder, walked.hidden)  # [Q, 1]
        total = (log_probability[:, 0] * block.full_correct).sum()
        gradients = torch.autograd.grad(total, states)
    return tuple(gradient.float().norm(dim=-1) for gradient in gradients)


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
