"""What a recipe makes of a budget: several stages or one, learned or given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainers.process_world import wanted
from tests.trainers.tiny_world import TASK, request
from toprl_export.errors import UserError
from toprl_trainers.rl.processes import Processes
from toprl_trainers.toprl.curves import curve_columns
from toprl_trainers.toprl.run import Run


def run_with(weights: Path, folder: Path, layers: str, budget: int) -> Run:
    wanted = request(weights, folder, budgets_kept=(budget,))
    recipe = Path(str(wanted.recipe))
    recipe.write_text(recipe.read_text().replace("[0, 2]", layers))
    return Run.of(wanted)


def test_any_number_of_stages_meets_the_same_budget(weights: Path, tmp_path: Path):
    for layers, stages in (("[0]", 1), ("[0, 2]", 2), ("[0, 1, 2, 3]", 4)):
        run = run_with(weights, tmp_path, layers, 8)
        assert len(run.trained.keep_counts) == run.actor_config.stages == stages
        assert 7 < run.trained.average_kept <= 8
    assert run_with(weights, tmp_path, "[0]", 8).trained.keep_counts == (8,)


def test_one_stage_that_comes_too_late_for_the_budget_is_refused(weights: Path, tmp_path: Path):
    with pytest.raises(UserError, match="a budget of 8 tokens kept cannot be met with stages at decoder layers 2"):
        run_with(weights, tmp_path, "[2]", 8)


def test_rollouts_never_aim_above_the_smallest_budget(weights: Path, tmp_path: Path):
    wanted = request(weights, tmp_path, budgets_kept=(12, 5))
    recipe = Path(str(wanted.recipe))
    recipe.write_text(recipe.read_text() + "  training_fraction_kept: 0.4\n")
    assert Run.of(wanted).trained.budget_kept == 5
    assert Run.of(replace(wanted, budgets_kept=(12, 11))).trained.budget_kept == 10


def test_images_to_validate_on_are_others(weights: Path, tmp_path: Path):
    class Few(type(TASK)):
        def image_count(self, split):
            return {"train": 80}.get(split)

    few = Few(TASK.name, TASK.level, TASK.description, TASK.module)
    wanted = request(weights, tmp_path, task=few)  # 32 and 48 others
    assert Run.of(wanted).config.images == 32
    message = "33 images to train on and 48 others to validate on are needed, but patch-colour has 80"
    with pytest.raises(UserError, match=message):
        Run.of(replace(wanted, images=33))


def test_a_recipe_without_any_stage_is_refused(weights: Path, tmp_path: Path):
    with pytest.raises(UserError, match="the stage layers are none, expected at least one"):
        run_with(weights, tmp_path, "[]", 8)


def test_only_a_policy_that_was_free_to_choose_adds_a_budget(weights: Path, tmp_path: Path):
    run = run_with(weights, tmp_path, "[0, 2]", 8)
    curves = [[14.0 if name == "kept_stage_1" else 6.0 for name in curve_columns(2)]]
    assert run.final_plan(curves) is run.plan
    recipe = Path(str(run.request.recipe))
    recipe.write_text(recipe.read_text() + "  threshold: initial\n")
    found = Run.of(run.request).final_plan(curves)
    assert [schedule.budget_kept for schedule in found.schedules] == [8, 10]
    assert found.schedule(10).keep_counts == (14, 6)


def test_images_that_cannot_be_divided_are_refused(weights: Path, tmp_path: Path):
    planned = request(weights, tmp_path)  # 32 images, 4 a process
    with pytest.raises(UserError, match=r"leave 2 for the last.* 5 processes"):
        Run.of(replace(planned, images=22), Processes(0, 5))
    with pytest.raises(UserError, match="leave 3 for the last"):
        Run.of(replace(planned, images=3), Processes(0, 5))
    assert Run.of(planned, Processes(0, 5)).images_per_update == 20
    assert Run.of(planned, Processes(0, 2)).digest != Run.of(planned).digest


@pytest.mark.parametrize(("updates", "rollouts"), [(1, 8 * 8), (3, 21 * 8), (4, 29 * 8), (7, 50 * 8)])
def test_rollouts_are_counted_to_the_last_one(weights: Path, tmp_path: Path, updates: int, rollouts: int):
    assert Run.of(wanted(weights, tmp_path, 8)).rollouts(updates) == rollouts
