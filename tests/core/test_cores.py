"""Threads and processes are bounded, by every way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toprl_export.analysis.study import Scope
from toprl_export.cli.main import main
from toprl_export.comparison.request import CompareRequest
from toprl_export.cores import FEWEST, PER_CORE, check_parallel
from toprl_export.engine import SessionOptions
from toprl_export.errors import UserError
from toprl_export.trainer import train
from toprl_export.validation.bench import ValidationOptions

MOST = max(PER_CORE * (os.cpu_count() or 1), FEWEST)


@pytest.mark.parametrize("count", [0, -1, MOST + 1, 10_000, True, 1.5, "2"])
def test_impossible_numbers_are_refused(count: object):
    with pytest.raises(UserError, match=f"expected a whole number from 1 to {MOST} on this machine"):
        check_parallel("threads", count)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [None, 1, MOST])
def test_possible_numbers_are_taken(count: int | None):
    check_parallel("threads", count)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: SessionOptions(threads=10_000),
        lambda: ValidationOptions(threads=10_000),
        lambda: CompareRequest(Path("c"), threads=10_000),
        lambda: CompareRequest(Path("c"), jobs=10_000),
        lambda: Scope(Path("a"), jobs=10_000),
        lambda: train(threads=10_000),
    ],
)
def test_every_way_of_python_refuses_them(ask):
    with pytest.raises(UserError, match="is 10000, expected a whole number"):
        ask()


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--threads"],
        ["validate", "b", "--threads"],
        ["compare", "--threads"],
        ["compare", "--jobs"],
        ["run", "b", "--image", "i", "--prompt", "p", "--threads"],
        ["visualize", "--agent", "a", "--output", "o.png", "--threads"],
        ["analyze", "cliff", "--jobs"],
    ],
)
def test_every_command_refuses_them(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*command, "10000"]) == 2
    assert "10000, expected a whole number" in capsys.readouterr().err
