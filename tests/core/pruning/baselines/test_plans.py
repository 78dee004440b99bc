import pytest

from toprl_export.errors import UserError
from toprl_export.pruning.baselines.plans import BASELINES, ORACLE, baseline_plan, baseline_scorer
from toprl_export.pruning.scorer import SCORERS


@pytest.mark.parametrize("name", (*BASELINES, ORACLE))
@pytest.mark.parametrize("layers", [1, 2, 8, 12, 32])
def test_every_baseline_runs_at_the_agents_budgets(name, layers):
    budgets = (29, 64, 192, 576)
    plan = baseline_plan(name, 576, layers, budgets)
    for budget in budgets:
        assert budget - 1 < plan.schedule(budget).average_kept <= budget
    assert {stage.scorer for stage in plan.stages} == {baseline_scorer(name)}
    assert baseline_scorer(name) in SCORERS


def test_random_uniform_and_fastv_p_prune_where_the_agent_does():
    for name in ("random", "uniform", "fastv-p"):
        assert baseline_plan(name, 576, 8, (192,)).stage_layers == (0, 2, 5)
        assert baseline_plan(name, 576, 8, (192,), stage_layers=(1, 4)).stage_layers == (1, 4)


@pytest.mark.parametrize(
    ("layers", "budget", "layer"), [(32, 192, 2), (32, 64, 2), (32, 36, 1), (32, 18, 0), (8, 192, 1), (8, 64, 0)]
)
def test_fastv_prunes_once_and_as_late_as_the_paper_or_the_budget_says(layers, budget, layer):
    assert baseline_plan("fastv", 576, layers, (budget, 300)).stage_layers == (layer,)


def test_an_unknown_baseline_is_refused():
    with pytest.raises(UserError, match="unknown baseline 'fastv_p'; did you mean 'fastv-p'"):
        baseline_plan("fastv_p", 576, 8, (192,))
