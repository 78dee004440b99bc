"""build: what it prints, what a dry run promises, and that mistakes are one line and exit 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import fake_engine as fakes
from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import VISUAL_TOKENS, tiny_adapter
from toprl_export.bundle import load_bundle
from toprl_export.cli.main import main
from toprl_export.errors import UserError


@pytest.fixture
def arguments(tmp_path: Path, fake_engine: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that builds the tiny model's bundle in the current directory."""
    adapter = tiny_adapter()
    monkeypatch.setattr("toprl_export.models.load.load_model", lambda *_: adapter)
    monkeypatch.setattr("toprl_export.building.load_model", lambda *_: adapter)
    monkeypatch.chdir(tmp_path)
    save_tiny_agent(tmp_path / "agents" / "mini-exist", adapter)
    return ["build", "--model", "tiny", "--engine", "fake", "--agent", "agents/mini-exist"]


def test_build_then_up_to_date(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--budget-kept", "12,8", "--output-dir", "out"]) == 0
    printed = capsys.readouterr()
    assert "bundle: out" in printed.out and "budgets kept 12, 8 of 25" in printed.out
    assert "building out with fake, fp32" in printed.err
    assert load_bundle(Path("out")).manifest.budgets_kept == (12, 8)
    assert main([*arguments, "--budget-kept", "12,8", "--output-dir", "out", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["status"], again["budgets_kept"]) == ("up-to-date", [12, 8])
    assert fakes.FakeEngine.builds == 1


def test_it_works_bare_after_train(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["build", "--engine", "fake"]) == 0
    assert "bundle: engines/mini-exist" in capsys.readouterr().out
    load_bundle(Path("engines/mini-exist"))


def test_a_dry_run_says_what_would_be_built_and_writes_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    before = sorted(tmp_path.rglob("*"))
    assert main([*arguments, "--budget-kept", "12,10", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "dry-run" and found["graphs"] == ["vision", "prefill", "decode", "prefill_unpruned"]
    assert found["plan"]["visual_tokens"] == VISUAL_TOKENS and found["tasks"] == ["mini-exist"]
    assert [schedule["budget_kept"] for schedule in found["plan"]["schedules"]] == [12, 10]
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"about {found['weight_bytes'] / 1e6:.1f} MB" in printed and "decoder:0 (actor), decoder:2" in printed
    assert sorted(tmp_path.rglob("*")) == before and fakes.FakeEngine.builds == 0


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--budget-kept", "26"], "26"),
        (["--budget-kept", "0"], "0 is too small, expected at least 1"),
        (["--budget-kept", "12,x"], "'x' is not a whole number"),
        (["--budget-kept", "12,8", "--static-k", "--dry-run"], "--static-k bakes in one budget, not several (8, 12)"),
        (["--engine", "trt"], "unknown engine 'trt'; known: fake"),
        (["--precision", "int2"], "unknown precision 'int2'; known: fp32, fp16, bf16"),
        (["--agent", "nowhere"], "nowhere is no agent directory"),
        (["--output-dir", "taken"], "taken holds something else"),
        (["--baseline", "uniform"], "--agent and --baseline exclude each other: leave one of the two out"),
        (["--stage-layers", "0,1"], "agents bring their own: leave --stage-layers out"),
        (["--stage-layers", "0;1"], "'0;1' is no decoder layer, expected numbers from 0 on, such as 0,2,5"),
        (["--output-dir", "taken", "--dry-run"], "taken holds something else"),
    ],
)
def test_mistakes(arguments: list[str], capsys: pytest.CaptureFixture[str], extra: list[str], expected: str):
    Path("taken").mkdir()
    Path("taken/photo.jpg").write_text("x")
    assert main([*arguments, *extra]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert expected in printed
    assert fakes.FakeEngine.builds == 0


def test_a_baseline_needs_no_agent_and_is_named_after_itself(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    command = ["build", "--model", "tiny", "--engine", "fake", "--baseline", "uniform", "--budget-kept", "12,8"]
    assert main([*command, "--stage-layers", "0,3", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would build: engines/uniform" in printed and "decoder:0 (uniform), decoder:3 (uniform)" in printed
    assert "tasks      all, by the baseline uniform" in printed
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "bundle: engines/uniform" in printed and "tasks all, by the baseline uniform" in printed
    assert "next: toprl-export validate engines/uniform --task mini-exist" in printed
    assert load_bundle(Path("engines/uniform")).manifest.baseline == "uniform"
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["tasks"], found["baseline"]) == ("up-to-date", [], "uniform")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--baseline", "random"], "the baseline random runs in PyTorch only"),
        (["--baseline", "oracle"], "the baseline oracle runs in PyTorch only"),
        (["--baseline", "visionzipp"], "did you mean 'visionzip'"),
        (["--baseline", "fastv", "--budget-kept", "12", "--stage-layers", "0,2"], "leave --stage-layers out"),
    ],
)
def test_baselines_that_cannot_be_built(arguments: list[str], capsys, extra: list[str], expected: str):
    assert main(["build", "--model", "tiny", "--engine", "fake", *extra]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and expected in printed


def test_a_dry_run_refuses_what_the_engine_cannot_build(arguments: list[str], capsys, monkeypatch):
    def refuse(self, request):
        raise UserError(f"no {request.precision} here")

    monkeypatch.setattr(fakes.FakeEngine, "check_request", refuse)
    assert main([*arguments, "--precision", "fp16", "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: no fp16 here\n" and printed.out == ""


def test_static_k_reaches_the_engine(arguments: list[str], monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(fakes.FakeEngine, "check_request", lambda self, request: seen.append(request.static_k))
    assert main([*arguments, "--budget-kept", "12", "--dry-run"]) == 0
    assert main([*arguments, "--budget-kept", "12", "--static-k", "--dry-run"]) == 0
    assert seen == [False, True]


def test_an_earlier_bundle_needs_overwrite(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*arguments, "--output-dir", "out"]) == 0
    capsys.readouterr()
    changed = [*arguments, "--budget-kept", "8", "--output-dir", "out"]
    assert main(changed) == 2
    assert "already holds an earlier result: add --overwrite" in capsys.readouterr().err
    assert main([*changed, "--overwrite"]) == 0
    assert load_bundle(Path("out")).manifest.budgets_kept == (8,)


def test_ctrl_c_leaves_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch, tmp_path: Path):
    def interrupted(self, request, directory: Path):
        (directory / "prefill.onnx").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fakes.FakeEngine, "build", interrupted)
    assert main([*arguments, "--output-dir", "out"]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agents"]
