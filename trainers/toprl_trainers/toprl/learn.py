"""The training loop, and the state that it carries from update to update and through an interruption."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from toprl_export.progress import Progress
from toprl_export.pruning.actor import Actor, ActorConfig, Critic
from toprl_export.seeding import derive_seed, torch_generator
from toprl_trainers.rl.checkpoint import (
    damaged,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint_header,
    read_tensors,
    with_prefix,
    without_prefix,
    write_checkpoint,
)
from toprl_trainers.rl.gumbel import temperature_at
from toprl_trainers.toprl.curves import curve_row, progress_line
from toprl_trainers.toprl.data import BlockSource, looks_at_question
from toprl_trainers.toprl.run import CheckpointHeader, Run
from toprl_trainers.toprl.update import ImageDraws, Rollouts, SamplingPolicy, collect, ppo_update
from toprl_trainers.toprl.warm_start import warm_start

LEARNABLE_BLOCKS = 4
"""How many blocks of images are searched for a question that the unpruned model answers correctly."""


@dataclass
class TrainingState:
    """The learner between two updates. Changed in place by training.

    Random streams are derived anew for every update from the seed and the update's number, so there is no generator to
    carry on. ``curves`` has one row of figures per update; ``thresholds`` are the fixed ones, None where each image has
    its own; ``seconds`` is the time spent so far.
    """

    actor: Actor
    critic: Critic
    optimizer: torch.optim.Adam
    thresholds: tuple[float, ...] | None = None
    curves: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def update(self) -> int:
        """Updates done."""
        return len(self.curves)

    @classmethod
    def fresh(cls, config: ActorConfig, learning_rate: float, seed: int, device: torch.device) -> TrainingState:
        """Untrained networks; the global random state stays as it was."""
        with torch.random.fork_rng(devices=()):
            # torch.manual_seed would reseed the GPUs' generators too, which are neither used here nor restored.
            torch.default_generator.manual_seed(derive_seed(seed, "toprl", "weights"))
            actor, critic = Actor(config).to(device), Critic(config).to(device)
        optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=learning_rate)
        return cls(actor, critic, optimizer)

    def save(self, path: Path, digest: str) -> None:
        """Write everything to ``path`` at once, so that it holds this state or the one before, never parts of both.

        Args:
            path: the file.
            digest: of the run's settings, which must be the same when it is loaded.

        Raises:
            UserError: it cannot be written.
        """
        header = CheckpointHeader(digest, self.thresholds, self.seconds, torch.get_num_threads())
        write_checkpoint(path, header, self._tensors())

    def load(self, path: Path) -> None:
        """Take over what `save` wrote for networks of the same sizes.

        Raises:
            UserError: the file does not hold them.
        """
        header, tensors = read_checkpoint_header(CheckpointHeader, path), read_tensors(path)
        try:
            self.actor.load_state_dict(without_prefix("actor", tensors))
            self.critic.load_state_dict(without_prefix("critic", tensors))
            load_optimizer(self.optimizer, without_prefix("adam", tensors))
            self.curves = tensors["curves"].tolist()
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise damaged(path, error) from error
        self.thresholds, self.seconds = header.thresholds, header.seconds

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **with_prefix("actor", self.actor.state_dict()),
            **with_prefix("critic", self.critic.state_dict()),
            **with_prefix("adam", optimizer_tensors(self.optimizer)),
            "curves": torch.tensor(self.curves, dtype=torch.float64),
        }


def learn(run: Run, state: TrainingState, source: BlockSource) -> None:
    """Bring ``state`` to the last update and its checkpoint, with a progress bar where there is a terminal.

    The main process shows the bar and saves; every process ends with the same state.

    Args:
        run: settings and plan.
        state: changed in place; its curves say which update comes next.
        source: the training images.

    Raises:
        UserError: the model answers nothing correctly, a reward is NaN, or a checkpoint cannot be written.
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
            row, rollouts = _step(run, state, source)
            took = time.perf_counter() - begin
            state.curves.append(row)
            state.seconds += took
            bar.postfix(progress_line(row, len(run.plan.stages), rollouts / took))
            bar.update()
            if state.update % config.checkpoint_every == 0 or state.update == config.updates:
                with run.processes.collective_errors():
                    if run.processes.main:
                        state.save(run.checkpoint, run.digest)


def _check_learnable(run: Run, source: BlockSource) -> None:
    """Refuse a model that is never correct: no answer could be retained, and every rollout would have weight 0."""
    processes, blocks = run.processes, min(LEARNABLE_BLOCKS, len(source))
    with processes.collective_errors():
        correct = any(bool(source[number].full_correct.any()) for number in range(blocks))
    if not int(processes.all_reduce(torch.tensor(int(correct), device=processes.device))):
        raise processes.collective_error(
            f"model {run.request.adapter.model_id} answers none of {run.request.task.name}'s first questions "
            "correctly, so there is nothing to retain: choose another task or model"
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
    return curve_row(update, temperature, rollouts, figures, config.reward.assignment), len(rollouts.weights)


def _collect(run: Run, state: TrainingState, source: BlockSource, temperature: float, purpose: str) -> Rollouts:
    """The update's rollouts; ``purpose`` distinguishes their random streams from others of the same update."""
    config, adapter, update = run.config, run.request.adapter, state.update
    shard = source.shard(update % len(source))
    policy = SamplingPolicy(
        state.actor,
        run.trained.keep_counts,
        temperature,
        state.thresholds,
        config.rollouts_per_image,
        ImageDraws(
            run.request.seed, ("toprl", purpose, update), shard.part, config.rollouts_per_image, adapter.visual_tokens
        ),
    )
    with run.processes.collective_errors():
        block = source.for_update(update, looks_at_question(policy.needs))
    return collect(adapter, block, policy, state.critic, run.plan.stage_layers, config, shard)


def _initial_thresholds(run: Run, state: TrainingState, source: BlockSource, temperature: float) -> tuple[float, ...]:
    """Each stage's mean threshold over the first images: with it, the policy starts at the scheduled keep counts."""
    rollouts = _collect(run, state, source, temperature, "calibration")
    found = [record.threshold.double() for record in rollouts.stages]
    sums = torch.stack([torch.stack([each.sum(), torch.ones_like(each).sum()]) for each in found])  # [T, 2]
    return tuple((total / count) for total, count in run.processes.all_reduce(sums).tolist())
