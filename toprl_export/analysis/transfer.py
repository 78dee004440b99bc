"""Cross-task transfer: every agent on every task at one budget (TOP-RL, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from toprl_export.analysis.results import AnalysisResult
from toprl_export.analysis.study import ByAgent, Study
from toprl_export.errors import UserError
from toprl_export.evaluation.compared_agents import ComparedAgent
from toprl_export.evaluation.estimates import CorrectBySeed, Correctness, Estimate, Resampled, accuracy
from toprl_export.evaluation.tables import counted, estimate_fields, markdown_table, percent
from toprl_export.tasks.task import Level, Task


@dataclass(frozen=True)
class TransferEntry:
    """The agents trained for one task on the questions of another.

    Attributes:
        trained_for: the row.
        accuracy: on the column's questions, mean over seeds.
        relative: that over the accuracy of the agents trained for the column's task; None where those have no correct
            answer.
        difference: that minus theirs.
    """

    trained_for: str
    accuracy: Estimate
    relative: Estimate | None
    difference: Estimate


@dataclass(frozen=True)
class TransferColumn:
    """One task's questions, answered by the agents of every task; entries in the order of `Transfer.trained_for`."""

    task: str
    level: Level
    questions: int
    unpruned: Estimate
    entries: tuple[TransferEntry, ...]

    @property
    def own(self) -> TransferEntry:
        """The diagonal: the agents trained for this task."""
        return next(entry for entry in self.entries if entry.trained_for == self.task)

    @property
    def diagonal_is_best(self) -> bool:
        """Whether no other agents' accuracy is above the diagonal's."""
        return all(entry.difference.value <= 0 for entry in self.entries)

    @property
    def diagonal_is_best_within_interval(self) -> bool:
        """Whether no other agents' accuracy is significantly above the diagonal's."""
        return all(entry.difference.ci95[0] <= 0 for entry in self.entries)


@dataclass(frozen=True)
class Transfer(AnalysisResult):
    """The matrix; ``seeds`` are the agents', by the task they were trained for."""

    name: ClassVar[str] = "transfer"
    format: Literal["toprl-export/analysis-transfer"] = field(default="toprl-export/analysis-transfer", kw_only=True)
    budget_kept: int
    trained_for: tuple[str, ...]
    seeds: dict[str, tuple[int, ...]]
    columns: tuple[TransferColumn, ...]

    def records(self) -> list[dict[str, object]]:
        """See `AnalysisResult.records`."""
        return [
            {
                "trained_for": entry.trained_for,
                "task": column.task,
                "level": column.level,
                "budget_kept": self.budget_kept,
                "seeds": len(self.seeds[entry.trained_for]),
                "questions": column.questions,
                **estimate_fields("accuracy", entry.accuracy),
                **estimate_fields("relative_to_diagonal", entry.relative),
                **estimate_fields("difference_to_diagonal", entry.difference),
            }
            for column in self.columns
            for entry in column.entries
        ]

    def verdict(self) -> str:
        """For how many tasks the diagonal is the column's best."""
        best = sum(column.diagonal_is_best for column in self.columns)
        within = [column.task for column in self.columns if column.diagonal_is_best_within_interval]
        below = [column.task for column in self.columns if column.task not in within]
        text = (
            f"The diagonal is its column's best, alone or with others, on {best} of {len(self.columns)} tasks; on "
            f"{len(within)} of {len(self.columns)} no other agent is significantly better (95% interval of the paired "
            "difference above 0)"
        )
        return f"{text}; one is on {', '.join(below)}." if below else f"{text}."

    def markdown(self) -> str:
        """See `AnalysisResult.markdown`."""
        head = ["trained for ↓, evaluated on →", *(f"{column.task} ({column.level})" for column in self.columns)]
        rows = [
            [f"{name} ({counted(len(self.seeds[name]), 'seed')})", *(_shown(column, at) for column in self.columns)]
            for at, name in enumerate(self.trained_for)
        ]
        rows.append(["unpruned", *(percent(column.unpruned) for column in self.columns)])
        rows.append(["questions", *(f"{column.questions:,}" for column in self.columns)])
        return (
            "# Cross-task transfer\n\n"
            f"Accuracy of every agent on every task at {self.budget_kept} of {self.provenance.visual_tokens} visual "
            "tokens kept on average, and after the slash relative to the agent trained for the task (the diagonal, "
            "bold); TOP-RL's Table 4. Accuracies are means over seeds. Brackets are 95% intervals: Wilson for "
            "accuracies, paired bootstrap over the questions for what is relative.\n\n"
            f"{markdown_table(head, rows)}\n{self.verdict()}\n\n{self.provenance.markdown()}"
        )

    def summary(self) -> str:
        """See `AnalysisResult.summary`."""
        return f"{self.budget_kept} of {self.provenance.visual_tokens} tokens kept. {self.verdict()}"


