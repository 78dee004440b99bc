"""DivPrune against the paper's greedy algorithm written out in loops of NumPy."""

from dataclasses import replace

import numpy as np
import torch

from tests.support.stage_inputs import only_row, random_inputs
from toprl_export.pruning.baselines.diversity import DivPruneScorer
from toprl_export.pruning.scorer import ScorerNeeds, StageInputs
from toprl_export.pruning.select import select


def distances(visual: torch.Tensor) -> np.ndarray:
    x = visual.double().numpy()
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return 1 - x @ x.T


def greedy(distance: np.ndarray, first: int | None = None) -> list[int]:
    """The most isolated token, then always the one farthest from its nearest chosen one."""
    tokens = range(len(distance))
    if first is None:
        first = max(tokens, key=lambda i: min(distance[i, j] for j in tokens if j != i))
    chosen = [first]
    while len(chosen) < len(distance):
        chosen.append(max(set(tokens) - set(chosen), key=lambda i: min(distance[i, j] for j in chosen)))
    return chosen


def test_the_order_is_the_greedy_one():
    inputs = random_inputs(3)
    scores = DivPruneScorer()(inputs)
    for row in range(3):
        alone = distances(only_row(inputs, row).visual[0])
        living = scores[row, inputs.alive[row]]
        assert (-living).long().argsort().tolist() == greedy(alone)
        assert living.min() > scores[row, ~inputs.alive[row]].max()


def test_another_first_token_would_give_another_set():
    distance = distances(random_inputs(3).visual[0])
    best = greedy(distance)
    worst = max(range(16), key=best.index)
    assert set(greedy(distance, first=worst)[:5]) != set(best[:5])


def test_the_kept_are_farther_apart_than_tokens_at_random():
    inputs = random_inputs(4, batch=1, tokens=40, all_alive=True)
    distance = distances(inputs.visual[0]) + 9 * np.eye(40)
    kept = select(DivPruneScorer()(inputs), 8)[0].numpy()
    rng = np.random.default_rng(0)
    others = [rng.choice(40, 8, replace=False) for _ in range(50)]
    assert distance[np.ix_(kept, kept)].min() > max(distance[np.ix_(some, some)].min() for some in others)


def test_duplicates_are_taken_last():
    visual = torch.eye(4).repeat_interleave(3, dim=0)[None]
    scores = DivPruneScorer()(StageInputs(0, visual, None, torch.arange(12)[None]))
    kept = select(scores, 4)[0]
    assert (kept // 3).tolist() == [0, 1, 2, 3]


def test_a_known_keep_count_is_enough_of_the_order():
    inputs, scorer = random_inputs(8, all_alive=True), DivPruneScorer()
    for count in (1, 5, 16, 99):
        kept = min(count, 16)
        assert torch.equal(select(scorer(replace(inputs, keep=count)), kept), select(scorer(inputs), kept))
    assert len(scorer(replace(inputs, keep=5))[0].unique()) == 6  # the other eleven were not ordered


def test_it_needs_nothing_but_the_states():
    assert DivPruneScorer.needs == ScorerNeeds()
