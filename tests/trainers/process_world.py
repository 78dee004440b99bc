"""Two processes that train together on the tiny world: what each of them does, and how a test starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.trainers.tiny_world import TASK, request
from toprl_export.errors import UserError
from toprl_export.trainer import TrainRequest
from toprl_trainers.rl.processes import SINGLE_PROCESS, Processes, ReportedByMainProcess, launched_processes
from toprl_trainers.toprl.data import BlockSource
from toprl_trainers.toprl.learn import TrainingState, learn
from toprl_trainers.toprl.run import Run
from toprl_trainers.toprl.trainer import TOPRLTrainer

COUNT = 2
IMAGES = 21
"""Batches of 8, 8 and 5: the last cannot be divided evenly."""

LEARNING_RATE = 2e-4
"""Small, because Adam's steps do not shrink with the gradient: rounding in one that is nearly zero is blown up."""


def wanted(
    weights: Path, folder: Path, per_update: int, updates: int = 3, threshold: str = "per-image", **changes: object
) -> TrainRequest:
    """A run whose minibatches are so small that some hold images of one process only."""
    planned = request(weights, folder, updates, **changes)
    recipe = Path(str(planned.recipe))
    content = yaml.safe_load(recipe.read_text())
    content["settings"] |= {
        "images": IMAGES,
        "images_per_update": per_update,
        "minibatches": 4,
        "learning_rate": LEARNING_RATE,
        "threshold": threshold,
    }
    recipe.write_text(yaml.safe_dump(content))
    return planned


def learned(planned: TrainRequest, processes: Processes = SINGLE_PROCESS) -> dict[str, torch.Tensor]:
    """Actor, critic and curves after the updates."""
    run = Run.of(planned, processes)
    state = TrainingState.fresh(run.actor_config, run.config.learning_rate, planned.seed, planned.adapter.device)
    per_block = processes.count * run.config.images_per_update
    learn(run, state, BlockSource(planned.adapter, TASK, planned.seed, 0, IMAGES, per_block, processes=processes))
    tensors = {f"actor.{name}": tensor.clone() for name, tensor in state.actor.state_dict().items()}
    tensors |= {f"critic.{name}": tensor.clone() for name, tensor in state.critic.state_dict().items()}
    return {**tensors, "curves": torch.tensor(state.curves, dtype=torch.float64)}


def start(folder: Path, weights: Path) -> list[int | None]:
    """Run `member` in two processes and return their exit codes; what they found is in ``folder``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    members = [context.Process(target=member, args=(index, port, folder, weights)) for index in range(COUNT)]
    for each in members:
        each.start()
    for each in members:
        each.join()
    return [each.exitcode for each in members]


def member(index: int, port: int, folder: Path, weights: Path) -> None:
    """One of the processes: sets the environment that a launcher sets, then runs one case after the other."""
    os.environ.update(
        RANK=str(index),
        LOCAL_RANK=str(index),
        WORLD_SIZE=str(COUNT),
        LOCAL_WORLD_SIZE=str(COUNT),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    processes = launched_processes()
    assert (processes.index, processes.count) == (index, COUNT)
    for threshold in ("per-image", "initial"):
        save_file(
            learned(wanted(weights, folder / f"run-{index}", 4, threshold=threshold), processes),
            folder / f"{threshold}-{index}.safetensors",
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Processes, "all_reduce_gradients", lambda self, parameters, figures: figures)
        unsummed = learned(wanted(weights, folder / f"run-{index}", 4), processes)
    save_file(unsummed, folder / f"unsummed-{index}.safetensors")
    _write_agents(processes, folder, weights)
    _fail(processes, folder, weights)
    if index == 1:
        os._exit(9)
    note(folder / "lost-0.txt", lambda: processes.all_reduce(torch.ones(1)))


def _write_agents(processes: Processes, folder: Path, weights: Path) -> None:
    """One agent without interruption, and one whose run ends after its first checkpoint and goes on."""
    index, trainer = processes.index, TOPRLTrainer(processes)
    for name in ("whole", "broken"):
        if processes.main:
            wanted(weights, folder / name, 4, updates=4)
    torch.distributed.barrier()

    def run(name: str) -> None:
        planned = wanted(weights, folder / f"run-{index}", 4, updates=4, output_dir=folder / name / "agent")
        outcome = trainer.train(planned)
        (folder / f"summary-{name}-{index}.txt").write_text(outcome.summary)

    run("whole")
    real = TrainingState.save

    def full_disk(self: TrainingState, path: Path, digest: str) -> None:
        real(self, path, digest)
        raise UserError("no space left on the disk, raised by the test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "save", full_disk)
        note(folder / f"full-{index}.txt", lambda: run("broken"))
    run("broken")


def _fail(processes: Processes, folder: Path, weights: Path) -> None:
    index = processes.index

    def refuse(*_: object) -> None:
        raise UserError("NaN reward, raised by the test")

    with pytest.MonkeyPatch.context() as patch:
        if index == 1:
            patch.setattr("toprl_trainers.toprl.update.stage_rewards", refuse)
        note(folder / f"reward-{index}.txt", lambda: learned(wanted(weights, folder / f"run-{index}", 4), processes))
    other = wanted(weights, folder / f"run-{index}", 4, seed=index, output_dir=folder / "never")
    note(folder / f"other-{index}.txt", lambda: TOPRLTrainer(processes).train(other))


def note(file: Path, action) -> None:
    """Write to ``file`` how ``action`` ended."""
    try:
        action()
        file.write_text("well")
    except UserError as error:
        file.write_text(f"error: {error}")
    except ReportedByMainProcess as end:
        file.write_text(f"silent {end.code}")
