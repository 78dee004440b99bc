"""Every baseline's scorer as ONNX Runtime runs it, against PyTorch; and what holds for all of them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.export import Dim

from tests.support.stage_inputs import ScoreTensors, only_row, random_inputs, tensors_of
from toprl_export.pruning.baselines.specs import BASELINES
from toprl_export.pruning.scorer import make_scorer
from toprl_export.pruning.select import select

EXPORTABLE = tuple(name for name in BASELINES if name not in ("random", "fastv-p"))
"""Random draws anew at every call; FastV-P shares FastV's scorer."""
FIXED_TOKENS = ("cdpruner",)
"""Those that are traced for one number of visual tokens, which is known at the input, where they prune."""
AXES = ("bn", "bn", "bn", "btn", "bt", "bt", "bn", "bs", "bn", "bt")
"""The dynamic axes of the tensors in `StageInputs`, in their order."""


@pytest.mark.parametrize("name", EXPORTABLE)
def test_the_exported_scores_are_the_eager_ones_at_other_sizes(name, as_onnx):
    module = ScoreTensors(make_scorer(name), keep=9)
    text = Dim("text")
    n = None if name in FIXED_TOKENS else Dim("tokens")
    # What is not read is traced without a shape of its own; the sum of two sizes is found out by the tracer.
    dims = {"b": Dim("batch"), "n": n, "t": text, "s": Dim.AUTO}
    shapes = tuple({axis: dims[size] for axis, size in enumerate(sizes)} for sizes in AXES)
    run = as_onnx(module, tensors_of(random_inputs(0, batch=2, tokens=14, text=5)), (shapes,))
    other = 14 if name in FIXED_TOKENS else 29
    for seed, batch, tokens, text in [(1, 3, 14, 7), (2, 1, other, 4)]:
        inputs = random_inputs(seed, batch, tokens, text)
        expected = module(*tensors_of(inputs)).numpy()
        (scores,) = run(*tensors_of(inputs))
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert np.ptp(expected[0]) > 1e-3, "scores that are all alike would agree whatever was exported"


@pytest.mark.parametrize("name", EXPORTABLE)
def test_a_row_is_pruned_as_if_it_had_come_alone_without_its_dead_tokens(name):
    scorer, inputs = make_scorer(name), random_inputs(11, batch=3, tokens=30, text=9, width=40)
    for row, count in itertools.product(range(3), (4, 5, 11)):
        asked = replace(inputs, keep=count)
        scores = scorer(asked).masked_fill(~inputs.alive, -torch.inf)
        alone, living = scorer(only_row(asked, row)), inputs.alive[row].nonzero().squeeze(1)
        batched = select(scores[row : row + 1], count)[0]
        assert batched.tolist() == living[select(alone, count)[0]].tolist()


@pytest.mark.parametrize("name", ["divprune", "dart", "cdpruner"])
def test_dead_tokens_that_were_counted_would_change_the_choice(name):
    """The control of the test above: these scorers compare tokens, so it matters which ones are there."""
    scorer, inputs = make_scorer(name), replace(random_inputs(11, batch=3, tokens=30, text=9, width=40), keep=11)
    right, wrong = scorer(inputs), scorer(replace(inputs, alive=None))
    order = [scores.masked_fill(~inputs.alive, -torch.inf).argsort(descending=True) for scores in (right, wrong)]
    assert not torch.equal(*order)
