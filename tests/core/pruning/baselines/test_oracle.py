import re

import pytest
import torch

from toprl_export.errors import UserError
from toprl_export.pruning.baselines.controls import OracleScorer, UniformScorer
from toprl_export.pruning.scorer import StageInputs
from toprl_export.pruning.select import gather_tokens, select

EVIDENCE = torch.tensor([[0, 0, 1, 0, 1, 0], [0, 1, 1, 1, 1, 0]], dtype=torch.bool)
MESSAGE = "the oracle cannot be exported, it knows the answers of one batch: build with an agent"


def inputs(origin: torch.Tensor) -> StageInputs:
    return StageInputs(0, torch.zeros(*origin.shape, 2), None, origin)


def test_the_evidence_stays():
    everything = inputs(torch.arange(6).expand(2, 6))
    kept = select(OracleScorer(EVIDENCE)(everything), 3)
    assert [int(EVIDENCE[row, kept[row]].sum()) for row in range(2)] == [2, 3]
    others = select(OracleScorer(~EVIDENCE)(everything), 2)
    assert not EVIDENCE.gather(1, others).any()


def test_what_else_is_kept_is_spread_evenly():
    evidence = torch.zeros(1, 576, dtype=torch.bool)
    evidence[0, 300:310] = True
    everything = inputs(torch.arange(576)[None])
    kept = set(select(OracleScorer(evidence)(everything), 40)[0].tolist()) - set(range(300, 310))
    assert kept == set(select(UniformScorer()(everything), 31)[0].tolist()) - set(range(300, 310))
    # Of more evidence than can be kept it takes some everywhere, not the topmost.
    some = select(OracleScorer(~evidence)(everything), 10)[0]
    assert some.max() > 400


def test_a_later_stage_knows_which_tokens_are_left():
    scorer, left = OracleScorer(EVIDENCE), torch.tensor([[0, 1, 4, 5], [0, 3, 4, 5]])
    kept = select(scorer(inputs(left)), 2)
    assert gather_tokens(left, kept).tolist() == [[0, 4], [3, 4]]


def test_the_evidence_of_another_batch_is_refused():
    with pytest.raises(ValueError, match="evidence of 2 images was given for 3"):
        OracleScorer(EVIDENCE)(inputs(torch.arange(6).expand(3, 6)))


def test_it_cannot_be_exported():
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scorer = OracleScorer(EVIDENCE)

        def forward(self, visual: torch.Tensor) -> torch.Tensor:
            return self.scorer(StageInputs(0, visual, None, torch.arange(6).expand(2, 6)))

    with pytest.raises(UserError, match=f"^{re.escape(MESSAGE)}$"):
        torch.export.export(Wrapper(), (torch.zeros(2, 6, 2),))
