"""Sampling: keep probabilities, their logarithms and entropies, and the threshold that meets a count."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toprl_export.pruning.select import select
from toprl_trainers.rl.gumbel import entropy, log_probability, sample_keep, temperature_at, threshold_for_count

DRAWS = 40_000


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.empty(2, *shape).exponential_(generator=torch.Generator().manual_seed(seed))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("logit", [-1.1, 0.4, 0.7])
def test_keeps_with_probability_sigmoid_of_logit_over_temperature(logit: float, temperature: float):
    kept = sample_keep(torch.full((4, DRAWS // 4), logit), temperature, noise(3, 4, DRAWS // 4))
    share, expected = float(kept.float().mean()), sigmoid(logit / temperature)
    error = 4 * math.sqrt(expected * (1 - expected) / DRAWS)
    assert abs(share - expected) < error
    # the control: what a sampler that does not divide the logits by the temperature would give, or one of half noise
    for wrong in {sigmoid(logit), sigmoid(2 * logit / temperature)} - {expected}:
        assert abs(share - wrong) > error


def test_draws_are_independent_and_follow_the_noise():
    logits = torch.zeros(2, 2000)
    kept = sample_keep(logits, 1.0, noise(0, 2, 2000))
    assert torch.equal(kept, sample_keep(logits, 1.0, noise(0, 2, 2000)))
    assert not torch.equal(kept, sample_keep(logits, 1.0, noise(1, 2, 2000)))
    centred = kept.float() - 0.5
    assert abs(float((centred[0] * centred[1]).mean())) < 0.25 * 4 / math.sqrt(2000)


def test_log_probability_by_hand():
    logits, kept = torch.tensor([[math.log(3.0), math.log(3.0)]]), torch.tensor([[True, False]])
    torch.testing.assert_close(log_probability(logits, kept, 1.0).exp(), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(log_probability(logits, kept, 0.5).exp(), torch.tensor([[0.9, 0.1]]))
    extreme = log_probability(torch.tensor([[1e4, -1e4]]), torch.tensor([[True, True]]), 0.05)
    assert bool(torch.isfinite(extreme).all())


def test_entropy_by_hand():
    def binary(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    found = entropy(torch.tensor([[0.0, math.log(3.0)]]), 1.0)
    torch.testing.assert_close(found, torch.tensor([[math.log(2.0), binary(0.75)]]))
    torch.testing.assert_close(entropy(torch.tensor([[math.log(3.0)]]), 0.5), torch.tensor([[binary(0.9)]]))


def test_temperature_falls_geometrically():
    assert temperature_at(0, 1.0, 0.05) == 1.0
    assert temperature_at(1, 1.0, 0.05) == pytest.approx(0.05)
    assert temperature_at(0.5, 1.0, 0.04) == pytest.approx(0.2)


@given(
    scores=st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=40),
    share=st.floats(0.1, 0.9),
    temperature=st.floats(0.05, 2),
)
def test_threshold_meets_the_count(scores: list[float], share: float, temperature: float):
    row, count = torch.tensor([scores]), share * len(scores)
    threshold = threshold_for_count(row, torch.ones_like(row, dtype=torch.bool), count, temperature)
    assert float(torch.sigmoid((row - threshold) / temperature).sum()) == pytest.approx(count, abs=2e-3)


def test_threshold_counts_the_alive_only_and_becomes_top_k():
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    alive = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.7
    threshold = threshold_for_count(scores, alive, 4, 1e-4)
    sampled = sample_keep(scores - threshold, 1e-4, noise(2, 3, 20)) & alive
    best = select(scores.masked_fill(~alive, -100), 4)
    assert torch.equal(sampled.nonzero()[:, 1].reshape(3, 4), best)


def test_rows_with_too_few_or_no_tokens():
    alive = torch.tensor([[True, True, False], [False, False, False]])
    threshold = threshold_for_count(torch.zeros(2, 3), alive, 2, 0.5)
    assert bool(torch.isfinite(threshold).all())
    assert float(torch.sigmoid((0 - threshold[0]) / 0.5)) > 0.999
