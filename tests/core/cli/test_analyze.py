"""``toprl-export analyze``: flags, files, mistakes and interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from tests.support.tiny_llava import tiny_adapter
from toprl_export.analysis import study as study_module
from toprl_export.cli.main import main
from toprl_export.models.llava import LlavaAdapter
from toprl_export.registry import Registry
from toprl_export.tasks.registry import TASKS


@pytest.fixture(scope="module")
def adapter() -> LlavaAdapter:
    return tiny_adapter()


@pytest.fixture(autouse=True)
def tiny_world(adapter: LlavaAdapter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tiny model is what ``--model`` loads; tasks that it answers are registered; the directory is empty."""
    from tests.support.echo_tasks import TARGETS

    TASKS.names()
    for name, target in TARGETS.items():
        monkeypatch.setitem(TASKS._targets, name, target)
    monkeypatch.setattr(study_module, "load_model", lambda model, device: adapter)
    monkeypatch.chdir(tmp_path)


def analyze(*arguments: str) -> int:
    return main(["analyze", *arguments, *(("--limit", "4") if arguments else ())])


def test_cliff_writes_data_table_and_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert analyze("cliff", "--tasks", "echo-look,echo-think") == 0
    printed = capsys.readouterr().out
    assert "echo-think (reasoning): " in printed and "picture: analysis/cliff.png, table: cliff.md" in printed
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == [
        "cells", "cliff.csv", "cliff.json", "cliff.md", "cliff.png",
    ]  # fmt: skip


def test_sensitivity_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    flags = ["--layers", "3", "--output-dir", "x", "--seed", "5", "--json"]
    assert analyze("sensitivity", "--tasks", "echo-look", *flags) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["version"]) == ("toprl-export/analysis-sensitivity", 1)
    assert (found["layers"], found["provenance"]["seed"]) == ([3], 5)
    assert len(found["maps"][0]["cells"]) == 11
    assert found == json.loads((tmp_path / "x" / "sensitivity.json").read_text())


def test_transfer_takes_the_agents_tasks(adapter: LlavaAdapter, capsys: pytest.CaptureFixture[str]):
    save_tiny_agent(Path("agents/a"), adapter, "echo-look")
    save_tiny_agent(Path("agents/b"), adapter, "echo-think", seed=1)
    assert analyze("transfer", "--agents", "agents/a", "agents/b", "--budget-kept", "12") == 0
    assert "12 of 25 tokens kept. The diagonal is its column's best" in capsys.readouterr().out
    text = Path("analysis/transfer.md").read_text()
    assert text.index("| echo-look (1 seed) |") < text.index("| echo-think (1 seed) |")


def test_ablate_trains_and_compares(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    trainers = Registry("training method", {"toprl": "tests.support.fake_trainer:FakeTrainer"})
    monkeypatch.setattr("toprl_export.trainer.TRAINERS", trainers)
    flags = "--tasks echo-look --variants one-shot,gamma-1 --seeds 4 --budget-kept 10 --updates 2"
    assert analyze("ablate", *flags.split()) == 0
    printed = capsys.readouterr().out
    assert printed.index("the recipe as it is") < printed.index("gamma-1") < printed.index("one-shot")
    assert sorted(path.name for path in Path("analysis/agents").iterdir()) == ["base", "gamma-1", "one-shot"]


def test_the_variants_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["analyze", "ablate", "--list-variants"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "terminal            reward given: at the last stage only" in lines and len(lines) > 15
    assert not list(tmp_path.iterdir())


def test_the_variants_and_a_dry_run_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["analyze", "ablate", "--list-variants", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "toprl-export/ablation-variants"
    assert {"name": "terminal", "group": "reward given", "text": "at the last stage only"} in found["variants"]
    assert analyze("ablate", "--tasks", "echo-look", "--budget-kept", "10", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["summary"].startswith("would train ")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    answer, calls = study_module.answer_samples, []

    def interrupted(*arguments: object) -> list[str]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(*arguments)

    monkeypatch.setattr(study_module, "answer_samples", interrupted)
    assert analyze("cliff", "--tasks", "echo-look") == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    assert [path.name for path in Path("analysis").iterdir()] == ["cells"]
    assert len(list(Path("analysis/cells").iterdir())) == 2
    assert analyze("cliff", "--tasks", "echo-look") == 0 and len(calls) == 3 + 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the analysis is missing, expected one of cliff, "),
        (["clif"], "unknown analysis 'clif'; did you mean 'cliff'? known: cliff, "),
        (["cliff", "--tasks", "mini-cuont"], "did you mean 'mini-count'"),
        (["cliff", "--tasks", "echo-never"], "none of 4 questions of echo-never correctly"),
        (["cliff", "--jobs", "0"], "0 is too small"),
        (["sensitivity", "--layers", "1,x"], "'x' is no decoder layer"),
        (["sensitivity", "--tasks", "echo-look", "--layers", "4"], "within 0 to 3"),
        (["transfer"], "--agents is missing"),
        (["transfer", "--agents", "nowhere"], "nowhere is no agent directory"),
        (["ablate", "--variants", "gama-1"], "did you mean 'gamma-1'"),
        (["ablate", "--variants-file", "none.yaml"], "none.yaml does not exist"),
        (["ablate", "--seeds", "1,-1"], "-1 is out of range"),
        (["ablate", "--seeds", "1,1"], "each once"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert analyze(*arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert not list(Path().glob("analysis/*.*"))


def test_files_of_others_are_left_alone_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Path("analysis").mkdir()
    Path("analysis/cliff.png").write_text("mine")
    monkeypatch.setattr(study_module, "answer_samples", None)
    assert analyze("cliff", "--tasks", "echo-look") == 2
    assert "cliff.png is not from an earlier analysis" in capsys.readouterr().err
    assert Path("analysis/cliff.png").read_text() == "mine"
