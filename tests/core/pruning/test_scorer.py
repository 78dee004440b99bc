import subprocess
import sys

import pytest
import torch

from toprl_export.errors import UserError
from toprl_export.pruning.scorer import SCORERS, Scorer, ScorerNeeds, StageInputs, question_states


def test_every_registered_scorer_is_one():
    assert SCORERS.names() == [
        "actor",
        "random",
        "uniform",
        "fastv",
        "pyramiddrop",
        "sparsevlm",
        "visionzip",
        "divprune",
        "dart",
        "cdpruner",
        "oracle",
    ]
    for name in SCORERS.names():
        assert issubclass(SCORERS.get(name), Scorer)


def test_most_scorers_need_only_some_of_what_the_walk_can_give():
    by_states = [name for name in SCORERS.names() if SCORERS.get(name).needs == ScorerNeeds()]
    assert by_states == ["actor", "random", "uniform", "divprune", "oracle"]
    by_attention = [name for name in SCORERS.names() if SCORERS.get(name).needs.attention != "none"]
    assert by_attention == ["fastv", "pyramiddrop", "sparsevlm"]


def test_the_questions_states_leave_out_padding_and_answer():
    text = torch.arange(10.0).reshape(1, 5, 2)
    question_mask = torch.tensor([[False, True, True, True, False]])
    mean, last = question_states(
        StageInputs(0, torch.zeros(1, 3, 2), None, torch.arange(3)[None], None, text, question_mask)
    )
    assert mean.tolist() == [[4.0, 5.0]]
    assert last.tolist() == [[6.0, 7.0]]


def test_an_unknown_scorer_is_refused():
    with pytest.raises(UserError, match="unknown scorer 'fast'; did you mean 'fastv'"):
        SCORERS.get("fast")


def test_plans_and_flops_need_no_torch():
    code = (
        "import sys, toprl_export.pruning.plan, toprl_export.pruning.flops, toprl_export.pruning.baselines.specs;"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
