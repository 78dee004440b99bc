"""Intervals: against the metrics' own, against a plain bootstrap by index, and what pooling must not do."""

from __future__ import annotations

import numpy as np
import pytest

from toprl_export.evaluation.estimates import Estimate, Resampled, accuracy, mean_difference, mean_ratio, retention
from toprl_export.tasks.metrics import difference_interval, wilson_interval

N = 300


def outcomes(seed: int, share: float) -> np.ndarray:
    return (np.random.default_rng(seed).random(N) < share).astype(np.float64)


def drawn(*shares: float, seed: int = 0) -> Resampled:
    found = {name: outcomes(seed * 10 + at, share) for at, (name, share) in enumerate(zip("ab", shares, strict=True))}
    return Resampled.of(found, 0, f"task-{seed}")


def width(estimate: Estimate) -> float:
    return estimate.ci95[1] - estimate.ci95[0]


def test_a_difference_agrees_with_the_paired_bootstrap_of_the_metrics():
    one, other = outcomes(0, 0.9), outcomes(1, 0.7)
    found = Resampled.of({"a": one, "b": other}, 0, "task").difference("a", "b")
    expected = difference_interval(one, other)
    assert found.value == pytest.approx(expected.value)
    assert found.ci95 == pytest.approx(expected.ci95, abs=0.012)


def test_a_ratio_agrees_with_a_bootstrap_by_index():
    one, other = outcomes(0, 0.6), outcomes(1, 0.8)
    found = Resampled.of({"a": one, "b": other}, 0, "task").ratio("a", "b")
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(2000):
        index = rng.integers(N, size=N)
        ratios.append(one[index].mean() / other[index].mean())
    assert found is not None
    assert found.value == pytest.approx(one.mean() / other.mean())
    assert found.ci95 == pytest.approx(np.percentile(ratios, (2.5, 97.5)), abs=0.02)
    assert found.ci95 == pytest.approx(retention(one, other, 0).ci95, abs=0.02)


def test_pairing_narrows_the_interval():
    one = outcomes(0, 0.7)
    near = one.copy()
    near[:6] = 1 - near[:6]
    paired = Resampled.of({"a": one, "b": near}, 0, "task").difference("a", "b")
    unpaired = Resampled.of({"a": one, "b": outcomes(9, 0.7)}, 0, "task").difference("a", "b")
    assert width(paired) < width(unpaired) / 3


def test_several_agents_that_agree_are_no_further_questions():
    one, other = outcomes(0, 0.9), outcomes(1, 0.7)
    single = Resampled.of({"a": one, "b": other}, 0, "task").difference("a", "b")
    agreeing = Resampled.of({"a": np.mean([one] * 3, axis=0), "b": other}, 0, "task").difference("a", "b")
    taken_for_questions = difference_interval(np.tile(one, 3), np.tile(other, 3))
    assert width(agreeing) == pytest.approx(width(single))
    assert taken_for_questions.ci95[1] - taken_for_questions.ci95[0] < 0.7 * width(single)


def test_an_average_over_tasks_is_narrower_because_tasks_are_drawn_apart():
    tasks = [drawn(0.9, 0.7, seed=seed) for seed in range(4)]
    average = mean_difference(tasks, "a", "b")
    single = np.mean([width(task.difference("a", "b")) for task in tasks])
    assert average.value == pytest.approx(np.mean([task.means["a"] - task.means["b"] for task in tasks]))
    assert width(average) == pytest.approx(single / 2, rel=0.12)
    averaged = mean_difference([tasks[0]] * 4, "a", "b")
    assert width(averaged) == pytest.approx(width(tasks[0].difference("a", "b")))


def test_an_average_ratio_is_the_mean_of_the_tasks_ratios():
    tasks = [drawn(0.6, 0.9, seed=seed) for seed in range(3)]
    found = mean_ratio(tasks, "a", "b")
    assert found.value == pytest.approx(np.mean([task.means["a"] / task.means["b"] for task in tasks]))
    assert found.ci95[0] < found.value < found.ci95[1]


def test_nothing_right_has_no_ratio():
    assert Resampled.of({"a": outcomes(0, 0.5), "b": np.zeros(N)}, 0, "task").ratio("a", "b") is None


def test_an_accuracy_counts_a_question_once_however_many_answered_it():
    one = outcomes(0, 0.8)
    assert accuracy(one).ci95 == wilson_interval(int(one.sum()), N)
    half = accuracy(np.array([1.0] * 16 + [0.5] + [0.0] * 3))
    assert half.value == 0.825
    for end in (0, 1):
        assert half.ci95[end] == pytest.approx((wilson_interval(16, 20)[end] + wilson_interval(17, 20)[end]) / 2)
    pooled = accuracy(np.mean([one, outcomes(1, 0.8), outcomes(2, 0.8)], axis=0))
    assert width(pooled) == pytest.approx(width(accuracy(one)), rel=0.1)
