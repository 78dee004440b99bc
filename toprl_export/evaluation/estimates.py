"""Shares, ratios and differences with their 95% intervals, of one run or several, on one task or several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toprl_export.seeding import numpy_rng
from toprl_export.tasks.metrics import RESAMPLES, Interval, retention_interval, wilson_interval

Outcomes = NDArray[np.float64]
"""What each question came to: 1 right, 0 wrong, in between the mean over several agents, ``[n]``."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval."""

    value: float
    ci95: Interval


def accuracy(right: Outcomes) -> Estimate:
    """Share of right answers, with the Wilson interval; a question counts once, however many agents answered it."""
    whole, part = divmod(float(right.sum()), 1)
    below, above = (wilson_interval(min(int(whole) + more, len(right)), len(right)) for more in (0, 1))
    # A mean over agents need not be a whole number of right answers: between two such, the interval is too.
    low, high = (one + part * (other - one) for one, other in zip(below, above, strict=True))
    return Estimate(float(right.mean()), (low, high))


def retention(pruned: Outcomes, full: Outcomes, seed: int) -> Estimate:
    """Accuracy of one pruned run over that of the unpruned one; see `toprl_export.tasks.metrics.retention_interval`."""
    found = retention_interval(pruned, full, seed)
    return Estimate(found.value, found.ci95)


@dataclass(frozen=True)
class Resampled:
    """Mean outcomes of several contenders on the same questions, and what they are when the questions are drawn anew.

    The bootstrap draws questions with replacement, the same for all contenders, which keeps comparisons paired; a
    question's outcomes under several agents go together, so that agents are not mistaken for further questions.

    Attributes:
        means: by contender, over the questions.
        draws: by contender, ``float64 [resamples]``; of an average over tasks, each task's questions are drawn apart.
    """

    means: Mapping[str, float]
    draws: Mapping[str, NDArray[np.float64]]

    @classmethod
    def of(cls, outcomes: Mapping[str, Outcomes], seed: int, stream: str, resamples: int = RESAMPLES) -> Resampled:
        """Draw one task's questions.

        Args:
            outcomes: by contender, all of one length.
            seed: of the drawing.
            stream: the task's name, so that tasks are drawn independently.
            resamples: how often.
        """
        table = np.stack(list(outcomes.values()))  # [contenders, n]
        n = table.shape[1]
        weights = numpy_rng(seed, "question-bootstrap", stream).multinomial(n, np.full(n, 1 / n), size=resamples)
        drawn = weights @ table.T / n  # [resamples, contenders]
        names = list(outcomes)
        return cls(dict(zip(names, table.mean(1).tolist(), strict=True)), dict(zip(names, drawn.T, strict=True)))

    def difference(self, name: str, other: str) -> Estimate:
        """One contender's accuracy minus another's."""
        return _estimate(self.means[name] - self.means[other], self.draws[name] - self.draws[other])

    def ratio(self, name: str, other: str) -> Estimate | None:
        """One contender's accuracy over another's; None where the other's is 0."""
        if self.means[other] == 0:
            return None
        # Draws in which the other has nothing right have no ratio and are left out.
        defined = self.draws[other] > 0
        return _estimate(self.means[name] / self.means[other], self.draws[name][defined] / self.draws[other][defined])


def mean_difference(tasks: Sequence[Resampled], name: str, other: str) -> Estimate:
    """The difference of two contenders' accuracies, averaged over tasks."""
    value = float(np.mean([one.means[name] - one.means[other] for one in tasks]))
    return _estimate(value, np.mean([one.draws[name] - one.draws[other] for one in tasks], axis=0))


def mean_ratio(tasks: Sequence[Resampled], name: str, other: str) -> Estimate:
    """The ratio of two contenders' accuracies, averaged over tasks, on each of which the other has some right."""
    value = float(np.mean([one.means[name] / one.means[other] for one in tasks]))
    # Draws in which the other has nothing right on one of the tasks have no average and are left out.
    defined = np.all([one.draws[other] > 0 for one in tasks], axis=0)
    return _estimate(value, np.mean([one.draws[name][defined] / one.draws[other][defined] for one in tasks], axis=0))


def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(value, (float(low), float(high)))
