import pytest
import torch

from toprl_export.pruning.baselines.attention import FastVScorer
from toprl_export.pruning.scorer import StageInputs
from toprl_export.pruning.select import select


def test_the_most_attended_tokens_stay():
    row = torch.tensor([[[0.1, 0.4, 0.2, 0.25, 0.05]]])
    scores = FastVScorer()(StageInputs(0, torch.zeros(1, 5, 2), None, torch.arange(5)[None], row))
    assert select(scores, 2).tolist() == [[1, 3]]


def test_it_asks_for_the_attention_row():
    assert FastVScorer.needs.attention == "last"
    with pytest.raises(ValueError, match="no attention row"):
        FastVScorer()(StageInputs(0, torch.zeros(1, 5, 2), None, torch.arange(5)[None]))
