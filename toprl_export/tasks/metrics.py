"""How answers are scored, and the 95% intervals of what is reported about them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toprl_export.errors import UserError
from toprl_export.seeding import numpy_rng

Interval = tuple[float, float]

RESAMPLES = 2000
_Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile


@dataclass(frozen=True)
class MetricSummary:
    """Accuracy over ``n`` questions with its 95% interval; ``extra`` holds further figures by name."""

    value: float
    n: int
    ci95: Interval
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PairedEstimate:
    """A comparison of two methods on the same ``n`` questions with its 95% interval."""

    value: float
    n: int
    ci95: Interval


def normalise(text: str) -> str:
    """``text`` in lower case, its punctuation and runs of blanks each made one blank, none at the ends.

    >>> normalise("  It's RED, isn't it? ")
    'it s red isn t it'
    """
    return " ".join(re.sub(r"[^\w\s]|_", " ", text.lower()).split())


def score(prediction: str, answer: str) -> float:
    """1.0 where the normalised words agree exactly, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def summarise(predictions: Sequence[str], answers: Sequence[str], f1_of: str | None = None) -> MetricSummary:
    """Accuracy with its Wilson interval.

    >>> summary = summarise(["yes", "No.", "yes", "two"], ["yes", "no", "no", "no"])
    >>> summary.value, [round(end, 3) for end in summary.ci95]
    (0.5, [0.15, 0.85])

    Args:
        predictions: what was answered.
        answers: the right answers, as many.
        f1_of: an answer whose ``precision``, ``recall``, ``f1`` and ``predicted_share`` are reported too, as POPE
            does for "yes" (Li et al. 2023). An answer that is neither yes nor no counts as not yes.

    Raises:
        ValueError: there are none, or not as many predictions as answers.
    """
    correct = [score(one, other) for one, other in zip(predictions, answers, strict=True)]
    interval = wilson_interval(int(sum(correct)), len(correct))
    extra = {} if f1_of is None else _detection(predictions, answers, f1_of)
    return MetricSummary(sum(correct) / len(correct), len(correct), interval, extra)


def _detection(predictions: Sequence[str], answers: Sequence[str], positive: str) -> dict[str, float]:
    """Precision, recall and F1 of one answer; 0 where nothing is positive."""
    predicted = [score(prediction, positive) for prediction in predictions]
    actual = [score(answer, positive) for answer in answers]
    hits = sum(one * other for one, other in zip(predicted, actual, strict=True))
    return {
        "precision": hits / max(sum(predicted), 1),
        "recall": hits / max(sum(actual), 1),
        "f1": 2 * hits / max(sum(predicted) + sum(actual), 1),
        "predicted_share": sum(predicted) / len(predicted),
    }


