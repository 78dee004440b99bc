"""From correct and wrong answers to accuracies, retentions and margins: seeds pooled, questions resampled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toprl_export.comparison.method_cell import RIVALS, MethodCell, MethodKind
from toprl_export.comparison.request import RANDOM
from toprl_export.comparison.result import Average, Entry, Margin, RivalRole, Without
from toprl_export.evaluation.estimates import (
    CorrectBySeed,
    Correctness,
    Estimate,
    Resampled,
    is_significant,
    mean_difference,
    mean_ratio,
    task_that_moves_most,
)
from toprl_export.evaluation.questions import no_correct_answer

BEST_OF_EACH = "best of each task"
RIVAL = "rival"


@dataclass(frozen=True)
class CorrectnessBySeed:
    """One method at one budget on one task: a cell for each seed, and whether it answered each question correctly, 0 or
    1, ``float64 [seeds, n]``."""

    cells: tuple[MethodCell, ...]
    correct: CorrectBySeed


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
        by_seed = {name: found.correct for (where, name), found in self.found.items() if where == task}
        return Resampled.of(by_seed, seed, task)

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
            accuracy=self.resampled[task].accuracy(name, found.correct),
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
            without=self._without(name),
        )

    def _without(self, name: str) -> Without | None:
        """A method's mean retention without the task that moves it most."""
        retained = {task: one.means[name] / one.means[self.reference] for task, one in self.resampled.items()}
        left_out = task_that_moves_most(retained)
        if left_out is None:
            return None
        others = [one for task, one in self.resampled.items() if task != left_out]
        return Without(left_out, mean_ratio(others, name, self.reference))


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
        if at == budget and findings.kinds[method] in RIVALS and findings.has(method, budget, tasks)
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
        yield _mean_margin(
            method, BEST_OF_EACH, "best baseline", budget, dict(zip(findings.tasks, pairs, strict=True)), own
        )
    rivals: dict[RivalRole, str | None] = {
        "best baseline on average": best_baseline(findings, budget, findings.tasks),
        "random": RANDOM if findings.has(RANDOM, budget) else None,
    }
    for role, rival in rivals.items():
        if rival is not None:
            pairs = [_pair(one, own, at_budget(rival, budget)) for one in resampled]
            yield _mean_margin(method, rival, role, budget, dict(zip(findings.tasks, pairs, strict=True)), own)


def _margin(method: str, rival: str, role: RivalRole, task: str | None, budget: int, difference: Estimate) -> Margin:
    return Margin(method, rival, role, task, budget, difference, is_significant(difference))


def _mean_margin(
    method: str, rival: str, role: RivalRole, budget: int, pairs: Mapping[str, Resampled], own: str
) -> Margin:
    """The mean difference over the tasks of ``pairs``, in which the rival goes by `RIVAL`, and again without one."""
    margin = _margin(method, rival, role, None, budget, mean_difference(list(pairs.values()), own, RIVAL))
    left_out = task_that_moves_most({task: one.means[own] - one.means[RIVAL] for task, one in pairs.items()})
    if left_out is None:
        return margin
    others = [one for task, one in pairs.items() if task != left_out]
    return replace(margin, without=Without(left_out, mean_difference(others, own, RIVAL)))


def _pair(task: Resampled, own: str, rival: str) -> Resampled:
    """Two methods measured on a task, the rival under a name that the rivals of all tasks have in common."""
    names = {own: own, RIVAL: rival}
    return Resampled(
        {name: task.means[source] for name, source in names.items()},
        {name: task.draws[source] for name, source in names.items()},
    )
