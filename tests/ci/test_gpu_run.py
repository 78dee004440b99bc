"""ci/gpu.sh as a whole: one check's crash costs the others nothing, and its report says what happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from ci.gpu import __main__ as gpu
from ci.gpu.machine import write_distribution
from ci.gpu.plan import Check
from ci.gpu.process import run_supervised
from ci.gpu.report import load_report

ROOT = Path(__file__).parents[2]


def checks(**targets: str) -> dict[str, Check]:
    return {name: Check(f"tests.support.gpu_checks:{target}", 60) for name, target in targets.items()}


def run(tmp_path: Path, found: dict[str, Check], *flags: str) -> int:
    return gpu.main([str(tmp_path / "out"), "--device", "cpu", "--quick", *flags], found)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "probe", lambda environment: {"python": "3"})


def test_a_crash_and_a_failure_lose_neither_what_came_before_nor_what_comes_after(tmp_path):
    code = run(tmp_path, checks(crash="killed", failing="mixed", packages="needs_a_package", last="fine"))
    report = load_report(tmp_path / "out" / "report.json")
    crash, failing, packages, last = report.checks
    assert code == 1
    assert (crash.status, crash.why) == ("failed", "its process ended with SIGKILL")
    assert [(case.name, dict(case.figures)) for case in crash.cases] == [("before", {"value": 1.0})]
    assert failing.status == "finished"
    assert [(case.name, case.status) for case in failing.cases] == [
        ("raises", "failed"), ("wrong", "failed"), ("after", "ok"),
    ]  # fmt: skip
    assert "ZeroDivisionError" in failing.cases[0].why
    assert packages.cases[0].status == "not run"
    assert "a_package_that_nobody_has" in packages.cases[0].why
    assert [case.status for case in last.cases] == ["ok", "not run"]
    assert "this machine has no such thing" in (tmp_path / "out" / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log.txt", "report.json", "report.md"]


def test_what_cannot_run_is_no_failure(tmp_path):
    assert run(tmp_path, checks(one="fine", two="needs_a_package")) == 0


def test_only_the_named_checks_run_and_an_unknown_one_is_refused(tmp_path, capsys):
    found = checks(one="fine", two="mixed")
    assert run(tmp_path, found, "--only", "one") == 0
    assert [check.name for check in load_report(tmp_path / "out" / "report.json").checks] == ["one"]
    with pytest.raises(SystemExit):
        run(tmp_path, found, "--only", "three")
    assert "unknown check 'three'" in capsys.readouterr().err


def test_a_check_that_does_not_end_is_stopped_with_its_children(tmp_path):
    command = [sys.executable, "-m", "ci.gpu.process", "tests.support.gpu_checks:endless", "--device", "cpu"]
    command += ["--cases", str(tmp_path / "cases.jsonl"), "--scratch", str(tmp_path), "--seconds", "3"]
    environment, seconds = {**os.environ, "PYTHONPATH": str(ROOT)}, 5.0
    result = run_supervised("endless", command, ROOT, environment, seconds, tmp_path)
    # A machine so busy that Python took longer to start.
    while result.status == "out of time" and "in endless" not in result.log and seconds < 300:
        seconds *= 2
        result = run_supervised("endless", command, ROOT, environment, seconds, tmp_path)
    assert result.status == "out of time"
    assert "in endless" in result.log, "where it was when its time was over"
    child = Path(f"/proc/{result.cases[-1].figures['pid']:.0f}/stat")
    for _ in range(100):
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child outlived its check")


def test_without_a_gpu_nothing_is_run_and_the_report_says_why(tmp_path, capsys):
    code = gpu.main([str(tmp_path / "out")], checks(one="mixed"))
    (check,) = load_report(tmp_path / "out" / "report.json").checks
    assert code == 2
    assert (check.status, check.cases) == ("not run", ())
    assert "use a CUDA machine" in capsys.readouterr().err


def test_full_shapes_on_a_cpu_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main([str(tmp_path / "out"), "--device", "cpu"], checks(one="fine"))
    assert ended.value.code == 2
    assert "add --quick" in capsys.readouterr().err


def test_a_check_for_which_no_time_is_left_is_not_run(tmp_path):
    assert run(tmp_path, checks(one="mixed"), "--seconds", "0") == 0
    (check,) = load_report(tmp_path / "out" / "report.json").checks
    assert (check.status, check.why) == ("not run", "no time was left for it")


def test_entry_points_are_found_without_installing(tmp_path):
    write_distribution(ROOT / "pyproject.toml", tmp_path)
    (found,) = metadata.distributions(path=[str(tmp_path)])
    engines = {point.name: point.value for point in found.entry_points if point.group == "toprl_export.engines"}
    assert found.name == "toprl-export"
    assert engines["onnx"] == "toprl_engines.ort.engine:ONNXRuntimeEngine"


def test_the_script_takes_the_directory_first_and_explains_itself(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    shown = subprocess.run(
        ["bash", str(ROOT / "ci" / "gpu.sh"), "--help"], env=environment, capture_output=True, text=True, check=True
    )
    assert "--quick" in shown.stdout
    ran = subprocess.run(
        ["bash", str(ROOT / "ci" / "gpu.sh"), "out", "--device", "cpu", "--quick", "--seconds", "0"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["format"] == "toprl-export/gpu-report"
