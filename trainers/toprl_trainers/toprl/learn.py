"""The training loop: collect, update, note the figures, save now and then."""

from __future__ import annotations

import time

import torch

from toprl_export.progress import Progress
from toprl_export.seeding import torch_generator
from toprl_trainers.rl.gae import explained_variance
from toprl_trainers.rl.gumbel import temperature_at
from toprl_trainers.toprl.data import BlockSource, looks_at_question
from toprl_trainers.toprl.draws import ImageDraws
from toprl_trainers.toprl.policy import SamplingPolicy
from toprl_trainers.toprl.rollout import Rollouts, collect
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.state import TrainingState, column_names
from toprl_trainers.toprl.update import UpdateFigures, ppo_update
from toprl_trainers.toprl.warm_start import warm_start

LEARNABLE_BLOCKS = 4
"""How many blocks of images must hold at least one question that the unpruned model answers."""


def learn(run: Run, state: TrainingState, source: BlockSource) -> None:
    """Bring ``state`` to the last update and its checkpoint, with a progress bar where there is a terminal.

    The main process shows the bar and saves; every process ends with the same state.

    Args:
        run: settings and plan.
        state: changed in place; where it starts depends on how far it is.
        source: the training images.

    Raises:
        UserError: the model answers nothing right, a reward is not a number, or a checkpoint cannot be written.
    """
    config = run.config
    _check_learnable(run, source)
    if state.update == 0:
        begin = time.perf_counter()
        warm_start(run, state.actor, source)
        state.seconds += time.perf_counter() - begin
    with Progress(
        run.request.task.name, config.updates, "update", initial=state.update, silent=not run.processes.main
    ) as bar:
        while state.update < config.updates:
            begin = time.perf_counter()
            row, played = _step(run, state, source)
            took = time.perf_counter() - begin
            state.curves.append(row)
            state.seconds += took
            bar.postfix(_postfix(row, len(run.plan.stages), played / took))
            bar.update()
            if state.update % config.checkpoint_every == 0 or state.update == config.updates:
                with run.processes.together():
                    if run.processes.main:
                        state.save(run.checkpoint, run.digest)


def _check_learnable(run: Run, source: BlockSource) -> None:
    """Refuse a model that is never right: nothing it answers could be retained."""
    processes, tried = run.processes, min(LEARNABLE_BLOCKS, len(source))
    with processes.together():
        right = any(bool(source[number].full_right.any()) for number in range(tried))
    if not int(processes.total(torch.tensor(int(right), device=processes.device))):
        raise processes.ending(
            f"model {run.request.adapter.model_id} answers none of {run.request.task.name}'s first questions right, so "
            "there is nothing to retain: choose another task or model"
        )


def _step(run: Run, state: TrainingState, source: BlockSource) -> tuple[list[float], int]:
    """One update; its row of figures and how many rollouts it took."""
    config, update = run.config, state.update
    progress = update / max(config.updates - 1, 1)
    temperature = temperature_at(progress, config.temperature_start, config.temperature_end)
    if config.threshold == "initial" and state.thresholds is None:
        state.thresholds = _initial_thresholds(run, state, source, temperature)
    rollouts = _collect(run, state, source, temperature, "draws")
    # Draws follow logits over τ: the smaller τ, the further a step of the actor's weights moves them. A rate that falls
    # as τ does keeps that the same (the critic, in the same optimizer, slows down with it).
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate * temperature / config.temperature_start
    shuffle = torch_generator(run.request.seed, "toprl", "minibatches", update)
    figures = ppo_update(
        state.actor, state.critic, state.optimizer, rollouts, temperature, config, shuffle, run.processes
    )
    return _row(update, temperature, rollouts, figures, config.reward.assignment), len(rollouts.weights)


def _collect(run: Run, state: TrainingState, source: BlockSource, temperature: float, purpose: str) -> Rollouts:
    config, adapter, update = run.config, run.request.adapter, state.update
    share = source.share(update % len(source))
    policy = SamplingPolicy(
        state.actor,
        run.trained.keep_counts,
        temperature,
        state.thresholds,
        config.rollouts_per_image,
        ImageDraws(
            run.request.seed, ("toprl", purpose, update), share.part, config.rollouts_per_image, adapter.visual_tokens
        ),
    )
    with run.processes.together():
        block = source.for_update(update, looks_at_question(policy.needs))
    return collect(adapter, block, policy, state.critic, run.plan.stage_layers, run.trained.keep_counts, config, share)


def _initial_thresholds(run: Run, state: TrainingState, source: BlockSource, temperature: float) -> tuple[float, ...]:
    """Each stage's mean threshold over the first images: with it, the policy starts at the scheduled keep counts."""
    rollouts = _collect(run, state, source, temperature, "calibration")
    found = [record.threshold.double() for record in rollouts.stages]
    sums = torch.stack([torch.stack([each.sum(), torch.ones_like(each).sum()]) for each in found])  # [T, 2]
    return tuple((total / count) for total, count in run.processes.total(sums).tolist())


def _row(update: int, temperature: float, rollouts: Rollouts, figures: UpdateFigures, assignment: str) -> list[float]:
    """Figures in the order of `column_names`; the reward is a stage's, also where all are paid at the last."""
    weights = rollouts.weights / rollouts.weights.sum().clamp(min=1e-8)
    rewards = rollouts.rewards.sum(1) if assignment == "terminal" else rollouts.rewards.mean(1)
    kept = rollouts.kept_counts.mean(0).tolist()
    row = [
        float(update + 1),
        temperature,
        float((rewards * weights).sum()),
        float((rollouts.quality * weights).sum()),
        *kept,
        figures.entropy,
        explained_variance(rollouts.values, rollouts.returns, rollouts.weights),
        figures.kl,
        figures.clipped,
        figures.policy_loss,
        figures.value_loss,
    ]
    assert len(row) == len(column_names(len(kept)))
    return row


def _postfix(row: list[float], stages: int, rollouts_per_second: float) -> str:
    figures = dict(zip(column_names(stages), row, strict=True))
    kept = "/".join(f"{figures[f'kept_stage_{stage + 1}']:.0f}" for stage in range(stages))
    return (
        f"reward {figures['reward']:.3f} Q {figures['quality']:.3f} kept {kept} entropy {figures['entropy']:.3f} "
        f"EV {figures['explained_variance']:.2f} KL {figures['kl']:.4f} {rollouts_per_second:.0f} rollouts/s"
    )
