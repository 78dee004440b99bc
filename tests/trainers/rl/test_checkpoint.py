"""Checkpoints: what is written comes back, optimizer moments included, and another format is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from toprl_export.errors import UserError
from toprl_trainers.rl.checkpoint import (
    CheckpointFormat,
    load_optimizer,
    optimizer_tensors,
    read_tensors,
    with_prefix,
    without_prefix,
)

FORMAT = CheckpointFormat("toprl-export/test-training", 3)


def stepped(steps: int) -> torch.optim.Adam:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for step in range(steps):
        weight.grad = torch.tensor([0.5, float(step)])
        optimizer.step()
    return optimizer


def test_header_and_moments_come_back(tmp_path: Path):
    path, optimizer = tmp_path / "checkpoint.safetensors", stepped(2)
    FORMAT.write(path, {"digest": "abc"}, with_prefix("adam", optimizer_tensors(optimizer)))
    fresh = stepped(0)
    load_optimizer(fresh, without_prefix("adam", read_tensors(path)))
    assert FORMAT.read_header(path).text("digest") == "abc"
    (ours,), (theirs,) = (each.state_dict()["state"].values() for each in (fresh, optimizer))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("other", [CheckpointFormat("toprl-export/other", 3), CheckpointFormat(FORMAT.name, 4)])
def test_another_learner_or_version_is_refused(tmp_path: Path, other: CheckpointFormat):
    path = tmp_path / "checkpoint.safetensors"
    other.write(path, {}, {"curves": torch.zeros(1)})
    with pytest.raises(UserError, match="expected 'toprl-export/test-training' version 3: delete it to train anew"):
        FORMAT.read_header(path)


def test_a_damaged_file_is_one_clear_line(tmp_path: Path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not a checkpoint")
    for read in (FORMAT.read_header, read_tensors):
        with pytest.raises(UserError, match=r"does not hold an interrupted run \("):
            read(path)
