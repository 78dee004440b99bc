import pytest
import torch

from tests.support.stage_inputs import random_inputs
from toprl_export.pruning.baselines.attention import FastVScorer, PyramidDropScorer
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs


def test_it_scores_by_the_row_of_the_coming_layer():
    assert PyramidDropScorer.needs == ScorerNeeds(attention="last", attention_layer="next")
    assert FastVScorer.needs.attention_layer == "previous"
    inputs = random_inputs(0)
    assert inputs.attention is not None
    assert torch.equal(PyramidDropScorer()(inputs), inputs.attention[:, -1])


def test_without_the_row_there_is_no_score():
    with pytest.raises(ValueError, match="no attention row"):
        PyramidDropScorer()(StageInputs(0, torch.zeros(1, 5, 2), None, torch.arange(5)[None]))
