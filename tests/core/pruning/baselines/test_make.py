import pytest
import torch

from tests.support.stage_inputs import random_inputs
from toprl_export.errors import UserError
from toprl_export.pruning.baselines.make import make_scorer
from toprl_export.pruning.baselines.plans import BASELINES, baseline_scorer
from toprl_export.pruning.scorer import SCORERS


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_built_as_it_is_registered(name):
    scorer = make_scorer(name)
    assert type(scorer) is SCORERS.get(baseline_scorer(name))
    assert not scorer.training


@pytest.mark.parametrize("name", BASELINES)
def test_only_random_depends_on_the_seed(name):
    inputs = random_inputs(0)
    same = torch.equal(make_scorer(name, seed=1)(inputs), make_scorer(name, seed=2)(inputs))
    assert same == (name != "random")


def test_the_oracle_is_made_per_batch():
    with pytest.raises(UserError, match="the oracle scores by the evidence of each image"):
        make_scorer("oracle")


def test_an_unknown_baseline_is_refused():
    with pytest.raises(UserError, match="unknown baseline 'divprun'; did you mean 'divprune'"):
        make_scorer("divprun")
