"""Shares, ratios and differences with their 95% intervals, of one run or several, on one task or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toprl_export.seeding import numpy_rng
from toprl_export.tasks.metrics import RESAMPLES, Interval, retention_interval, wilson_interval

Correctness = NDArray[np.float64]
"""Of each question, 1 where it was answered correctly, else 0, ``float64 [n]``; in between: the mean over several
agents."""

CorrectBySeed = NDArray[np.float64]
"""The same for every seed of a method, each 0 or 1, ``float64 [seeds, n]``."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval."""

    value: float
    ci95: Interval


def accuracy(correct: Correctness) -> Estimate:
    """Share of correct answers, with the Wilson interval; a question counts once, however many agents answered it."""
    whole, part = divmod(float(correct.sum()), 1)
    below, above = (wilson_interval(min(int(whole) + more, len(correct)), len(correct)) for more in (0, 1))
    # A mean over agents need not be a whole number of correct answers: the interval is interpolated between the two
    # whole numbers around it.
    low, high = (one + part * (other - one) for one, other in zip(below, above, strict=True))
    return Estimate(float(correct.mean()), (low, high))


def retention(pruned: Correctness, unpruned: Correctness, seed: int) -> Estimate:
    """Accuracy of one pruned run over that of the unpruned one; see `toprl_export.tasks.metrics.retention_interval`."""
    found = retention_interval(pruned, unpruned, seed)
    return Estimate(found.value, found.ci95)


@dataclass(frozen=True)
class Resampled:
    """Accuracies of several methods on the same questions, and what they are when questions and seeds are resampled.

    A bootstrap of two levels: it draws questions with replacement, the same ones for every method, which keeps
    comparisons paired; and of a method that has several seeds it draws seeds with replacement, so that the intervals
    say what other trainings would give. Seeds do not count as further questions. Few seeds tell little about others:
    drawing S of S seeds understates their spread by a factor of sqrt((S - 1) / S), 0.82 for three.

    Attributes:
        means: accuracy by method.
        draws: accuracy by method in each resample, ``float64 [resamples]``; tasks are resampled independently.
    """

    means: Mapping[str, float]
    draws: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(
        cls, correct: Mapping[str, CorrectBySeed | Correctness], seed: int, stream: str, resamples: int = RESAMPLES
    ) -> Resampled:
        """Resample one task's questions, and the seeds of each method.

        Args:
            correct: by method, all over the same questions; a row for each seed, or one row of their mean, whose
                intervals then hold the seeds fixed.
            seed: of the bootstrap.
            stream: the task's name, so that tasks are drawn independently.
            resamples: how often.
        """
        rows = {name: np.atleast_2d(one) for name, one in correct.items()}  # [seeds, n] each
        n = next(iter(rows.values())).shape[1]
        # How often each question occurs in a resample is all that a mean needs: [resamples, n].
        weights = numpy_rng(seed, "question-bootstrap", stream).multinomial(n, np.full(n, 1 / n), size=resamples)
        draws = {}
        for name, by_seed in rows.items():
            drawn = weights @ by_seed.T / n  # [resamples, seeds]
            count = len(by_seed)
            generator = numpy_rng(seed, "seed-bootstrap", stream, name)
            chosen = generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count
            draws[name] = (drawn * chosen).sum(1)
        return cls({name: float(by_seed.mean()) for name, by_seed in rows.items()}, draws)

    def accuracy(self, name: str, by_seed: CorrectBySeed) -> Estimate:
        """A method's accuracy: Wilson's interval, and where there are several seeds as wide as the bootstrap's."""
        wilson = accuracy(by_seed.mean(0))
        if len(by_seed) == 1:
            return wilson
        drawn = _estimate(self.means[name], self.draws[name])
        low, high = min(wilson.ci95[0], drawn.ci95[0]), max(wilson.ci95[1], drawn.ci95[1])
        return Estimate(wilson.value, (low, high))

    def difference(self, name: str, other: str) -> Estimate:
        """One method's accuracy minus another's."""
        return _estimate(self.means[name] - self.means[other], self.draws[name] - self.draws[other])

    def ratio(self, name: str, other: str) -> Estimate | None:
        """One method's accuracy over another's; None where the other's is 0."""
        if self.means[other] == 0:
            return None
        # In some resamples the other may have no correct answer: the ratio is undefined there, and they are left out.
        defined = self.draws[other] > 0
        return _estimate(self.means[name] / self.means[other], self.draws[name][defined] / self.draws[other][defined])


def mean_difference(tasks: Sequence[Resampled], name: str, other: str) -> Estimate:
    """The difference of two methods' accuracies, averaged over tasks."""
    value = float(np.mean([one.means[name] - one.means[other] for one in tasks]))
    return _estimate(value, np.mean([one.draws[name] - one.draws[other] for one in tasks], axis=0))


def mean_ratio(tasks: Sequence[Resampled], name: str, other: str) -> Estimate:
    """The ratio of two methods' accuracies, averaged over tasks; the other's accuracy must be above 0 on each."""
    value = float(np.mean([one.means[name] / one.means[other] for one in tasks]))
    # As in `ratio`: resamples in which the ratio is undefined on one of the tasks are left out.
    defined = np.all([one.draws[other] > 0 for one in tasks], axis=0)
    return _estimate(value, np.mean([one.draws[name][defined] / one.draws[other][defined] for one in tasks], axis=0))


def is_significant(difference: Estimate) -> bool:
    """Whether the interval leaves out 0."""
    low, high = difference.ci95
    return not low <= 0 <= high


def task_that_moves_most(values: Mapping[str, float]) -> str | None:
    """The task without which the mean of ``values`` changes most; None where there is but one."""
    if len(values) < 2:
        return None
    # The mean without a task differs from the mean of all by (mean - value) / (number - 1).
    mean = float(np.mean(list(values.values())))
    return max(values, key=lambda task: abs(mean - values[task]))


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    # Percentile bootstrap: the interval holds the middle 95% of the resampled figures.
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(value, (float(low), float(high)))
