"""What engines bring to build, doctor, inspect and --provider: how it gets there, and who refuses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from tests.support.engine_command_line import ConfigurableFakeEngine, FakeOptions
from tests.support.fake_engine import made_up_bundle
from tests.support.tiny_llava import tiny_adapter
from toprl_export.bundle import write_manifest
from toprl_export.cli.main import main

pytestmark = pytest.mark.usefixtures("engine_command_lines")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that builds the tiny model's bundle for an engine with options of its own."""
    adapter = tiny_adapter()
    monkeypatch.setattr("toprl_export.building.load_model", lambda *_: adapter)
    monkeypatch.setattr(ConfigurableFakeEngine, "builds", 0)
    monkeypatch.setattr(ConfigurableFakeEngine, "told", None)
    monkeypatch.chdir(tmp_path)
    save_tiny_agent(tmp_path / "agents" / "mini-exist", adapter)
    return [
        "build",
        "--model",
        "tiny",
        "--engine",
        "configurable",
        "--agent",
        "agents/mini-exist",
        "--output-dir",
        "out",
    ]


def test_options_reach_the_engine(arguments: list[str]):
    assert main([*arguments, "--tiles", "8", "--no-fused"]) == 0
    assert ConfigurableFakeEngine.told == FakeOptions(tiles=8, fused=False)


def test_equal_options_are_a_cache_hit_and_others_are_not(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 0
    assert main([*arguments, "--tiles", "4"]) == 0  # what the engine takes by itself
    assert ConfigurableFakeEngine.builds == 1
    assert main([*arguments, "--tiles", "2"]) == 2
    assert "already holds an earlier result" in capsys.readouterr().err


def test_a_dry_run_prints_what_the_engine_would_do(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--tiles", "6", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  tiles      6"
    assert main([*arguments, "--tiles", "6", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"] == {"tiles": 6}
    assert main([*arguments, "--engine", "fake", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"] is None
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            ["--engine", "fake", "--tiles", "4", "--no-fused"],
            "the engine 'fake' does not know --tiles, --fused: leave that out, or use --engine configurable",
        ),
        (["--engine", "fakes", "--tiles", "8"], "unknown engine 'fakes'; did you mean 'fake'?"),
        (["--tiles", "3"], "--tiles is 3, expected an even number"),
        (["--tiles", "x"], "--tiles: 'x' is not a valid integer"),
        (["--tile", "8"], "unknown option --tile; did you mean --tiles?"),
    ],
)
def test_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str], extra: list[str], expected: str):
    assert main([*arguments, *extra]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and expected in printed
    assert not Path("out").exists()


def test_options_may_stand_in_a_configuration_file(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    Path("build.yaml").write_text("tiles: 8\nfused: true\n")
    assert main([*arguments, "--config", "build.yaml"]) == 0
    assert ConfigurableFakeEngine.told == FakeOptions(tiles=8, fused=True)
    assert main([*arguments, "--config", "build.yaml", "--engine", "fake"]) == 2
    assert "does not know --tiles, --fused" in capsys.readouterr().err
    Path("build.yaml").write_text("wide: false\n")  # which is as if the line were not there
    assert main([*arguments, "--config", "build.yaml", "--engine", "fake", "--output-dir", "other"]) == 0


def test_help_has_a_section_for_every_engine(capsys: pytest.CaptureFixture[str]):
    assert main(["build", "--help"]) == 0
    printed = capsys.readouterr().out
    headings = [line for line in printed.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[2:5] == ["Engine:", "Fake (--engine configurable):", "Output:"]
    assert "--tiles N" in printed and "how many tiles (default: 4)" in printed


def test_doctor_asks_the_engines(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "fake 1.2.3: --provider here, there" in printed
    assert any(line.startswith("broken: engine's command line 'broken' cannot be loaded") for line in printed)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["diagnoses"] == {"configurable": {"version": "1.2.3"}} and list(found["problems"]) == ["broken"]


def test_inspect_asks_the_engine_about_its_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bundle = made_up_bundle(tmp_path / "bundle")
    for name, details, shown in (("fake", {}, False), ("configurable", {"tiles": 6}, True), ("gone", {"x": 1}, False)):
        engine = replace(bundle.manifest.engine, name=name, details=details)
        write_manifest(bundle.dir, replace(bundle.manifest, engine=engine))
        assert main(["inspect", str(bundle.dir)]) == 0
        assert ("tiles       6" in capsys.readouterr().out) is shown


def test_inspect_reads_the_engines_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = {"format": "fake/tiles", "tiles": 6}
    (tmp_path / "tiles.json").write_text(json.dumps(content))
    assert main(["inspect", str(tmp_path / "tiles.json")]) == 0
    assert capsys.readouterr().out == "tiles in tiles.json\n"
    assert main(["inspect", str(tmp_path / "tiles.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == content
