"""Ablation, with a trainer that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.fake_trainer import FakeTrainer
from toprl_export.agent import load_agent
from toprl_export.analysis.ablate import Ablation, AblationPlan, preview_ablation, run_ablation
from toprl_export.analysis.pictures import draw
from toprl_export.analysis.study import ByAgent, Study
from toprl_export.analysis.variants import BASE, Variant, write_recipe
from toprl_export.errors import UserError
from toprl_export.registry import Registry

ONE_SHOT = Variant("one-shot", "stages", "one", {}, (0.0,))
CLIPPED = Variant("clipped", "learning", "ε = 0.1", {"reward": {"clip": 0.1}})


@pytest.fixture(autouse=True)
def fake_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTrainer, "trained", [])
    trainers = Registry("training method", {"toprl": "tests.support.fake_trainer:FakeTrainer"})
    monkeypatch.setattr("toprl_export.trainer.TRAINERS", trainers)


def plan(*variants: Variant, **changes: object) -> AblationPlan:
    settings = {"recipe": "some", "seeds": (0, 1), "budget_kept": 10, **changes}
    return AblationPlan((BASE, *variants), **settings)


def test_every_variant_is_trained_and_compared_with_the_base(open_study: Callable[..., Study]):
    study = open_study()
    found = run_ablation(study, plan(ONE_SHOT))
    expected = [f"{v}/{t}/seed-{s}" for t in ("echo-look", "echo-think") for v in ("base", "one-shot") for s in (0, 1)]
    assert [path.split("agents/")[-1] for path in FakeTrainer.trained] == [
        "/".join(path.split("/")[-3:]) for path in expected
    ]
    base, one_shot = found.rows
    assert (base.variant, one_shot.variant) == ("base", "one-shot")
    assert base.difference.value == 0 and base.difference.ci95 == (0.0, 0.0)
    for at, task in enumerate(study.tasks):
        means = {}
        for row in found.rows:
            methods = []
            for seed in (0, 1):
                directory = study.scope.output_dir / "agents" / row.variant / task.name / f"seed-{seed}"
                agent = load_agent(directory)
                methods.append(ByAgent(directory, agent.fingerprint, agent.record.plan.schedule(10).keep_counts))
            correct = study.correctness([(task, method) for method in methods], "again")
            assert row.entries[at].by_seed == tuple(one.mean() for one in correct)
            means[row.variant] = np.mean(correct)
        assert one_shot.entries[at].difference.value == pytest.approx(means["one-shot"] - means["base"])
    mean = np.mean([entry.difference.value for entry in one_shot.entries])
    assert one_shot.difference.value == pytest.approx(mean)
    assert len(load_agent(study.scope.output_dir / "agents/one-shot/echo-look/seed-0").record.plan.stages) == 1


def test_recipes_build_on_the_base(open_study: Callable[..., Study], tmp_path):
    study = open_study("echo-look")
    run_ablation(study, plan(CLIPPED, seeds=(0,)))
    recipes = study.scope.output_dir / "recipes"
    assert yaml.safe_load((recipes / "base.yaml").read_text()) == {"method": "toprl", "base": "some", "settings": {}}
    assert yaml.safe_load((recipes / "clipped.yaml").read_text())["settings"] == {"reward": {"clip": 0.1}}
    written = write_recipe(tmp_path, BASE, "./mine.yaml", "toprl", decoder_layers=4)
    assert yaml.safe_load(written.read_text())["base"] == str(Path("mine.yaml").resolve())


def test_a_preview_counts_what_is_missing_and_writes_nothing(open_study: Callable[..., Study]):
    study = open_study("echo-look")
    run_ablation(study, plan(seeds=(0,)))
    FakeTrainer.trained.clear()
    before = sorted(study.scope.output_dir.rglob("*"))
    told = preview_ablation(study, plan(ONE_SHOT))
    assert told == "would train 3 agents, 1 of 4 are there: 2 recipes × 1 task (echo-look) × 2 seeds"
    assert sorted(study.scope.output_dir.rglob("*")) == before and FakeTrainer.trained == []


def test_what_is_refused_asks_nothing_and_leaves_the_recipes_of_what_is_there(
    open_study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
):
    study = open_study("echo-look")
    run_ablation(study, plan(CLIPPED, seeds=(0,)))
    before = {path: path.read_bytes() for path in study.scope.output_dir.rglob("*") if path.is_file()}
    other = open_study("echo-look", limit=4)
    monkeypatch.setattr(Study, "unpruned", None)
    with pytest.raises(UserError, match="already holds an earlier result"):
        run_ablation(other, plan(CLIPPED, seeds=(0,), recipe="./mine.yaml"))
    assert {path: path.read_bytes() for path in study.scope.output_dir.rglob("*") if path.is_file()} == before


def test_trained_agents_are_taken_as_they_are(open_study: Callable[..., Study]):
    study = open_study("echo-look")
    first = run_ablation(study, plan(ONE_SHOT))
    assert len(FakeTrainer.trained) == 4
    assert run_ablation(study, plan(ONE_SHOT)).rows == first.rows and len(FakeTrainer.trained) == 4
    more = run_ablation(study, plan(ONE_SHOT, CLIPPED))
    assert [path.split("/")[-3] for path in FakeTrainer.trained[4:]] == ["clipped", "clipped"]
    assert more.rows[1] == first.rows[1]


def test_a_failing_training_says_whose_it_is_and_keeps_the_others(open_study: Callable[..., Study]):
    study = open_study("echo-look")
    broken = Variant("broken", "g", "t", {"fails": True})
    with pytest.raises(UserError, match="variant broken for echo-look, seed 0: a reward is not a number"):
        run_ablation(study, plan(broken))
    assert len(FakeTrainer.trained) == 2


def test_a_plan_that_cannot_be_met_is_refused_before_anything_is_trained(open_study: Callable[..., Study]):
    study = open_study("echo-look")
    run_ablation(study, plan(seeds=(1,)))
    FakeTrainer.trained.clear()
    with pytest.raises(UserError, match=r"seed 1: .* already holds an earlier result"):
        run_ablation(study, plan(ONE_SHOT, seeds=(0, 1), updates=3))
    assert FakeTrainer.trained == []


def test_files_say_what_was_found(open_study: Callable[..., Study]):
    study = open_study()
    found = run_ablation(study, plan(ONE_SHOT, CLIPPED))
    found.write(study.scope.output_dir, draw(found))
    assert Ablation.load(study.scope.output_dir) == found
    lines = (study.scope.output_dir / "ablation.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * 2 and lines[0].endswith("accuracy_seed_0,accuracy_seed_1")
    text = (study.scope.output_dir / "ablation.md").read_text()
    assert text.index("**the recipe as it is**") < text.index("stages: one") < text.index("learning: ε = 0.1")
    assert "2 seeds" in text and "| unpruned | 100.0%" in text
    assert "one-shot" in found.summary()


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_there_each_once(seeds: tuple[int, ...]):
    with pytest.raises(UserError, match="expected at least one, each once"):
        plan(seeds=seeds)


def test_the_base_is_the_first_variant():
    with pytest.raises(UserError, match="the recipe itself"):
        AblationPlan((ONE_SHOT,))
