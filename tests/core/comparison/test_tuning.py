"""Tuning rivals: what is tried, what is chosen from made-up answers, and the whole of it on a tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.agents import save_tiny_agent
from toprl_export.comparison.method_cell import ComparisonSetting, MethodCell
from toprl_export.comparison.request import CompareRequest
from toprl_export.comparison.runner import compare
from toprl_export.comparison.tuning import (
    FIRST_ROUND_SHARE,
    SURVIVORS,
    Placement,
    Tuning,
    TuningGround,
    stage_sets,
    tune,
)
from toprl_export.evaluation.estimates import Correctness
from toprl_export.evaluation.questions import TaskQuestions, draw_questions
from toprl_export.fields import read_file
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.pruning.baselines.specs import BASELINES, baseline_plan
from toprl_export.pruning.schedule import average_kept
from toprl_export.tasks.registry import TASKS

TASK_NAMES = ("mini-exist", "mini-count")
KNOWN_GOOD = Placement((0, 1, 2), (110, 44, 17), 32.0)


def ground(layers: int = 8, questions: int = 40) -> TuningGround:
    setting = ComparisonSetting("some/model", "f" * 64, "cpu", "float32", 0)
    tasks = tuple(TaskQuestions(name, "perception", questions, "d", 576) for name in TASK_NAMES)
    return TuningGround(setting, 576, layers, (0, layers // 4, layers * 5 // 8), 0.6, tasks)


@pytest.mark.parametrize("budget", [192, 64, 32])
@pytest.mark.parametrize("name", [name for name in BASELINES if name not in ("random", "uniform")])
def test_everything_tried_meets_the_budget_and_the_papers_own_comes_first(name: str, budget: int) -> None:
    tried = ground().placements(name, budget)
    plan = baseline_plan(name, 576, 8, [budget], (0, 2, 5), 0.6)
    assert (tried[0].stage_layers, tried[0].keep_counts) == (plan.stage_layers, plan.schedule(budget).keep_counts)
    assert len({(one.stage_layers, one.keep_counts) for one in tried}) == len(tried)
    for one in tried:
        assert budget - 1 < average_kept(576, 8, one.stage_layers, one.keep_counts) <= budget
    assert (KNOWN_GOOD in tried) == (budget == 32 and name != "fastv")
    assert len(tried) > 20 or name == "fastv"


def test_fastv_cuts_once_wherever_it_is_tuned() -> None:
    for budget, first in ((192, {0, 1, 2}), (32, {0})):
        assert {one.stage_layers for one in ground().placements("fastv", budget)} == {(layer,) for layer in first}


def test_a_budget_that_nothing_can_meet_has_nothing_to_try() -> None:
    assert ground().placements("pyramiddrop", 577) == ()
    assert tune(ground(), ["pyramiddrop"], [577], lambda cells: []).rivals == ()


@pytest.mark.parametrize(("layers", "found"), [(32, (0, 4, 8)), (8, (0, 1, 2)), (2, (0,))])
def test_sets_of_stages_scale_with_the_depth(layers: int, found: tuple[int, ...]) -> None:
    sets = stage_sets(layers)
    assert found in sets and len(set(sets)) == len(sets)
    assert all(later > earlier for one in sets for earlier, later in pairwise(one))


class MadeUp:
    """Answers whose share of correct ones depends on the placement and the task."""

    def __init__(self, best: dict[str, Placement], better_for_all: Placement | None = None) -> None:
        self.best, self.better_for_all = best, better_for_all
        self.rounds: list[list[MethodCell]] = []

    def __call__(self, cells: Sequence[MethodCell]) -> list[Correctness]:
        self.rounds.append(list(cells))
        return [self.answers(cell) for cell in cells]

    def answers(self, cell: MethodCell) -> Correctness:
        here = (cell.stage_layers, cell.keep_counts)
        share = 0.5
        if self.better_for_all and here == (self.better_for_all.stage_layers, self.better_for_all.keep_counts):
            share = 0.8
        if here == (self.best[cell.task].stage_layers, self.best[cell.task].keep_counts):
            share = 0.9
        return (np.arange(cell.questions) < share * cell.questions).astype(np.float64)


def test_the_best_on_average_and_the_best_of_each_task_are_chosen() -> None:
    space = ground().placements("pyramiddrop", 32)
    best = {"mini-exist": space[3], "mini-count": space[11]}
    made_up = MadeUp(best, better_for_all=KNOWN_GOOD)
    tuning = tune(ground(), ["random", "pyramiddrop"], [32], made_up)
    (rival,) = tuning.rivals
    assert (rival.method, rival.budget_kept) == ("pyramiddrop", 32)
    assert rival.for_all_tasks == KNOWN_GOOD  # 80% and 80% against 90% and 50%
    assert rival.by_task == best
    assert [one.placement for one in rival.tried] == list(space)
    assert tuning.find("pyramiddrop", 32) is rival and tuning.find("fastv", 32) is None


def test_where_all_are_alike_the_papers_own_stays() -> None:
    space = ground().placements("sparsevlm", 64)
    nowhere = Placement((7,), (1,), 1.0)
    (rival,) = tune(ground(), ["sparsevlm"], [64], MadeUp(dict.fromkeys(TASK_NAMES, nowhere))).rivals
    assert rival.for_all_tasks == space[0] and set(rival.by_task.values()) == {space[0]}


def test_two_rounds_on_the_train_split_alone() -> None:
    space = ground().placements("dart", 32)
    made_up = MadeUp({"mini-exist": space[3], "mini-count": space[11]})
    (rival,) = tune(ground(), ["dart"], [32], made_up).rivals
    first, second = made_up.rounds
    assert {cell.split for cell in first + second} == {"train"}
    assert len(first) == 2 * len(space) and {cell.questions for cell in first} == {40 // FIRST_ROUND_SHARE}
    assert {cell.questions for cell in second} == {40}
    assert len(second) <= 2 * (2 * SURVIVORS + 1)
    answered = {count for one in rival.tried for count in one.questions.values()}
    assert answered == {40, 40 // FIRST_ROUND_SHARE}
    assert rival.tried[0].questions == dict.fromkeys(TASK_NAMES, 40)  # the paper's own is always told in full


def test_tuning_questions_are_not_the_held_out_ones() -> None:
    for task in map(TASKS.get, TASKS.names()):
        tuning, measured = draw_questions(task, 0, 4, "train"), draw_questions(task, 0, 4)
        assert tuning.digest != measured.digest


def test_a_comparison_tunes_its_rivals(
    model_dir: Path, adapter: LVLMAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_agent(tmp_path / "agent", adapter, budgets=(12,))
    request = CompareRequest(
        output_dir=tmp_path / "out",
        model=str(model_dir),
        agents=(str(tmp_path / "agent"),),
        baselines=("pyramiddrop",),
        budgets_kept=(12,),
        limit=8,
        draws=1,
        iterations=0,
        device="cpu",
    )
    untuned = compare(request)
    assert [one.name for one in untuned.methods] == ["unpruned", "random", "pyramiddrop", "toprl"]
    assert "**Rivals were not tuned**" in (request.output_dir / "compare.md").read_text()
    tuned = compare(replace(request, tune=8))
    names = ["unpruned", "random", "pyramiddrop", "pyramiddrop (per task)", "toprl"]
    assert [one.name for one in tuned.methods] == names
    assert tuned.tuning_questions == 8
    text = (request.output_dir / "compare.md").read_text()
    assert "8 questions of each task's train split" in text and "Rivals were not tuned" not in text
    rival = read_file(Tuning, request.output_dir / "tuning.json").find("pyramiddrop", 12)
    assert rival is not None
    for name, chosen in (("pyramiddrop", rival.for_all_tasks), ("pyramiddrop (per task)", rival.by_task["mini-exist"])):
        entry = tuned.entry(name, "mini-exist", 12)
        assert entry is not None
        assert (entry.stage_layers, entry.keep_counts) == (chosen.stage_layers, chosen.keep_counts)
    # With one task the two are one setting, measured once; repeating the command measures nothing.
    files = set((request.output_dir / "cells").iterdir())
    assert compare(replace(request, tune=8)).entries == tuned.entries
    assert set((request.output_dir / "cells").iterdir()) == files
