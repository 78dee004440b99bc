"""From correct and wrong answers to accuracies, retentions and margins: seeds pooled, questions resampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toprl_export.comparison.method_cell import MethodCell, MethodKind
from toprl_export.comparison.request import RANDOM
from toprl_export.comparison.result import Average, Entry, Margin, RivalRole
from toprl_export.evaluation.estimates import Correctness, Estimate, Resampled, accuracy, mean_difference, mean_ratio
from toprl_export.evaluation.questions import no_correct_answer

BEST_OF_EACH = "best of each task"


@dataclass(frozen=True)
class CorrectnessBySeed:
    """One method at one budget on one task: a cell for each seed, and whether it answered each question correctly, 0 or
    1, ``float64 [seeds, n]``."""

    cells: tuple[MethodCell, ...]
    correct: NDArray[np.float64]

    @property
    def pooled(self) -> Correctness:
        """Each question's mean over the seeds."""
        pooled: Correctness = self.correct.mean(0)
        return pooled


class Findings:
    """Everything that a comparison measured.

    What is measured is a method at a budget, called ``METHOD@BUDGET`` here.

    Args:
        cells: every cell.
        correct: of each cell in the same order, which questions it answered correctly.
        seed: of the bootstrap.

    Attributes:
        tasks: their names, in the cells' order.
        kinds: of the methods.
        measured: methods and budgets, in the cells' order.
        found: by task and ``METHOD@BUDGET``.
        resampled: by task, all methods at all budgets.
        reference: the unpruned model's ``METHOD@BUDGET``.
    """

    def __init__(self, cells: Sequence[MethodCell], correct: Sequence[Correctness], seed: int) -> None:
        self.tasks = tuple(dict.fromkeys(cell.task for cell in cells))
        self.kinds: dict[str, MethodKind] = {cell.method: cell.kind for cell in cells}
        self.measured = tuple(dict.fromkeys((cell.method, cell.budget_kept) for cell in cells))
        self.reference = at_budget(*next(one for one in self.measured if self.kinds[one[0]] == "unpruned"))
        by_place: dict[tuple[str, str], list[tuple[MethodCell, Correctness]]] = {}
        for cell, one in zip(cells, correct, strict=True):
            by_place.setdefault((cell.task, at_budget(cell.method, cell.budget_kept)), []).append((cell, one))
        self.found = {
            place: CorrectnessBySeed(
                tuple(cell for cell, _ in seeds), np.stack([one for _, one in seeds])
            )  # [seeds, n]
            for place, seeds in by_place.items()
        }
        # Once for all estimates, so that every comparison on a task is by the same resamples.
        self.resampled = {task: self._resample(task, seed) for task in self.tasks}

    def _resample(self, task: str, seed: int) -> Resampled:
        pooled = {name: found.pooled for (where, name), found in self.found.items() if where == task}
        return Resampled.of(pooled, seed, task)

    def has(self, method: str, budget: int, tasks: Sequence[str] | None = None) -> bool:
        """Whether a method was measured at a budget on all of ``tasks``, by default on all there are."""
        wanted = self.tasks if tasks is None else tasks
        return all((task, at_budget(method, budget)) in self.found for task in wanted)

    def entries(self) -> tuple[Entry, ...]:
        """Every method at every budget on every task that was measured."""
        return tuple(self._entry(task, name, found) for (task, name), found in self.found.items())

    def averages(self) -> tuple[Average, ...]:
        """Every method at every budget that was measured on all tasks."""
        return tuple(self._average(*one) for one in self.measured if self.has(*one))

    def _entry(self, task: str, name: str, found: CorrectnessBySeed) -> Entry:
        first, retained = found.cells[0], self.resampled[task].ratio(name, self.reference)
        if retained is None:
            raise no_correct_answer(task, first.questions)
        return Entry(
            method=first.method,
            task=task,
            budget_kept=first.budget_kept,
            average_kept=first.average_kept,
            stage_layers=first.stage_layers,
            keep_counts=first.keep_counts,
            seeds=tuple(cell.seed for cell in found.cells),
            accuracy=accuracy(found.pooled),
            accuracy_by_seed=tuple(found.correct.mean(1).tolist()),
            retention=retained,
        )

    def _average(self, method: str, budget: int) -> Average:
        name = at_budget(method, budget)
        resampled = [self.resampled[task] for task in self.tasks]
        kept = [self.found[task, name].cells[0].average_kept for task in self.tasks]
        return Average(
            method=method,
            budget_kept=budget,
            average_kept=float(np.mean(kept)),
            accuracy=float(np.mean([one.means[name] for one in resampled])),
            retention=mean_ratio(resampled, name, self.reference),
        )


