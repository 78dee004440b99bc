"""ci/engines.sh around a stand-in for toprl-export: what passed, what failed, and what was a mistake."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAND_IN = """#!/usr/bin/env bash
echo "$@" >>"$CALLS"
arguments=("$@")
for index in "${!arguments[@]}"; do
    case ${arguments[$index]} in
    --output-dir | --report-dir) mkdir -p "${arguments[$((index + 1))]}"; last=${arguments[$((index + 1))]} ;;
    esac
done
case $1 in
train) touch "$last/agent.json"; exit "${TRAIN:-0}" ;;
build) touch "$last/manifest.json"; exit "${BUILD:-0}" ;;
validate) touch "$last/report.json"; exit "${VALIDATE:-0}" ;;
esac
"""


@pytest.fixture
def engines(tmp_path: Path):
    """Runs the script with exit codes for the stand-in's commands; also gives what was called."""
    stand_in = tmp_path / "bin" / "toprl-export"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    calls = tmp_path / "calls"

    def run(*arguments: str, **codes: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}", "CALLS": str(calls), **codes}
        done = subprocess.run(
            ["bash", str(ROOT / "ci" / "engines.sh"), *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done, calls.read_text().splitlines()

    return run


NAME = "mini-colour-64-onnx-fp32"
CALL = ("mini-colour", "64", "onnx", "out", "--installed")


def test_what_passed_is_in_passed_with_its_report(engines, tmp_path):
    done, calls = engines(*CALL)
    assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in calls] == ["train", "build", "validate"]
    assert "--must-beat-random" in calls[-1]
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.json")}
    kept = {f"passed/{NAME}/engine/manifest.json", f"passed/{NAME}/report/report.json"}
    assert found == {"agents/mini-colour/agent.json", *kept}


def test_what_failed_a_gate_is_not_in_passed_even_after_an_earlier_pass(engines, tmp_path):
    assert engines(*CALL)[0].returncode == 0
    done, calls = engines(*CALL, VALIDATE="1")
    assert done.returncode == 1
    assert [call.split()[0] for call in calls] == ["build", "validate"], "the agent was there"
    assert not any((tmp_path / "out" / "passed").iterdir())
    assert (tmp_path / "out" / "failed" / NAME / "report" / "report.json").exists()


@pytest.mark.parametrize("codes", [{"TRAIN": "2"}, {"BUILD": "2"}, {"VALIDATE": "2"}, {"VALIDATE": "3"}])
def test_a_mistake_or_a_bug_passes_nothing(engines, tmp_path, codes):
    done, _ = engines(*CALL, **codes)
    assert done.returncode == int(next(iter(codes.values())))
    assert not any((tmp_path / "out" / "passed").iterdir())


def test_flags_reach_their_commands(engines, tmp_path):
    flags = (
        "--plugin-library",
        "plugin.so",
        "--updates",
        "3",
        "--precision",
        "bf16",
        "--device",
        "cuda",
        "--",
        "--limit",
        "9",
    )
    done, (train, build, validate) = engines("easy-vqa", "192", "trt", "out", "--installed", *flags)
    assert done.returncode == 0
    assert "--updates 3" in train
    assert "--device cuda" in train
    assert "--engine trt --precision bf16" in build
    assert "--max-batch 16" in build, "as many questions as validate asks at once"
    assert f"--plugin-library {tmp_path / 'plugin.so'}" in build
    assert "--budget-kept 192" in build
    assert "--limit 9" in validate
    assert "--must-beat-random" not in validate, "gates given replace the default ones"


def test_a_given_agent_is_taken_as_it_is(engines, tmp_path):
    (tmp_path / "mine").mkdir()
    _, calls = engines(*CALL, "--agent", "mine")
    assert [call.split()[0] for call in calls] == ["build", "validate"]
    assert f"--agent {tmp_path / 'mine'}" in calls[0]


@pytest.mark.parametrize("arguments", [("mini-colour", "64"), (*CALL, "--fast"), (*CALL, "--precision")])
def test_wrong_arguments_are_one_line_and_exit_2(engines, arguments):
    done, calls = engines(*arguments)
    assert (done.returncode, calls) == (2, [])
    assert len(done.stderr.strip().splitlines()) == 1
    assert "usage:" in done.stderr
