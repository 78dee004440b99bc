"""DART against its retained sets written out in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.stage_inputs import only_row, random_inputs
from toprl_export.pruning.baselines.diversity import PIVOTS, DARTScorer
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select


def largest(states: np.ndarray, order: int = 1) -> list[int]:
    return np.argsort(-np.linalg.norm(states, ord=order, axis=-1), kind="stable")[:PIVOTS].tolist()


def retained(alone: StageInputs, share: int, least: bool = True) -> set[int]:
    """The visual pivots, and of every pivot the ``share`` other visual tokens least similar to it."""
    visual = alone.visual[0].double().numpy()
    question = alone.text[0, alone.question_mask[0]].double().numpy()
    own = largest(visual)
    kept, others = set(own), [i for i in range(len(visual)) if i not in own]
    for pivot in [*visual[own], *question[largest(question)]]:
        similarity = visual[others] @ pivot / np.linalg.norm(visual[others], axis=-1) / np.linalg.norm(pivot)
        kept |= {others[i] for i in np.argsort(similarity if least else -similarity)[:share]}
    return kept


@pytest.mark.parametrize("text", [2, 9], ids=["fewer question tokens than pivots", "more"])
def test_each_pivot_retains_equally_many(text):
    inputs = random_inputs(8, tokens=40, text=text, width=20)
    scores = DARTScorer()(inputs)
    for row in range(3):
        alone, living = only_row(inputs, row), scores[row : row + 1, inputs.alive[row]]
        for share in (1, 2, 3):
            expected = retained(alone, share)
            assert set(select(living, len(expected))[0].tolist()) == expected
            assert retained(alone, share, least=False) != expected
        assert living.min() > scores[row, ~inputs.alive[row]].max()


def test_visual_pivots_are_kept_first():
    inputs = random_inputs(8, tokens=20)
    kept = select(DARTScorer()(inputs).masked_fill(~inputs.alive, -torch.inf), PIVOTS)
    for row in range(3):
        states = inputs.visual[row].numpy() * inputs.alive[row, :, None].numpy()
        assert kept[row].tolist() == sorted(largest(states))
        assert largest(states) != list(range(PIVOTS))


def test_copies_of_the_pivots_are_dropped():
    inputs = random_inputs(8, batch=1, tokens=24, width=32, all_alive=True)
    visual = inputs.visual.clone()
    visual[0, 4:12] = visual[0, :1]
    visual[0, :4] = 100 * visual[0, :1]
    copied = replace(inputs, visual=visual, question_mask=torch.zeros_like(inputs.question_mask))
    kept = select(DARTScorer()(copied), 16)[0].tolist()
    assert kept == [*range(4), *range(12, 24)]


def test_it_asks_for_the_text():
    assert DARTScorer.needs == ScorerNeeds(text=True)
    with pytest.raises(ValueError, match="no text"):
        DARTScorer()(replace(random_inputs(0), text=None))
