"""Flags that only the engine trt knows: how they reach it, who refuses them, and what a dry run prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from tests.support.configurable_engine import ConfigurableEngine
from tests.support.tiny_llava import tiny_adapter
from toprl_export.bundle import load_bundle
from toprl_export.cli.main import main
from toprl_export.registry import Registry

ENGINES = {
    "fake": "tests.support.fake_engine:FakeEngine",
    "trt": "tests.support.configurable_engine:ConfigurableEngine",
}


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that builds the tiny model's bundle for an engine with options of its own."""
    adapter = tiny_adapter()
    monkeypatch.setattr("toprl_export.engine.ENGINES", Registry("engine", ENGINES))
    monkeypatch.setattr("toprl_export.building.load_model", lambda *_: adapter)
    monkeypatch.setattr(ConfigurableEngine, "builds", 0)
    monkeypatch.chdir(tmp_path)
    save_tiny_agent(tmp_path / "agents" / "mini-exist", adapter)
    return ["build", "--model", "tiny", "--engine", "trt", "--agent", "agents/mini-exist", "--output-dir", "out"]


def test_options_reach_the_engine_and_the_manifest(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    given = ["--attention", "plugin", "--tensorrt-binding", "tensorrt", "--max-batch", "8", "--refittable"]
    assert main([*arguments, *given]) == 0
    details = load_bundle(Path("out")).manifest.engine.details
    assert (details["binding"], details["attention"], details["gpu"]) == ("tensorrt", "plugin", None)


def test_equal_options_are_a_cache_hit_and_others_are_not(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--max-batch", "8"]) == 0
    assert main([*arguments, "--max-batch", "8"]) == 0
    # What the engine would have chosen anyway is no other build.
    assert main([*arguments, "--max-batch", "8", "--tensorrt-binding", "tensorrt_rtx"]) == 0
    assert ConfigurableEngine.builds == 1
    assert main([*arguments, "--max-batch", "4"]) == 2
    assert "already holds an earlier result" in capsys.readouterr().err


def test_a_rebuild_is_told_of_the_bundle_that_it_replaces(arguments: list[str]):
    assert main([*arguments, "--max-batch", "8"]) == 0
    assert ConfigurableEngine.earlier is None
    assert main([*arguments, "--max-batch", "4", "--overwrite"]) == 0
    assert ConfigurableEngine.earlier == Path("out").resolve()


def test_a_dry_run_prints_the_plan_of_the_build(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--workspace-gib", "1.5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "  binding    tensorrt_rtx 1.7.1, no GPU here",
        "  attention  native",
        "  flags      STRONGLY_TYPED",
        "  workspace  1.5 GiB",
        "  decode",
        "    key_0 to value_0  1×2 … 1×3 … 4×9",
        "    keep_counts       3,2 … 8,4 … 25,25",
    ):
        assert line in printed.splitlines()
    assert main([*arguments, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plans"]["profiles"]["decode"][2]["max"] == [25, 25]
    assert not Path("out").exists()


def test_another_engine_has_no_plans_in_its_dry_run(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--engine", "fake", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"] is None


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            ["--engine", "fake", "--max-batch", "8", "--refittable"],
            "the engine 'fake' does not know --max-batch, --refittable: leave that out, or use --engine trt",
        ),
        (["--engine", "fake", "--attention", "native"], "does not know --attention: leave that out"),
        (["--attention", "flash"], "unknown value of --attention 'flash'; known: plugin, native"),
        (["--max-text", "0"], "--max-text: 0 is not in the range x>=1"),
        (["--workspace-gib", "-1"], "--workspace-gib is -1.0, expected a number above 0"),
        (["--target-sm", "8.9,90"], "--target-sm is '90', expected a compute capability such as 8.9"),
        (["--attention", "native", "--plugin-library", "a.so"], "--plugin-library is for --attention plugin"),
        (["--plugin-library", "nowhere.so"], "the plugin library nowhere.so does not exist: build it with"),
    ],
)
def test_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str], extra: list[str], expected: str):
    assert main([*arguments, *extra]) == 2
    printed = capsys.readouterr().err
    assert expected in printed.splitlines()[-1] and "Traceback" not in printed
    assert not Path("out").exists()


def test_flags_may_stand_in_a_configuration_file(arguments: list[str], tmp_path: Path):
    Path("build.yaml").write_text("attention: plugin\nmax-batch: 2\nrefittable: true\ntarget-sm: [8.9, 12.0]\n")
    assert main([*arguments, "--config", "build.yaml"]) == 0
    assert load_bundle(Path("out")).manifest.engine.details["attention"] == "plugin"
