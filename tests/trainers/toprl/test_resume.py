"""A run that is killed goes on, and ends with the same bits as one that was not."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainers.mortal import train
from tests.trainers.tiny_world import request
from toprl_export.errors import UserError
from toprl_export.pruning.actor import ActorConfig
from toprl_trainers.rl.checkpoint import read_checkpoint_header, read_tensors, write_checkpoint
from toprl_trainers.toprl.learn import TrainingState
from toprl_trainers.toprl.run import CheckpointHeader, Run
from toprl_trainers.toprl.trainer import TOPRLTrainer

UPDATES = 16
KILLS = 10


def updates_done(checkpoint: Path) -> int:
    return len(load_file(checkpoint)["curves"]) if checkpoint.is_file() else 0


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed_equals_undisturbed(weights: Path, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(weights, whole, UPDATES) == 0
    learned, events = map(int, (whole / "events.txt").read_text().split())

    checkpoint = Run.of(request(weights, broken, UPDATES)).checkpoint
    moments = random.Random(5)
    reached = [0]
    for kill in range(KILLS):
        # The last two may also come while the agent is validated and written.
        moment = moments.randrange(1, learned // 3 if kill < KILLS - 2 else events // 2)
        assert train(weights, broken, UPDATES, moment) == -signal.SIGKILL
        assert not (broken / "agent").exists()
        reached.append(updates_done(checkpoint))
    assert reached == sorted(reached) and len(set(reached)) > 3  # it went on from several states
    assert train(weights, broken, UPDATES) == 0

    for name in ("actor.safetensors", "critic.safetensors"):
        ours, theirs = (load_file(folder / "agent" / name) for folder in (broken, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (broken / "agent" / "curves.csv").read_text() == (whole / "agent" / "curves.csv").read_text()
    assert not checkpoint.exists()


@pytest.mark.slow
def test_the_comparison_would_notice_a_lost_moment(weights: Path, tmp_path: Path):
    """The control: zeroed Adam moments in the checkpoint end in other weights."""
    whole = request(weights, tmp_path / "whole", 6)
    TOPRLTrainer().train(whole)
    broken = request(weights, tmp_path / "broken", 6)
    checkpoint = Run.of(broken).checkpoint
    interrupt_at(broken, 4)
    header = read_checkpoint_header(CheckpointHeader, checkpoint)
    tensors = {name: t * 0 if name.endswith("exp_avg") else t for name, t in read_tensors(checkpoint).items()}
    write_checkpoint(checkpoint, header, tensors)
    TOPRLTrainer().train(broken)
    ours, theirs = (load_file(each.output_dir / "actor.safetensors") for each in (broken, whole))
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours)


def interrupt_at(wanted, updates: int) -> None:
    """Leave the checkpoint of a run that was interrupted after ``updates`` updates."""

    class Interrupted(Exception):
        pass

    real_save = TrainingState.save

    def save_then_stop(self: TrainingState, path: Path, digest: str) -> None:
        real_save(self, path, digest)
        if self.update >= updates:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingState, "save", save_then_stop)
        TOPRLTrainer().train(wanted)


def metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_an_interrupted_run_of_other_settings_is_not_taken_over(weights: Path, tmp_path: Path):
    interrupt_at(request(weights, tmp_path, 6), 2)
    checkpoint = Run.of(request(weights, tmp_path, 6)).checkpoint
    with pytest.raises(UserError, match="interrupted run of other settings"):
        TOPRLTrainer().train(request(weights, tmp_path, 6, seed=7))
    with pytest.raises(UserError, match="interrupted run of other settings"):
        TOPRLTrainer().train(request(weights, tmp_path, 6, seed=7, resume=True, overwrite=True))
    assert not Run.of(request(weights, tmp_path, 6, seed=7, overwrite=True)).resumes()
    assert not Run.of(request(weights, tmp_path, 6, resume=False)).resumes()
    assert Run.of(request(weights, tmp_path, 6)).resumes()
    assert checkpoint.is_file()


def test_resume_without_anything_to_resume(weights: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no interrupted run"):
        TOPRLTrainer().train(request(weights, tmp_path, 6, resume=True))


@pytest.mark.parametrize("damage", ["cut", "other", "version"])
def test_a_damaged_checkpoint_is_one_clear_line(weights: Path, tmp_path: Path, damage: str):
    interrupt_at(request(weights, tmp_path, 6), 2)
    checkpoint = Run.of(request(weights, tmp_path, 6)).checkpoint
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    else:
        header = metadata(checkpoint)["toprl_export"].replace('"version": 1', '"version": 9')
        content = {"toprl_export": header} if damage == "version" else None
        save_file(load_file(checkpoint), checkpoint, content)
    with pytest.raises(UserError, match=r"delete it to start over|make the file again"):
        TOPRLTrainer().train(request(weights, tmp_path, 6))
    assert not Run.of(request(weights, tmp_path, 6, overwrite=True)).resumes()
    with pytest.raises(UserError):
        Run.of(request(weights, tmp_path, 6, overwrite=True, resume=True)).resumes()


def test_nothing_learned_is_lost_when_validation_is_interrupted(weights: Path, tmp_path: Path):
    wanted = request(weights, tmp_path, 3)  # a checkpoint every 2 updates
    checkpoint = Run.of(wanted).checkpoint

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("toprl_trainers.toprl.trainer.validate_agent", interrupted)
        TOPRLTrainer().train(wanted)
    saved = load_file(checkpoint)
    assert len(saved["curves"]) == 3
    assert TOPRLTrainer().train(wanted).status == "trained"
    actor = load_file(wanted.output_dir / "actor.safetensors")
    assert all(torch.equal(tensor, saved[f"actor.{name}"]) for name, tensor in actor.items())
    assert not checkpoint.exists()


def test_fresh_networks_leave_every_global_generator_alone(monkeypatch: pytest.MonkeyPatch):
    reseeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    before = torch.get_rng_state()
    config = ActorConfig(8, 4, 2)
    first, again, other = (TrainingState.fresh(config, 0.1, seed, torch.device("cpu")) for seed in (0, 0, 1))
    assert not reseeded
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.actor.head.weight, again.actor.head.weight)
    assert not torch.equal(first.actor.head.weight, other.actor.head.weight)
