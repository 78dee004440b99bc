"""What training leaves on disk, and what it refuses."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.trainers.tiny_world import TASK, request
from toprl_export.agent import load_agent
from toprl_export.errors import MissingExtraError, UserError
from toprl_export.trainer import train
from toprl_trainers.toprl.trainer import TOPRLTrainer


@pytest.fixture(scope="module")
def folder(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a finished ``agent``."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = TOPRLTrainer().train(request(weights, folder, 3, budgets_kept=(5, 10)))
    assert outcome.status == "trained"
    assert "random pruning" in outcome.summary
    return folder


def test_the_agent_loads_and_knows_how_it_was_made(weights: Path, folder: Path):
    wanted = request(weights, folder, 3, budgets_kept=(5, 10))
    agent = load_agent(folder / "agent")
    agent.check_fits(wanted.adapter)
    record = agent.record
    assert (record.task, record.method, record.training.updates) == ("patch-colour", "toprl", 3)
    assert record.training.rollouts == 3 * 4 * 8
    assert record.training.trained_budget_kept == 5
    assert [schedule.budget_kept for schedule in record.plan.schedules] == [5, 10]
    assert record.plan.stage_layers == (0, 2)
    assert record.training.versions["torch"] == torch.__version__


def test_the_directory_holds_card_and_curves(folder: Path):
    directory = folder / "agent"
    assert {path.name for path in directory.iterdir()} == {
        "agent.json", "actor.safetensors", "critic.safetensors", "card.md", "curves.csv", "curves.png", "training.json",
    }  # fmt: skip
    rows = list(csv.DictReader((directory / "curves.csv").open()))
    assert [row["update"] for row in rows] == ["1", "2", "3"]
    assert float(rows[0]["temperature"]) == 1.0 and float(rows[-1]["temperature"]) == pytest.approx(0.05)
    assert all(0 < float(row["quality"]) <= 1 for row in rows)
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (directory / "card.md").read_text()
    for part in ("patch-colour", "decoder:0, decoder:2", "| 5 |", "| 10 |", "held-out split was not looked at", "96 q"):
        assert part in card
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_same_settings_are_up_to_date(weights: Path, folder: Path):
    before = (folder / "agent" / "agent.json").stat().st_mtime_ns
    outcome = TOPRLTrainer().train(request(weights, folder, 3, budgets_kept=(5, 10), overwrite=True))
    assert outcome.status == "up-to-date"
    assert (folder / "agent" / "agent.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"budgets_kept": (5,)}, {"updates": 4}], ids=str)
def test_other_settings_are_not(weights: Path, folder: Path, change: dict[str, object]):
    with pytest.raises(UserError, match="already holds an earlier result"):
        TOPRLTrainer().train(request(weights, folder, **{"updates": 3, "budgets_kept": (5, 10), **change}))


@pytest.mark.parametrize(
    "content", ["{cut", '{"format": "toprl-export/toprl-run", "version": 9}'], ids=["cut", "version"]
)
def test_an_unreadable_run_record_may_be_overwritten(weights: Path, tmp_path: Path, content: str):
    directory = tmp_path / "agent"
    directory.mkdir()
    (directory / "agent.json").write_text("{}")
    (directory / "training.json").write_text(content)
    with pytest.raises(UserError, match=r"training\.json"):
        TOPRLTrainer().train(request(weights, tmp_path, 3, dry_run=True))
    assert TOPRLTrainer().train(request(weights, tmp_path, 3, dry_run=True, overwrite=True)).status == "dry-run"


def test_missing_matplotlib_is_said_before_training(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("toprl_trainers.toprl.trainer.learn", lambda *_: pytest.fail("training began"))
    with pytest.raises(MissingExtraError, match="needs matplotlib"):
        TOPRLTrainer().train(request(weights, tmp_path, 3))


def test_a_directory_that_holds_something_else_is_left_alone(weights: Path, tmp_path: Path):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        TOPRLTrainer().train(request(weights, tmp_path, 3, overwrite=True))
    assert (tmp_path / "agent" / "thesis.txt").read_text() == "years of work"


def test_dry_run_writes_nothing(weights: Path, tmp_path: Path):
    outcome = TOPRLTrainer().train(request(weights, tmp_path, 3, dry_run=True))
    assert outcome.status == "dry-run"
    assert "3 updates" in outcome.summary and "decoder:0, decoder:2" in outcome.summary
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml"}


@pytest.mark.parametrize("budgets", [(0,), (26,), (), (5, 5)], ids=str)
def test_impossible_budgets_are_refused(weights: Path, tmp_path: Path, budgets: tuple[int, ...]):
    with pytest.raises(UserError, match="budget"):
        TOPRLTrainer().train(request(weights, tmp_path, budgets_kept=budgets))


def test_training_on_a_model_that_can_do_nothing_is_refused(weights: Path, tmp_path: Path):
    wanted = request(weights, tmp_path, 3)
    torch.nn.init.zeros_(wanted.adapter.model.lm_head.weight)
    with pytest.raises(UserError, match="answers none of"):
        TOPRLTrainer().train(wanted)


def test_run_record_is_readable_json(folder: Path):
    content = json.loads((folder / "agent" / "training.json").read_text())
    assert (content["format"], content["version"]) == ("toprl-export/toprl-run", 1)
    assert content["settings"]["config"]["discount"] == 0.9


def test_the_public_function_finds_the_trainer(weights: Path, tmp_path: Path):
    wanted = request(weights, tmp_path, 3)
    outcome = train(
        wanted.adapter, TASK, recipe=wanted.recipe, budgets_kept=[5], output_dir=tmp_path / "a", dry_run=True
    )
    assert outcome.directory == (tmp_path / "a").resolve()
    with pytest.raises(UserError, match="unknown training method 'toprll'"):
        train(wanted.adapter, TASK, method="toprll")
    with pytest.raises(UserError, match="unknown task"):
        train(wanted.adapter, "mini-coulour")
