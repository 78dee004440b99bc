"""Requests: what is refused; the grid: which cells there are, where gaps are, and budgets that no method can meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.agents import save_tiny_agent
from toprl_export.comparison.method_cell import ComparisonSetting
from toprl_export.comparison.request import CompareRequest, Grid, build_grid
from toprl_export.errors import UserError
from toprl_export.evaluation.compared_agents import ComparedAgent, find_agents
from toprl_export.evaluation.questions import TaskQuestions
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.pruning.baselines.specs import BASELINES, baseline_plan
from toprl_export.pruning.plan import make_plan

PLACE = Path("somewhere")
EXIST = TaskQuestions("mini-exist", "perception", 8, "d", 576)
COUNT = TaskQuestions("mini-count", "reasoning", 8, "e", 25)
SETTING = ComparisonSetting("yes-no", "f" * 64, "cpu", "float32", 0)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"limit": 0}, "limit is 0, expected at least 1"),
        ({"jobs": 0}, "jobs is 0"),
        ({"draws": 0}, "random draws is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"iterations": -1}, "iterations is -1, expected at least 0"),
        ({"budgets_kept": ()}, "no budget"),
        ({"budgets_kept": (64, 0)}, r"budget_kept\[1\] is 0"),
        ({"baselines": ("fastvv",)}, "unknown baseline 'fastvv'; did you mean 'fastv'"),
    ],
)
def test_impossible_requests_are_one_line(change: dict[str, object], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        CompareRequest(PLACE, **change)


def test_budgets_stand_once_and_largest_first() -> None:
    assert CompareRequest(PLACE, budgets_kept=(64, 192, 64)).budgets == (192, 64)


def test_random_takes_part_always() -> None:
    assert CompareRequest(PLACE).baseline_names == (*BASELINES, "oracle")
    assert CompareRequest(PLACE, baselines=("oracle", "fastv")).baseline_names == ("random", "fastv", "oracle")


def grid_of(adapter: LVLMAdapter, agents: tuple[ComparedAgent, ...] = (), **changes: object) -> Grid:
    request = CompareRequest(Path("out"), **({"budgets_kept": (12, 6), "draws": 2} | changes))
    return build_grid(request, adapter, SETTING, (EXIST, COUNT), agents)


def test_every_method_meets_every_budget_and_task(adapter: LVLMAdapter, tmp_path: Path) -> None:
    save_tiny_agent(tmp_path / "a", adapter, budgets=(12, 6))
    save_tiny_agent(tmp_path / "b", adapter, budgets=(12, 6), seed=1)
    save_tiny_agent(tmp_path / "c", adapter, budgets=(12, 6), task="mini-count")
    grid = grid_of(adapter, find_agents([f"{tmp_path}/*"]), baselines=("uniform", "fastv"))
    counted: dict[tuple[str, str, int], list[int]] = {}
    for cell in grid.cells:
        counted.setdefault((cell.task, cell.method, cell.budget_kept), []).append(cell.seed)
    expected: dict[tuple[str, str, int], list[int]] = {}
    for task, seeds in (("mini-exist", [0, 1]), ("mini-count", [0])):
        expected[task, "unpruned", 25] = [0]
        for budget in (12, 6):
            expected |= {(task, name, budget): [0] for name in ("uniform", "fastv")}
            expected |= {(task, "random", budget): [0, 1], (task, "toprl", budget): seeds}
    assert counted == expected and not grid.gaps
    assert next(cell.kind for cell in grid.cells if cell.task == "mini-count") == "unpruned"


def test_plans_are_the_baselines_own_for_each_budget(adapter: LVLMAdapter) -> None:
    grid = grid_of(adapter, baselines=("fastv",), budgets_kept=(12, 3))
    found = {cell.budget_kept: cell for cell in grid.cells if cell.method == "fastv"}
    for budget in (12, 3):
        plan = baseline_plan("fastv", 25, 4, [budget])
        assert (found[budget].stage_layers, found[budget].keep_counts) == (
            plan.stage_layers,
            plan.schedule(budget).keep_counts,
        )
    assert found[12].stage_layers != found[3].stage_layers  # the smaller budget does not move the larger one's cut


def test_baselines_prune_where_the_agents_do(adapter: LVLMAdapter, tmp_path: Path) -> None:
    plan = make_plan(25, 4, (0, 3), "actor", (12,), decay=0.3)
    save_tiny_agent(tmp_path / "a", adapter, plan=plan, budgets=(12,))
    grid = grid_of(adapter, find_agents([str(tmp_path / "a")]), baselines=("uniform",))
    placed = {(cell.stage_layers, cell.keep_counts) for cell in grid.cells if cell.method == "uniform"}
    assert placed == {((0, 3), plan.schedule(12).keep_counts), ((0, 3), plan.schedule_or_solved(6).keep_counts)}
    assert {cell.stage_layers for cell in grid_of(adapter).cells if cell.method == "uniform"} == {
        adapter.default_stage_layers
    }


def test_what_agents_do_not_agree_on_is_the_default(adapter: LVLMAdapter, tmp_path: Path) -> None:
    for name, decay in (("steep", 0.3), ("flat", 0.9)):
        plan = make_plan(25, 4, (0, 3), "actor", (12,), decay=decay)
        save_tiny_agent(tmp_path / name, adapter, plan=plan, budgets=(12,))
    agents = find_agents([f"steep={tmp_path / 'steep'}", f"flat={tmp_path / 'flat'}"])
    grid = grid_of(adapter, agents, baselines=("uniform",), budgets_kept=(12,))
    placed = {(cell.stage_layers, cell.keep_counts) for cell in grid.cells if cell.method == "uniform"}
    assert placed == {((0, 3), make_plan(25, 4, (0, 3), "uniform", (12,)).schedule(12).keep_counts)}


def test_a_budget_that_one_method_cannot_meet_is_a_gap(adapter: LVLMAdapter, tmp_path: Path) -> None:
    save_tiny_agent(tmp_path / "late", adapter, stage_layers=(1, 3))
    grid = grid_of(adapter, find_agents([str(tmp_path / "late")]), baselines=("divprune",), budgets_kept=(12, 5))
    gap = next(gap for gap in grid.gaps if (gap.method, gap.task) == ("toprl", "mini-exist"))
    assert (gap.budget_kept, "from 7 to 25" in gap.reason) == (5, True)
    assert not [cell for cell in grid.cells if (cell.method, cell.budget_kept) == ("toprl", 5)]
    assert [cell for cell in grid.cells if (cell.method, cell.budget_kept) == ("divprune", 5)]
    assert "no agent for mini-count was given" in {gap.reason for gap in grid.gaps}


def test_a_budget_that_no_method_can_meet_is_refused(adapter: LVLMAdapter) -> None:
    with pytest.raises(UserError, match=r"no method can keep 26 visual tokens on average; random: .* from 1 to 25"):
        grid_of(adapter, budgets_kept=(12, 26))


def test_the_oracle_needs_a_mask_of_the_models_size(adapter: LVLMAdapter) -> None:
    grid = grid_of(adapter, baselines=("oracle",))
    assert {cell.task for cell in grid.cells if cell.kind == "oracle"} == {"mini-count"}
    reasons = {gap.reason for gap in grid.gaps}
    assert reasons == {"mini-exist marks its evidence on 576 patches, but the model has 25 visual tokens"}


def test_seeds_of_one_method_must_prune_alike(adapter: LVLMAdapter, tmp_path: Path) -> None:
    save_tiny_agent(tmp_path / "a", adapter)
    save_tiny_agent(tmp_path / "b", adapter, seed=1, stage_layers=(0, 3))
    with pytest.raises(UserError, match="prune differently at 12 tokens kept: name them apart as NAME="):
        grid_of(adapter, find_agents([f"{tmp_path}/*"]))
