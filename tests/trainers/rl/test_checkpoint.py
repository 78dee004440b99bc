"""Checkpoints: what is written comes back, optimizer moments included, and another format is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from toprl_export.errors import UserError
from toprl_trainers.rl.checkpoint import (
    load_optimizer,
    optimizer_tensors,
    read_checkpoint_header,
    read_tensors,
    with_prefix,
    without_prefix,
    write_checkpoint,
)


@dataclass(frozen=True)
class Header:
    format: Literal["toprl-export/test-training"] = field(default="toprl-export/test-training", kw_only=True)
    version: Literal[3] = field(default=3, kw_only=True)
    digest: str


@dataclass(frozen=True)
class OtherHeader:
    format: str
    version: int
    digest: str = "abc"


@dataclass(frozen=True)
class Headless:
    digest: str = "abc"


def stepped(steps: int) -> torch.optim.Adam:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for step in range(steps):
        weight.grad = torch.tensor([0.5, float(step)])
        optimizer.step()
    return optimizer


def test_header_and_moments_come_back(tmp_path: Path):
    path, optimizer = tmp_path / "checkpoint.safetensors", stepped(2)
    write_checkpoint(path, Header("abc"), with_prefix("adam", optimizer_tensors(optimizer)))
    fresh = stepped(0)
    load_optimizer(fresh, without_prefix("adam", read_tensors(path)))
    assert read_checkpoint_header(Header, path) == Header("abc")
    (ours,), (theirs,) = (each.state_dict()["state"].values() for each in (fresh, optimizer))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (OtherHeader("toprl-export/other", 3), "format is 'toprl-export/other', expected 'toprl-export/test-training'"),
        (OtherHeader("toprl-export/test-training", 4), "version is 4, expected 3"),
        (Headless(), "lacks format"),
    ],
)
def test_another_learner_or_version_is_refused(tmp_path: Path, other: Any, message: str):
    path = tmp_path / "checkpoint.safetensors"
    write_checkpoint(path, other, {"curves": torch.zeros(1)})
    with pytest.raises(UserError, match=f"{message}: delete it to start over"):
        read_checkpoint_header(Header, path)


def test_a_damaged_file_is_one_clear_line(tmp_path: Path):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not a checkpoint")
    for read in (lambda path: read_checkpoint_header(Header, path), read_tensors):
        with pytest.raises(UserError, match=r"does not hold an interrupted run \("):
            read(path)
