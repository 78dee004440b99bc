"""A training run that kills itself after so many events, for tests of resuming: a process forked from a clean one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

from tests.trainers.tiny_world import request
from toprl_trainers.toprl.learn import learn
from toprl_trainers.toprl.trainer import TOPRLTrainer


class Countdown:
    """Counts every call and return of a Python or built-in function, and kills the process at the last one."""

    def __init__(self, events: int | None) -> None:
        self.last = events
        self.events = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        self.events += 1
        if self.events == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def train(weights: Path, folder: Path, updates: int, events: int | None = None) -> int | None:
    """Train in a process of its own and return its exit code.

    ``events.txt`` in the folder is left with how many events the updates took, and those with all that came after.
    They are counted from the first update on.

    Args:
        weights: of the tiny world.
        folder: where the agent goes.
        updates: of the policy.
        events: after how many to be killed; None to live.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_train, args=(weights, folder, updates, events))
    process.start()
    process.join()
    return process.exitcode


def _train(weights: Path, folder: Path, updates: int, events: int | None) -> None:
    torch.set_num_threads(1)
    countdown, trained = Countdown(events), 0

    def counted(*given: object) -> None:
        nonlocal trained
        sys.setprofile(countdown)
        learn(*given)
        trained = countdown.events

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toprl_trainers.toprl.trainer.learn", counted)
        TOPRLTrainer().train(request(weights, folder, updates))
        sys.setprofile(None)
    (folder / "events.txt").write_text(f"{trained} {countdown.events}")
