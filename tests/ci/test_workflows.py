"""The workflows call scripts that exist, and upload an engine only behind its gates."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from toprl_export.tasks.registry import TASKS

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ENGINES = ROOT / ".github" / "workflows" / "engines.yml"


def jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["jobs"]


def every_job() -> list[Any]:
    return [pytest.param(job, id=f"{path.stem}-{name}") for path in WORKFLOWS for name, job in jobs(path).items()]


def matrix(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the job's matrix; one empty one without a matrix."""
    axes = job.get("strategy", {}).get("matrix", {})
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def expand(text: str, chosen: dict[str, Any]) -> str:
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: str(chosen[found.group(1)]), text)


def commands(job: dict[str, Any]) -> Iterator[list[str]]:
    for step in job["steps"]:
        if "run" in step:
            for chosen in matrix(job):
                yield shlex.split(expand(step["run"], chosen))


def uploads(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for step in job["steps"] if step.get("uses", "").startswith("actions/upload-artifact")]


def test_there_is_a_workflow_for_the_cpu_and_one_for_engines():
    assert [path.stem for path in WORKFLOWS] == ["cpu", "engines"]


@pytest.mark.parametrize("job", every_job())
def test_every_run_is_one_call_of_a_script_that_exists(job):
    found = list(commands(job))
    assert found
    for command in found:
        assert command[0] == "bash"
        assert command[1].startswith("ci/")
        assert (ROOT / command[1]).is_file()
        assert not set(command) & {";", "&&", "||", "|"}


@pytest.mark.parametrize("job", every_job())
def test_actions_are_pinned_by_their_major_version(job):
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)


def test_the_cpu_workflow_lints_and_tests():
    called = {command[1] for job in jobs(WORKFLOWS[0]).values() for command in commands(job)}
    assert {"ci/lint.sh", "ci/test.sh"} <= called


def test_engines_of_several_tasks_budgets_and_engines_are_built_on_cpu_and_gpu():
    found = jobs(ENGINES)
    calls = {name: [command[2:5] for command in commands(job)] for name, job in found.items() if "engine" in str(job)}
    assert {engine for *_, engine in calls["onnx-cpu"]} == {"onnx"}
    assert {engine for *_, engine in calls["gpu"]} == {"onnx", "trt"}
    assert "self-hosted" in found["gpu"]["runs-on"]
    for call in (*calls["onnx-cpu"], *calls["gpu"]):
        assert call[0] in TASKS
        assert call[1].isdecimal()
    assert len({call[0] for call in calls["gpu"]}) > 1
    assert len({call[1] for call in calls["gpu"]}) > 1


@pytest.mark.parametrize("name", ["onnx-cpu", "gpu"])
def test_an_engine_is_uploaded_only_behind_its_gates(name):
    """The script's exit code is validate's, a failed step skips the next, and only ``passed`` holds what passed."""
    job = jobs(ENGINES)[name]
    order = [step.get("run") or step.get("uses", "") for step in job["steps"]]
    building = next(index for index, text in enumerate(order) if "ci/engines.sh" in text)
    assert "continue-on-error" not in str(job)
    with_engine = [step for step in uploads(job) if "report" not in step["with"]["path"]]
    assert len(with_engine) == 1
    for step in with_engine:
        assert job["steps"].index(step) > building
        assert "if" not in step or step["if"] == "success()"
        assert step["with"]["path"] == "engines-output/passed"
        assert step["with"]["if-no-files-found"] == "error"


def test_the_script_lets_nothing_into_passed_but_behind_validate():
    text = (ROOT / "ci" / "engines.sh").read_text()
    assert "set -euo pipefail" in text
    assert text.count("toprl-export validate") == 1
    assert text.index("toprl-export validate") < text.index('mv "$work" "$output/$verdict/$name"')
    assert re.search(r"^0\) verdict=passed ;;$", text, re.MULTILINE)


def test_no_workflow_names_a_registry():
    for path in WORKFLOWS:
        assert not re.search(r"https?://", path.read_text()), path