def _shown(column: TransferColumn, row: int) -> str:
    entry = column.entries[row]
    relative = "/ –" if entry.relative is None else f"/ {percent(entry.relative)}"
    if entry.trained_for == column.task:
        return f"**{percent(entry.accuracy)} / 100%**"
    return f"{percent(entry.accuracy)} {relative}"


def measure_transfer(study: Study, agents: Sequence[ComparedAgent], budget_kept: int | None = None) -> Transfer:
    """Answer every task's questions by every agent.

    Args:
        study: model, tasks (the columns) and questions.
        agents: one or several, of different seeds, for each of the tasks.
        budget_kept: average visual tokens kept; None for the smallest that all agents' plans have.

    Raises:
        UserError: the agents are of several methods or do not fit the model, a task has no agent, the budget cannot
            be met, the output directory holds something else, or the unpruned model has no correct answer on a task.
    """
    Transfer.check_directory(study.scope.output_dir)
    tasks = tuple(task.name for task in study.tasks)
    agents = [one for one in agents if one.task in tasks]
    _check(study, agents)
    budget = smallest_common_budget(agents) if budget_kept is None else budget_kept
    methods = [ByAgent(one.directory, one.agent.fingerprint, one.schedule(budget).keep_counts) for one in agents]
    unpruned = study.unpruned()
    found = study.correctness([(task, method) for task in study.tasks for method in methods], "transfer")
    columns = []
    for at, task in enumerate(study.tasks):
        by_agent = found[at * len(methods) : (at + 1) * len(methods)]
        by_seed = {
            name: np.stack([correct for one, correct in zip(agents, by_agent, strict=True) if one.task == name])
            for name in tasks
        }  # [seeds, n] each
        columns.append(_column(task, unpruned[task.name], by_seed, study.scope.seed))
    seeds = {name: tuple(one.seed for one in agents if one.task == name) for name in tasks}
    return Transfer(study.provenance(), budget, tasks, seeds, tuple(columns))


def smallest_common_budget(agents: Sequence[ComparedAgent]) -> int:
    """The smallest budget that the plans of all agents have.

    Raises:
        UserError: there is none.
    """
    plans = [one.agent.record.plan for one in agents]
    common = set.intersection(*({schedule.budget_kept for schedule in plan.schedules} for plan in plans))
    if not common:
        raise UserError("the agents' plans have no budget in common: name one with --budget-kept")
    return min(common)


def _check(study: Study, agents: Sequence[ComparedAgent]) -> None:
    for one in agents:
        one.agent.check_fits(study.adapter)
    trained = {one.task for one in agents}
    missing = [task.name for task in study.tasks if task.name not in trained]
    if missing:
        raise UserError(
            f"no agent was given for {', '.join(missing)}, so the matrix would have no diagonal there: "
            "add one to --agents, or leave the task out of --tasks"
        )
    methods = sorted({one.method for one in agents})
    if len(methods) > 1:
        raise UserError(f"the agents are of the methods {', '.join(methods)}, expected one: give those of one method")


def _column(task: Task, unpruned: Correctness, by_seed: Mapping[str, CorrectBySeed], seed: int) -> TransferColumn:
    resampled = Resampled.of(by_seed, seed, task.name)
    entries = [
        TransferEntry(
            name,
            resampled.accuracy(name, correct),
            resampled.ratio(name, task.name),
            resampled.difference(name, task.name),
        )
        for name, correct in by_seed.items()
    ]
    return TransferColumn(task.name, task.level, len(unpruned), accuracy(unpruned), tuple(entries))
