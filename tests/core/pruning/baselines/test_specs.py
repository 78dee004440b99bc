from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.support.stage_inputs import random_inputs
from toprl_export.errors import UserError
from toprl_export.pruning.baselines.specs import (
    BASELINE_SPECS,
    BASELINES,
    BUILDABLE_BASELINES,
    ORACLE,
    baseline_plan,
    baseline_spec,
)
from toprl_export.pruning.scorer import SCORERS, make_scorer


def test_a_graph_holds_what_neither_draws_nor_knows_the_answer():
    assert {*BASELINES} - {*BUILDABLE_BASELINES} == {"random"}
    assert {*BASELINE_SPECS} - {*BASELINES} == {ORACLE}
    assert not BASELINE_SPECS[ORACLE].buildable


@pytest.mark.parametrize("name", (*BASELINES, ORACLE))
@pytest.mark.parametrize("layers", [1, 2, 8, 12, 32])
def test_every_baseline_runs_at_the_agents_budgets(name, layers):
    budgets = (29, 64, 192, 576)
    plan = baseline_plan(name, 576, layers, budgets)
    for budget in budgets:
        assert budget - 1 < plan.schedule(budget).average_kept <= budget
    assert {stage.scorer for stage in plan.stages} == {baseline_spec(name).scorer}
    assert baseline_spec(name).scorer in SCORERS


AT_THE_AGENTS_STAGES = ("random", "uniform", "fastv-p", "sparsevlm", "oracle")
ONE_SHOT = ("fastv", "dart", "visionzip", "divprune", "cdpruner")


def test_the_progressive_ones_prune_where_the_agent_does():
    for name in AT_THE_AGENTS_STAGES:
        assert baseline_plan(name, 576, 8, (192,)).stage_layers == (0, 2, 5)
        assert baseline_plan(name, 576, 8, (192,), stage_layers=(1, 4)).stage_layers == (1, 4)


@pytest.mark.parametrize(
    ("layers", "budget", "layer"), [(32, 192, 2), (32, 64, 2), (32, 36, 1), (32, 18, 0), (8, 192, 1), (8, 80, 0)]
)
def test_fastv_and_dart_prune_once_and_as_late_as_the_paper_or_the_budget_says(layers, budget, layer):
    for name in ("fastv", "dart"):
        assert baseline_plan(name, 576, layers, (budget, 300)).stage_layers == (layer,)


def test_what_sees_no_decoder_layer_prunes_at_the_input_to_the_budget_itself():
    for name in ("visionzip", "divprune", "cdpruner"):
        plan = baseline_plan(name, 576, 8, (64, 192))
        assert plan.stage_layers == (0,)
        assert [schedule.keep_counts for schedule in plan.schedules] == [(64,), (192,)]


@pytest.mark.parametrize(
    ("layers", "budget", "stages"),
    [
        (32, 192, (8, 16, 24)),
        (32, 128, (6, 14, 22)),
        (32, 64, (2, 10, 18)),
        (32, 18, (0, 8, 16)),
        (8, 192, (2, 4, 6)),
        (8, 146, (1, 3, 5)),
        (8, 64, (0, 2, 4)),
        (2, 300, (0, 1)),
    ],
)
def test_pyramiddrop_prunes_at_quarters_or_as_much_earlier_as_the_budget_demands(layers, budget, stages):
    plan = baseline_plan("pyramiddrop", 576, layers, (budget, 400))
    assert plan.stage_layers == stages


@pytest.mark.parametrize("layers", [8, 32])
@pytest.mark.parametrize("name", ["fastv", "dart", "pyramiddrop"])
def test_uncut_layers_never_starve_what_follows(name, layers):
    for budget in range(8, 577, 3):
        assert 3 * baseline_plan(name, 576, layers, (budget,)).schedule(budget).keep_counts[0] >= budget


def test_pyramiddrop_halves():
    counts = baseline_plan("pyramiddrop", 576, 32, (270,)).schedule(270).keep_counts
    assert all(abs(later - earlier / 2) <= 1 for earlier, later in pairwise(counts))
    others = baseline_plan("fastv-p", 576, 32, (270,)).schedule(270).keep_counts
    assert others[1] > others[0] / 2 + 1


def test_only_the_progressive_ones_care_where_the_agent_prunes():
    for name in (*ONE_SHOT, "pyramiddrop"):
        counts = {
            baseline_plan(name, 576, 8, (192,), layers, decay).schedule(192).keep_counts
            for layers, decay in (((1, 4), 0.3), (None, 0.6))
        }
        assert len(counts) == 1
        assert baseline_plan(name, 576, 8, (192,), (1, 4)).stages == baseline_plan(name, 576, 8, (192,)).stages
    for name in AT_THE_AGENTS_STAGES:
        counts = {baseline_plan(name, 576, 8, (192,), decay=decay).schedule(192).keep_counts for decay in (0.3, 0.6)}
        assert len(counts) == 2
    assert {*AT_THE_AGENTS_STAGES, *ONE_SHOT, "pyramiddrop"} == {*BASELINES, ORACLE}


def test_an_unknown_baseline_is_refused():
    with pytest.raises(UserError, match="unknown baseline 'fastv_p'; did you mean 'fastv-p'"):
        baseline_plan("fastv_p", 576, 8, (192,))


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_built_as_it_is_registered(name):
    scorer = make_scorer(name)
    assert type(scorer) is SCORERS.get(baseline_spec(name).scorer)
    assert not scorer.training


@pytest.mark.parametrize("name", BASELINES)
def test_only_random_depends_on_the_seed(name):
    inputs = replace(random_inputs(0), keep=8)
    same = torch.equal(make_scorer(name, seed=1)(inputs), make_scorer(name, seed=2)(inputs))
    assert same == (name != "random")


def test_the_oracle_is_made_per_batch():
    with pytest.raises(UserError, match="the oracle scores by the evidence of each image"):
        make_scorer("oracle")


def test_an_unknown_baseline_has_no_scorer():
    with pytest.raises(UserError, match="unknown baseline 'divprun'; did you mean 'divprune'"):
        make_scorer("divprun")
