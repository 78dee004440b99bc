"""``toprl-export train``: flags, mistakes and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from toprl_export.cli.main import main
from toprl_export.trainer import TrainOutcome


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the command hands to `train`."""
    found: dict[str, object] = {}

    def train(**settings: object) -> TrainOutcome:
        found.update(settings)
        return TrainOutcome("trained", Path("x"), "trained, it says")

    monkeypatch.setattr("toprl_export.trainer.train", train)
    return found


def test_flags_reach_the_function(seen: dict[str, object], capsys: pytest.CaptureFixture[str]):
    flags = "--task mini-count --budget-kept 192,64 --output-dir a/b --seed 3 --updates 5 --limit 9 --threads 1"
    assert main(["train", *flags.split(), "--no-resume", "--overwrite", "--condition", "text"]) == 0
    assert seen["budgets_kept"] == (192, 64)
    assert (seen["model"], seen["method"], seen["task"], seen["seed"]) == ("mini", "toprl", "mini-count", 3)
    assert (seen["updates"], seen["images"], seen["threads"], seen["resume"]) == (5, 9, 1, False)
    assert seen["condition"] == "text"
    assert seen["overwrite"] is True and seen["dry_run"] is False and seen["output_dir"] == Path("a/b")
    assert str(seen["command"]).split()[1:] == sys.argv[1:]
    assert capsys.readouterr().out == "trained, it says\n"


def test_the_outcome_as_json(seen: dict[str, object], capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {
        "format": "toprl-export/train",
        "version": 1,
        "status": "trained",
        "agent": "x",
        "summary": "trained, it says",
    }


def test_bare_command(seen: dict[str, object]):
    assert main(["train"]) == 0
    assert [seen[name] for name in ("task", "resume", "condition")] == [None] * 3
    assert seen["budgets_kept"] == (192, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget-kept", "192,x"], "'x' is not a whole number"),
        (["--budget-kept", "0"], "0 is too small"),
        (["--task", "mini-coulour"], "did you mean 'mini-colour'"),
        (["--method", "ppo"], "unknown training method 'ppo'"),
        (["--condition", "image"], "unknown value of --condition 'image'; known: none, text"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(["train", "--output-dir", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
