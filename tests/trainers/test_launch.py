"""The command form that starts several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port 0 --module toprl_export.cli.main"
)

ENDING = """
import atexit, os, sys

def group_threads():
    names = [open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")]
    return [name for name in names if "gloo" in name]

atexit.register(lambda: print("threads left:", *group_threads()))  # registered first, so that it is called last
from toprl_export.cli.main import main
code = main(sys.argv[1:])
print("threads of the group:", *group_threads())
sys.exit(code)
"""


def launched(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *LAUNCH.split(), *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_launched_processes_share_an_update_and_speak_once(tmp_path: Path):
    done = launched("train", "--task", "mini-colour", "--dry-run", "--output-dir", str(tmp_path / "agent"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("would train toprl") == 1
    assert "16 images × 8 rollouts" in done.stdout  # twice the recipe's 8
    assert "16 images × 8 rollouts" not in done.stderr


@pytest.mark.slow
def test_a_mistake_that_all_meet_is_said_once(tmp_path: Path):
    done = launched(
        "train", "--task", "mini-colour", "--dry-run", "--budget-kept", "600", "--output-dir", str(tmp_path / "agent")
    )
    assert done.returncode != 0
    assert done.stderr.count("a budget of 600 tokens kept cannot be met") == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed from /proc")
def test_the_threads_of_a_group_end_before_the_interpreter(tmp_path: Path):
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    launch = {"TORCHELASTIC_RUN_ID": "test", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **launch, **rank}
    command = [sys.executable, "-c", ENDING, "train", "--dry-run", "--output-dir", str(tmp_path / "agent")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "threads of the group: gloo_tcp_loop" in done.stdout  # so they would be seen
    assert done.stdout.endswith("threads left:\n")
