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
    """Accuracies of several methods on the same questions, and what they are when the questions are resampled.

    The bootstrap draws questions with replacement, the same ones for every method, which keeps comparisons paired. A
    question's correctness under several agents is averaged first, so that agents do not count as further questions.

    Attributes:
        means: accuracy by method.
        draws: accuracy by method in each resample, ``float64 [resamples]``; tasks are resampled independently.
    """

    means: Mapping[str, float]
    draws: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, correct: Mapping[str, Correctness], seed: int, stream: str, resamples: int = RESAMPLES) -> Resampled:
        """Resample one task's questions.

        Args:
            correct: by method, all over the same questions.
            seed: of the bootstrap.
            stream: the task's name, so that tasks are drawn independently.
            resamples: how often.
        """
        table = np.stack(list(correct.values()))  # [methods, n]
        n = table.shape[1]
        # How often each question occurs in a resample is all that a mean needs: [resamples, n].
        weights = numpy_rng(seed, "question-bootstrap", stream).multinomial(n, np.full(n, 1 / n), size=resamples)
        drawn = weights @ table.T / n  # [resamples, methods]
        names = list(correct)
        return cls(dict(zip(names, table.mean(1).tolist(), strict=True)), dict(zip(names, drawn.T, strict=True)))

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


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    # Percentile bootstrap: the interval holds the middle 95% of the resampled figures.
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(value, (float(low), float(high)))
