"""From right and wrong answers to accuracy and retention, seeds pooled and questions drawn anew for the intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toprl_export.compare.cell import Cell, Kind
from toprl_export.compare.result import Average, Entry
from toprl_export.errors import UserError
from toprl_export.evaluation.estimates import Resampled, accuracy, mean_ratio


@dataclass(frozen=True)
class Outcomes:
    """One method at one budget on one task: a cell a seed, and for each of them 0 or 1 a question, ``[seeds, n]``."""

    cells: tuple[Cell, ...]
    right: NDArray[np.float64]

    @property
    def pooled(self) -> NDArray[np.float64]:
        """Each question's mean over the seeds, ``[n]``."""
        pooled: NDArray[np.float64] = self.right.mean(0)
        return pooled


class Findings:
    """All outcomes of a comparison.

    A contender is a method at a budget, called ``METHOD@BUDGET``.

    Args:
        cells: every cell.
        outcomes: of each cell in the same order, 0 or 1 a question, ``[n]``.
        seed: of the bootstrap.

    Attributes:
        tasks: their names, in the cells' order.
        kinds: of the methods.
        contenders: methods and budgets, in the cells' order.
        found: by task and contender.
        drawn: by task, all contenders with its questions drawn anew.
        reference: the unpruned contender.
    """

    def __init__(self, cells: Sequence[Cell], outcomes: Sequence[NDArray[np.float64]], seed: int) -> None:
        self.tasks = tuple(dict.fromkeys(cell.task for cell in cells))
        self.kinds: dict[str, Kind] = {cell.method: cell.kind for cell in cells}
        self.contenders = tuple(dict.fromkeys((cell.method, cell.budget_kept) for cell in cells))
        self.reference = contender(*next(one for one in self.contenders if self.kinds[one[0]] == "unpruned"))
        rows: dict[tuple[str, str], list[tuple[Cell, NDArray[np.float64]]]] = {}
        for cell, right in zip(cells, outcomes, strict=True):
            rows.setdefault((cell.task, contender(cell.method, cell.budget_kept)), []).append((cell, right))
        self.found = {
            place: Outcomes(tuple(cell for cell, _ in these), np.stack([right for _, right in these]))
            for place, these in rows.items()
        }
        self.drawn = {task: self._draw(task, seed) for task in self.tasks}

    def _draw(self, task: str, seed: int) -> Resampled:
        pooled = {name: found.pooled for (where, name), found in self.found.items() if where == task}
        return Resampled.of(pooled, seed, task)

    def has(self, method: str, budget: int, tasks: Sequence[str] | None = None) -> bool:
        """Whether a method was measured at a budget on all of ``tasks``, by default on all there are."""
        wanted = self.tasks if tasks is None else tasks
        return all((task, contender(method, budget)) in self.found for task in wanted)

    def entries(self) -> tuple[Entry, ...]:
        """Every method at every budget on every task that was measured."""
        return tuple(self._entry(task, name, found) for (task, name), found in self.found.items())

    def averages(self) -> tuple[Average, ...]:
        """Every method at every budget that was measured on all tasks."""
        return tuple(self._average(*one) for one in self.contenders if self.has(*one))

    def _entry(self, task: str, name: str, found: Outcomes) -> Entry:
        first, retained = found.cells[0], self.drawn[task].ratio(name, self.reference)
        if retained is None:
            raise nothing_right(task, first.questions)
        return Entry(
            method=first.method,
            task=task,
            budget_kept=first.budget_kept,
            average_kept=first.average_kept,
            stage_layers=first.stage_layers,
            keep_counts=first.keep_counts,
            seeds=tuple(cell.seed for cell in found.cells),
            accuracy=accuracy(found.pooled),
            accuracy_by_seed=tuple(found.right.mean(1).tolist()),
            retention=retained,
        )

    def _average(self, method: str, budget: int) -> Average:
        name = contender(method, budget)
        drawn = [self.drawn[task] for task in self.tasks]
        kept = [self.found[task, name].cells[0].average_kept for task in self.tasks]
        return Average(
            method=method,
            budget_kept=budget,
            average_kept=float(np.mean(kept)),
            accuracy=float(np.mean([one.means[name] for one in drawn])),
            retention=mean_ratio(drawn, name, self.reference),
        )


def contender(method: str, budget: int) -> str:
    """What a method at a budget is called among the outcomes."""
    return f"{method}@{budget}"


def nothing_right(task: str, questions: int) -> UserError:
    """The error of a task that the unpruned model cannot do."""
    return UserError(
        f"the unpruned model answered none of {questions} questions of {task} rightly, so nothing can be retained: "
        "leave that task out, or raise --limit"
    )