def wilson_interval(successes: int, n: int) -> Interval:
    """The 95% score interval of a share (Wilson 1927), within [0, 1].

    Raises:
        ValueError: ``n`` is below 1, or ``successes`` is not within 0 to ``n``.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0 to n of n >= 1")
    share, z2 = successes / n, _Z95**2
    centre = share + z2 / (2 * n)
    reach = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # Rounding must not leave the exact ends of 0 and n successes just inside or outside.
    low = 0.0 if successes == 0 else (centre - reach) / (1 + z2 / n)
    high = 1.0 if successes == n else (centre + reach) / (1 + z2 / n)
    return low, high


def retention_interval(
    pruned_correct: ArrayLike, full_correct: ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> PairedEstimate:
    """Retention, accuracy pruned over accuracy unpruned, with a paired percentile bootstrap of the questions.

    Where few questions were lost a bootstrap's interval is too narrow, and has no width where none was, as if a hundred
    questions could rule out that the hundred and first is. So it is widened to what Wilson's intervals of the two
    shares, lost and won, give their difference (the method of variance estimates recovery, Newcombe 1998).

    >>> estimate = retention_interval(pruned_correct=[1, 1, 1, 0] * 50, full_correct=[1, 1, 1, 1] * 50)
    >>> estimate.value, [round(end, 2) for end in estimate.ci95]
    (0.75, [0.69, 0.81])

    Args:
        pruned_correct: 0 or 1 for each question, ``[n]``.
        full_correct: the same of the unpruned model, in the same order.
        seed: of the resampling.
        resamples: how often the questions are drawn with replacement; draws in which the unpruned model answers none
            correctly have no retention and are left out.

    Raises:
        UserError: the unpruned model answered no question correctly.
        ValueError: the two are not 0 or 1 for the same, at least one, questions.
    """
    counts = _paired_counts(pruned_correct, full_correct)
    both, only_pruned, only_full, _ = counts
    if both + only_full == 0:
        raise UserError(
            f"the unpruned model answered none of {counts.sum()} questions correctly, so retention is undefined: "
            "choose a task that the model can do, or a higher --limit"
        )
    drawn = _resample(counts, seed, resamples)
    full = drawn[:, 0] + drawn[:, 2]
    ratios = (drawn[:, 0] + drawn[:, 1])[full > 0] / full[full > 0]
    right = int(both + only_full)
    low, high = _won_minus_lost(int(only_pruned), int(only_full), right) if only_pruned <= right else (0.0, 0.0)
    interval = _widest(_percentiles(ratios), (1 + low, 1 + high))
    return PairedEstimate(float((both + only_pruned) / right), int(counts.sum()), interval)


def difference_interval(
    one_correct: ArrayLike, other_correct: ArrayLike, seed: int = 0, resamples: int = RESAMPLES
) -> PairedEstimate:
    """Accuracy of one method minus that of the other, with a paired percentile bootstrap of the questions.

    Only the questions on which they disagree matter, as in McNemar's test. Arguments and interval as in
    :func:`retention_interval`.

    Raises:
        ValueError: the two are not 0 or 1 for the same, at least one, questions.
    """
    counts = _paired_counts(one_correct, other_correct)
    drawn = _resample(counts, seed, resamples)
    n = int(counts.sum())
    won, lost = int(counts[1]), int(counts[2])
    interval = _widest(_percentiles((drawn[:, 1] - drawn[:, 2]) / n), _won_minus_lost(won, lost, n))
    return PairedEstimate(float((counts[1] - counts[2]) / n), n, interval)


def independent_difference_interval(one: Sequence[float], other: Sequence[float]) -> Interval:
    """The 95% interval of the difference of two shares of different questions, by Wilson's of each (Newcombe 1998).

    >>> [round(end, 3) for end in independent_difference_interval([1.0] * 49 + [0.0], [1.0])]
    [-0.105, 0.774]
    """
    shares = [sum(scores) / len(scores) for scores in (one, other)]
    (low, high), (other_low, other_high) = (wilson_interval(int(sum(each)), len(each)) for each in (one, other))
    difference = shares[0] - shares[1]
    below = math.hypot(shares[0] - low, other_high - shares[1])
    above = math.hypot(high - shares[0], shares[1] - other_low)
    return difference - below, difference + above


def _won_minus_lost(won: int, lost: int, of: int) -> Interval:
    """Of the share of ``of`` questions that were won minus the share that was lost."""
    (won_low, won_high), (lost_low, lost_high) = wilson_interval(won, of), wilson_interval(lost, of)
    difference = (won - lost) / of
    below = math.hypot(won / of - won_low, lost_high - lost / of)
    above = math.hypot(won_high - won / of, lost / of - lost_low)
    return difference - below, difference + above


def _widest(one: Interval, other: Interval) -> Interval:
    return min(one[0], other[0]), max(one[1], other[1])


def _paired_counts(one: ArrayLike, other: ArrayLike) -> NDArray[np.int64]:
    """On how many questions both, only the first, only the second, and neither are right, ``int64 [4]``."""
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(f"expected two sequences of equal length >= 1, got shapes {first.shape} and {second.shape}")
    if not np.isin((first, second), (0.0, 1.0)).all():
        raise ValueError("expected 0 or 1 for each question")
    wins, losses = first > second, first < second
    both = (first + second) == 2
    return np.array([both.sum(), wins.sum(), losses.sum(), first.size - (both | wins | losses).sum()], dtype=np.int64)


def _resample(counts: NDArray[np.int64], seed: int, resamples: int) -> NDArray[np.int64]:
    """The counts in questions drawn with replacement, ``int64 [resamples, 4]``.

    Questions with the same pair of outcomes are alike, so drawing them one by one is exactly a multinomial draw.
    """
    return numpy_rng(seed, "paired-bootstrap").multinomial(counts.sum(), counts / counts.sum(), size=resamples)


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
