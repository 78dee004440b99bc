"""compare: what it prints, what a dry run promises, and that mistakes are one line and exit 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from tests.support.yes_no_model import save_yes_no_model
from toprl_export.cli.main import main
from toprl_export.comparison.method_cell import CellRunner
from toprl_export.models.load import load_model
from toprl_export.pruning.baselines.specs import BASELINES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_yes_no_model(tmp_path_factory.mktemp("model") / "yes-no")


@pytest.fixture
def arguments(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that compares an agent and FastV on a tiny model, in the current directory."""
    save_tiny_agent(tmp_path / "agents" / "mini-exist", load_model(str(model)), budgets=(12, 6))
    monkeypatch.chdir(tmp_path)
    return (
        f"compare --model {model} --agents ours=agents/* --baselines fastv --budget-kept 12,6 --limit 10 "
        "--random-draws 1 --iterations 0"
    ).split()


def test_compare_prints_averages_and_where_the_tables_are(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["kept", "method", "accuracy", "retention", "prefill", "ms"]
    rows = [line.split() for line in printed[1:-1]]
    assert [row[:2] for row in rows] == [
        ["25", "unpruned"],
        *([budget, method] for budget in ("12", "6") for method in ("random", "fastv", "ours")),
    ]
    assert rows[0][3] == "100.0%" and rows[0][4] == "-"
    assert printed[-1] == "mini-exist; tables: comparison/compare.md"
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("comparison/compare.json").read_text())
    assert found["provenance"]["model"] == arguments[2]


def test_a_dry_run_measures_and_writes_nothing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--tasks", "mini-exist,mini-count", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "tasks      mini-exist (10), mini-count (10)" in printed
    assert "cells      12, of which 0 were measured before" in printed
    assert "gap        ours, mini-count, 12 kept: no agent for mini-count was given" in printed
    assert not Path("comparison").exists()
    assert main(arguments) == 0
    capsys.readouterr()
    assert main([*arguments, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cells"], found["measured_before"], found["methods"]) == (
        7,
        7,
        ["unpruned", "random", "fastv", "ours"],
    )


def test_a_config_file_supplies_the_flags(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"model: {arguments[2]}", "agents: [ours=agents/*]", "baselines: [fastv, dart]", "budget-kept: [12, 6]"]
    Path("compare.yaml").write_text("\n".join([*lines, "limit: 10", "iterations: 0", "dry-run: true", "json: true"]))
    assert main(["compare", "--config", "compare.yaml"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["methods"] == ["unpruned", "random", "fastv", "dart", "ours"]
    assert found["cells"] == 1 + 2 * (3 + 3)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--tasks mini-exit", "unknown task 'mini-exit'; did you mean 'mini-exist'"),
        ("--tasks mini-count", "is an agent for mini-exist, which is not among the tasks (mini-count)"),
        ("--baselines fastvv", "unknown baseline 'fastvv'"),
        ("--agents nowhere/*", "matches no agent directory"),
        ("--budget-kept 0", "0 is too small"),
        ("--budget-kept 26", "no method can keep 26 visual tokens on average"),
        ("--iterations -1", "'-1' is not a whole number of at least 0"),
        ("--model mini", "but model mini has"),
        ("--output-dir agents", "agents holds something else (mini-exist)"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str], flags: str, expected: str
) -> None:
    assert main([*arguments, *flags.split(" ")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert expected in printed.err
    assert not Path("comparison").exists()


def test_an_interruption_says_that_nothing_is_lost(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CellRunner, "__call__", interrupted)
    assert main(arguments) == 130
    assert capsys.readouterr().err == "finished work is kept: run the same command again to continue\ninterrupted\n"


def test_help_names_every_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert ",".join((*BASELINES, "oracle")) in shown
