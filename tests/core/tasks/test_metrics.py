"""Metrics against hand-worked cases and independent recomputation."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toprl_export.errors import UserError
from toprl_export.tasks.metrics import (
    PairedEstimate,
    difference_interval,
    normalise,
    retention_interval,
    score,
    summarise,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("yes", "yes", 1.0),
        (" Yes. ", "yes", 1.0),
        ("4  2\t7\n", "4 2 7", 1.0),
        ("It's RED!", "it s red", 1.0),
        ("snake_case", "snake case", 1.0),
        ("yes yes", "yes", 0.0),
        ("4 2", "4 2 7", 0.0),
        ("427", "4 2 7", 0.0),
        ("", "no", 0.0),
        ("no", "yes", 0.0),
    ],
)
def test_score_is_exact_match_on_normalised_words(prediction: str, answer: str, expected: float):
    assert score(prediction, answer) == expected


@given(st.text())
def test_normalised_text_is_normal(text: str):
    words = normalise(text)
    assert normalise(words) == words
    assert words == words.strip() and "  " not in words
    assert all(letter.isalnum() or letter == " " or not letter.isascii() for letter in words)


def test_summary_of_a_hand_worked_yes_no_case():
    #               hit   miss  miss        false alarm  right no  right no, the last is neither yes nor no
    predictions = ["Yes.", "no", "perhaps", "yes", "no", "No!", "maybe"]
    answers = ["yes", "yes", "yes", "no", "no", "no", "no"]
    summary = summarise(predictions, answers, f1_of="yes")
    assert (summary.value, summary.n) == (3 / 7, 7)
    assert summary.extra == pytest.approx(
        {"precision": 1 / 2, "recall": 1 / 3, "f1": 2 * (1 / 2 * 1 / 3) / (1 / 2 + 1 / 3), "predicted_share": 2 / 7}
    )
    assert summary.ci95 == wilson_interval(3, 7)
    assert summarise(predictions, answers).extra == {}


def test_f1_without_any_positive_is_zero():
    assert summarise(["no"], ["no"], f1_of="yes").extra["f1"] == 0.0


@pytest.mark.parametrize(("predictions", "answers"), [([], []), (["yes"], ["yes", "no"])])
def test_a_summary_needs_as_many_predictions_as_answers(predictions: list[str], answers: list[str]):
    with pytest.raises(ValueError):
        summarise(predictions, answers)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(case: tuple[int, int]):
    successes, n = case
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    for bound in (low, high):
        # |p̂ - p| = z·sqrt(p(1-p)/n) is what defines the interval; p = 0 and p = 1 solve it at the ends.
        deviation = 1.959963984540054 * math.sqrt(bound * (1 - bound) / n)
        assert abs(abs(successes / n - bound) - deviation) < 1e-9


def test_wilson_of_a_published_case():
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662 by the score method.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("case", [(0, 0), (3, 2), (-1, 2)])
def test_wilson_of_nothing_is_refused(case: tuple[int, int]):
    with pytest.raises(ValueError):
        wilson_interval(*case)


def plain_bootstrap(pairs: list[tuple[int, int]], ratio: bool) -> tuple[float, float]:
    """The same bootstrap, question by question with Python's own generator."""
    rng, values = random.Random(1), []
    for _ in range(2000):
        drawn = rng.choices(pairs, k=len(pairs))
        one, other = sum(a for a, _ in drawn), sum(b for _, b in drawn)
        values.append(one / other if ratio else (one - other) / len(pairs))
    values.sort()
    return values[49], values[1949]


PAIRS = [(1, 1)] * 150 + [(0, 1)] * 20 + [(1, 0)] * 10 + [(0, 0)] * 20


@pytest.mark.parametrize("ratio", [True, False])
def test_paired_intervals_agree_with_a_plain_bootstrap(ratio: bool):
    one, other = zip(*PAIRS, strict=True)
    estimate = (retention_interval if ratio else difference_interval)(one, other)
    expected = Fraction(160, 170) if ratio else Fraction(-10, 200)
    assert estimate.value == pytest.approx(float(expected))
    assert estimate.n == 200
    assert estimate.ci95 == pytest.approx(plain_bootstrap(PAIRS, ratio), abs=0.01)


def test_pairing_counts():
    """Shuffling one side, as if the questions were not the same, widens the interval far."""
    one, other = map(np.array, zip(*PAIRS, strict=True))
    paired = difference_interval(one, other).ci95
    unpaired = difference_interval(one, np.random.default_rng(0).permutation(other)).ci95
    assert unpaired[1] - unpaired[0] > 1.3 * (paired[1] - paired[0])


@pytest.mark.parametrize("ratio", [True, False])
def test_paired_intervals_cover_the_truth_95_times_in_100(ratio: bool):
    rng = np.random.default_rng(3)
    truth = 0.8 / 0.9 if ratio else -0.1  # probabilities of (both, only one, only other, neither): see below
    covered = 0
    for _ in range(300):
        outcome = rng.choice(4, size=400, p=(0.75, 0.05, 0.15, 0.05))
        one, other = outcome <= 1, (outcome == 0) | (outcome == 2)
        low, high = (retention_interval if ratio else difference_interval)(one, other, resamples=400).ci95
        covered += low <= truth <= high
    assert 0.91 <= covered / 300 <= 0.98


@pytest.mark.parametrize("interval", [retention_interval, difference_interval])
def test_few_losses_are_not_taken_for_none(interval: Callable[..., PairedEstimate]):
    """One question in a hundred is lost, so of a hundred questions often none: a plain bootstrap covers 63% then."""
    rng = np.random.default_rng(5)
    full, truth = np.ones(100), 0.99 if interval is retention_interval else -0.01
    covered = 0
    for _ in range(300):
        low, high = interval(rng.random(100) > 0.01, full, resamples=400).ci95
        covered += low <= truth <= high
    assert covered / 300 >= 0.93


def test_intervals_repeat_by_seed_and_have_a_width_without_disagreement():
    one, other = zip(*PAIRS, strict=True)
    assert retention_interval(one, other) == retention_interval(one, other)
    assert retention_interval(one, other, seed=1).ci95 != retention_interval(one, other).ci95
    estimate = retention_interval([1] * 100, [1] * 100)
    assert estimate.value == 1.0 and 0.96 < estimate.ci95[0] < 1.0


def test_retention_of_a_model_that_knows_nothing_is_one_clear_line():
    with pytest.raises(UserError, match="answered none of 3 questions correctly"):
        retention_interval([1, 0, 1], [0, 0, 0])


def test_rare_resamples_without_a_right_answer_are_left_out():
    estimate = retention_interval([1, 0, 0], [1, 0, 0])
    assert estimate.value == 1.0 and all(map(math.isfinite, estimate.ci95))


@pytest.mark.parametrize(("one", "other"), [([], []), ([1], [1, 0]), ([0.5], [1.0]), ([[1]], [[1]]), ([math.nan], [1])])
def test_what_is_not_a_pair_of_outcomes_is_refused(one: list, other: list):
    with pytest.raises(ValueError, match="expected"):
        difference_interval(one, other)
