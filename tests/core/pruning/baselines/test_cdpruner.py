"""CDPruner against determinants computed by NumPy for every candidate of every step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support.stage_inputs import only_row, random_inputs
from toprl_export.pruning.baselines.diversity import CDPrunerScorer, question_relevance
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b.T / np.linalg.norm(a, axis=-1, keepdims=True) / np.linalg.norm(b, axis=-1)


def relevance_of(alone: StageInputs) -> np.ndarray:
    question = alone.text[0, alone.question_mask[0]].double().numpy().mean(0, keepdims=True)
    similarity = cosines(alone.visual[0].double().numpy(), question)[:, 0]
    return (similarity - similarity.min()) / np.ptp(similarity)


def kernel_of(alone: StageInputs, relevance: np.ndarray) -> np.ndarray:
    x = alone.visual[0].double().numpy()
    return relevance[:, None] * cosines(x, x) * relevance


def greedy(kernel: np.ndarray, count: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(count):
        rest = [i for i in range(len(kernel)) if i not in chosen]
        volumes = [np.linalg.det(kernel[np.ix_([*chosen, i], [*chosen, i])]) for i in rest]
        chosen.append(rest[int(np.argmax(volumes))])
    return chosen


def order_of(scores: torch.Tensor) -> list[int]:
    return scores.argsort(descending=True, stable=True).tolist()


def test_each_step_takes_the_token_of_the_largest_determinant():
    inputs = random_inputs(5, tokens=11, width=16)
    scores = CDPrunerScorer()(inputs)
    for row in range(3):
        alone = only_row(inputs, row)
        relevance = relevance_of(alone)
        living = alone.visual.shape[1]
        order = order_of(scores[row, inputs.alive[row]])
        # The least relevant token has relevance 0, so any set with it has no volume: it comes last.
        assert order[: living - 1] == greedy(kernel_of(alone, relevance), living - 1)
        assert order[-1] == int(relevance.argmin())
        unconditional = greedy(kernel_of(alone, np.ones_like(relevance)), living)
        assert unconditional != order, "the question must matter"


def test_relevance_spans_0_to_1_over_the_living():
    inputs = random_inputs(5)
    relevance = question_relevance(inputs)
    for row in range(3):
        np.testing.assert_allclose(
            relevance[row, inputs.alive[row]].numpy(), relevance_of(only_row(inputs, row)), atol=1e-5
        )


def test_tokens_beyond_the_rank_follow_by_relevance():
    inputs = random_inputs(6, batch=2, tokens=14, width=4, all_alive=True)
    scores = CDPrunerScorer()(inputs)
    assert scores.isfinite().all()
    for row in range(2):
        relevance = relevance_of(only_row(inputs, row))
        first = greedy(kernel_of(only_row(inputs, row), relevance), 4)
        rest = sorted(set(range(14)) - set(first), key=lambda i: -relevance[i])
        assert order_of(scores[row]) == [*first, *rest]


def test_tokens_that_are_all_alike_have_scores():
    inputs = random_inputs(7, all_alive=True)
    scores = CDPrunerScorer()(replace(inputs, visual=inputs.visual[:, :1].expand(-1, 16, -1)))
    assert scores.isfinite().all()


def test_a_known_keep_count_is_enough_of_the_order():
    inputs, scorer = random_inputs(8, tokens=14, width=6, all_alive=True), CDPrunerScorer()
    for count in (1, 4, 6, 9, 99):
        kept = min(count, 14)
        assert torch.equal(select(scorer(replace(inputs, keep=count)), kept), select(scorer(inputs), kept))
    ordered = scorer(replace(inputs, keep=4))[0] > 1  # the others have their relevance, below 1
    assert int(ordered.sum()) == 4


def test_it_asks_for_the_text():
    assert CDPrunerScorer.needs == ScorerNeeds(text=True)
    with pytest.raises(ValueError, match="the walk gave no text"):
        CDPrunerScorer()(replace(random_inputs(0), text=None))