def at_budget(method: str, budget: int) -> str:
    """``METHOD@BUDGET``."""
    return f"{method}@{budget}"


def all_margins(findings: Findings) -> tuple[Margin, ...]:
    """Every agent method at every budget, on each task and on average.

    On a task the rivals are the baseline that did best there and random pruning. On average they are the best of each
    task (no single method), the one baseline that did best on average, and random pruning. The best is picked by the
    same answers that it is then compared on, which favours the baseline.
    """
    agents = [one for one in findings.measured if findings.kinds[one[0]] == "agent"]
    return tuple(
        margin
        for method, budget in agents
        for margin in (*_by_task(findings, method, budget), *_on_average(findings, method, budget))
    )


def best_baseline(findings: Findings, budget: int, tasks: Sequence[str]) -> str | None:
    """The baseline of the highest mean accuracy among those measured on all of ``tasks``; the first of equals."""
    rivals = [
        method
        for method, at in findings.measured
        if at == budget and findings.kinds[method] == "baseline" and findings.has(method, budget, tasks)
    ]

    def mean(method: str) -> float:
        return float(np.mean([findings.resampled[task].means[at_budget(method, budget)] for task in tasks]))

    return max(rivals, key=mean, default=None)


def _by_task(findings: Findings, method: str, budget: int) -> Iterator[Margin]:
    own = at_budget(method, budget)
    for task in findings.tasks:
        if not findings.has(method, budget, [task]):
            continue
        rivals: dict[RivalRole, str | None] = {
            "best baseline": best_baseline(findings, budget, [task]),
            "random": RANDOM if findings.has(RANDOM, budget, [task]) else None,
        }
        for role, rival in rivals.items():
            if rival is not None:
                difference = findings.resampled[task].difference(own, at_budget(rival, budget))
                yield _margin(method, rival, role, task, budget, difference)


def _on_average(findings: Findings, method: str, budget: int) -> Iterator[Margin]:
    if not findings.has(method, budget):
        return
    own, resampled = at_budget(method, budget), [findings.resampled[task] for task in findings.tasks]
    best = [best_baseline(findings, budget, [task]) for task in findings.tasks]
    pairs = [
        _pair(one, own, at_budget(rival, budget))
        for one, rival in zip(resampled, best, strict=True)
        if rival is not None
    ]
    if len(pairs) == len(findings.tasks):
        difference = mean_difference(pairs, own, BEST_OF_EACH)
        yield _margin(method, BEST_OF_EACH, "best baseline", None, budget, difference)
    rivals: dict[RivalRole, str | None] = {
        "best baseline on average": best_baseline(findings, budget, findings.tasks),
        "random": RANDOM if findings.has(RANDOM, budget) else None,
    }
    for role, rival in rivals.items():
        if rival is not None:
            yield _margin(method, rival, role, None, budget, mean_difference(resampled, own, at_budget(rival, budget)))


def _margin(method: str, rival: str, role: RivalRole, task: str | None, budget: int, difference: Estimate) -> Margin:
    low, high = difference.ci95
    return Margin(method, rival, role, task, budget, difference, not low <= 0 <= high)


def _pair(task: Resampled, own: str, rival: str) -> Resampled:
    """Two measured of a task, the rival under the name that the best of every task has in common."""
    names = {own: own, BEST_OF_EACH: rival}
    return Resampled(
        {name: task.means[source] for name, source in names.items()},
        {name: task.draws[source] for name, source in names.items()},
    )
