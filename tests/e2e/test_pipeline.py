"""The whole way on the embedded model, through the command line as a user types it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import toprl_export
from toprl_export.tasks.registry import TASKS
from toprl_export.validation.report import read_report

COMMAND = [sys.executable, "-c", "from toprl_export.cli.main import main; raise SystemExit(main())"]
TASK = "mini-colour"


def toprl(*arguments: str | Path, expect: int = 0) -> str:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout if expect == 0 else done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A briefly trained agent, the bundle built from it, and a held-out picture."""
    root = tmp_path_factory.mktemp("pipeline")
    toprl("train", "--task", TASK, "--updates", "6", "--limit", "24", "--output-dir", root / "agent")
    toprl("build", "--agent", root / "agent", "--budget-kept", "192,64", "--output-dir", root / "bundle")
    sample = TASKS.get(TASK).sample("held-out", 0, 0)
    Image.fromarray(sample.image).save(root / "picture.png")
    (root / "question.txt").write_text(sample.question)
    return root


def test_validate_reports_what_it_measured(folder: Path):
    report_dir = folder / "report"
    table = toprl("validate", folder / "bundle", "--limit", "24", "--iterations", "2", "--warmup", "1",
                  "--min-questions", "1", "--min-retention", "0.1", "--report-dir", report_dir)  # fmt: skip
    report = read_report(report_dir / "report.json")
    assert report.verdict == "passed" and "verdict: passed" in table
    assert [one.budget_kept for one in report.budgets] == [192, 64]
    for one in report.budgets:
        assert min(one.parity.kept_overlap_per_stage) == 1.0
        assert one.accuracy.engine.n == 24 and one.accuracy.engine.value == one.accuracy.pruned_reference.value
        assert one.flops.graph < one.flops.graph_unpruned
    assert (report_dir / "report.html").is_file() and (report_dir / "junit.xml").is_file()
    (stamp,) = json.loads((folder / "bundle" / "manifest.json").read_text())["validations"]
    assert (stamp["task"], stamp["verdict"]) == (report.task, "passed")


def test_a_gate_that_is_not_met_fails_with_exit_code_1(folder: Path, tmp_path: Path):
    bundle = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    toprl(
        "validate",
        bundle,
        "--limit",
        "8",
        "--iterations",
        "1",
        "--warmup",
        "0",
        "--min-questions",
        "1",
        "--min-retention",
        "5",
        expect=1,
    )
    assert read_report(tmp_path / "bundle-report" / "report.json").verdict == "failed"


def test_run_answers_as_the_python_api_does(folder: Path):
    question = (folder / "question.txt").read_text()
    printed = toprl(
        "run", folder / "bundle", "--image", folder / "picture.png", "--prompt", question, "--budget-kept", "64"
    )
    loaded = toprl_export.load(folder / "bundle")
    answer = loaded.generate(folder / "picture.png", question, budget_kept=64)
    assert printed.strip() == answer.answers[0]
    assert [kept.shape[1] for kept in answer.kept] == list(loaded.bundle.keep_counts(64))
    unpruned = loaded.generate(folder / "picture.png", question, budget_kept=576)
    assert unpruned.answers[0] == TASKS.get(TASK).sample("held-out", 0, 0).answer


def test_a_changed_byte_is_refused(folder: Path, tmp_path: Path):
    bundle = shutil.copytree(folder / "bundle", tmp_path / "bundle")
    weights = bundle / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    message = toprl("run", bundle, "--image", folder / "picture.png", "--prompt", "what?", expect=2)
    assert message.startswith("error: ") and "weights.bin" in message and message.count("\n") == 1


def test_an_interrupted_training_leaves_nothing_half_written(tmp_path: Path):
    target = tmp_path / "agent"
    process = subprocess.Popen(
        [*COMMAND, "train", "--task", TASK, "--output-dir", str(target)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in messages
    assert not target.exists()
