"""What a comparison found, as typed records and as ``compare.json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from toprl_export.comparison.latency import LatencyTable
from toprl_export.comparison.method_cell import MethodKind
from toprl_export.evaluation.estimates import Estimate
from toprl_export.evaluation.machine import Provenance
from toprl_export.fields import read_file, to_json
from toprl_export.files import write_json_atomic
from toprl_export.tasks.task import Level

JSON_FILE = "compare.json"

RivalRole: TypeAlias = Literal["best baseline", "best baseline on average", "random"]


@dataclass(frozen=True)
class TaskColumn:
    """A task and how many of its held-out questions were answered."""

    name: str
    level: Level
    questions: int


@dataclass(frozen=True)
class AgentNote:
    """An agent that took part."""

    task: str
    seed: int
    fingerprint: str
    directory: str


@dataclass(frozen=True)
class MethodRow:
    """A method; ``agents`` is empty for what needs no training."""

    name: str
    kind: MethodKind
    agents: tuple[AgentNote, ...]


@dataclass(frozen=True)
class Entry:
    """One method at one budget on one task, its seeds pooled.

    Attributes:
        method: its name.
        task: whose questions were answered.
        budget_kept: average visual tokens kept, as requested; n for the unpruned reference.
        average_kept: the average met.
        stage_layers: decoder layers before which tokens are dropped.
        keep_counts: visual tokens left after each stage.
        seeds: of the agents or of random pruning.
        accuracy: share of correct answers (0 to 1) with its Wilson interval, in which a question counts once; with
            several seeds it is widened to the bootstrap's.
        accuracy_by_seed: the same for each seed.
        retention: accuracy over the unpruned reference's, with a paired bootstrap interval.
    """

    method: str
    task: str
    budget_kept: int
    average_kept: float
    stage_layers: tuple[int, ...]
    keep_counts: tuple[int, ...]
    seeds: tuple[int, ...]
    accuracy: Estimate
    accuracy_by_seed: tuple[float, ...]
    retention: Estimate


@dataclass(frozen=True)
class Gap:
    """A cell that cannot be measured, and why."""

    method: str
    task: str
    budget_kept: int
    reason: str


@dataclass(frozen=True)
class Without:
    """An average over tasks again, without the task whose absence changes it most."""

    task: str
    estimate: Estimate


@dataclass(frozen=True)
class Average:
    """One method at one budget over all tasks, of which each counts the same.

    Attributes:
        method: its name.
        budget_kept: average visual tokens kept, as requested.
        average_kept: the average met, over layers and tasks.
        accuracy: mean of the tasks' accuracies.
        retention: mean of the tasks' retentions; its interval resamples the questions of every task, and the seeds.
        without: the retention again without the task that moves it most; None where there is one task.
    """

    method: str
    budget_kept: int
    average_kept: float
    accuracy: float
    retention: Estimate
    without: Without | None


@dataclass(frozen=True)
class Margin:
    """An agent method's accuracy minus a rival's at the same budget, on the same questions.

    Attributes:
        method: the agents'.
        rival: the baseline's name; for an average over each task's best, "best of each task".
        role: why it is the rival.
        task: None for the mean over all tasks.
        budget_kept: average visual tokens kept.
        difference: in shares, with a paired bootstrap interval.
        significant: whether the interval leaves out 0.
        without: of a mean over tasks, the difference again without the task that moves it most.
    """

    method: str
    rival: str
    role: RivalRole
    task: str | None
    budget_kept: int
    difference: Estimate
    significant: bool
    without: Without | None = None


@dataclass(frozen=True)
class Comparison:
    """Everything that ``compare`` found.

    Attributes:
        provenance: model, versions, seed and command.
        tasks: the columns, perception first.
        methods: the rows, the unpruned reference first.
        budgets_kept: largest first.
        entries: what was measured; gaps have none.
        averages: of the methods that have all tasks.
        margins: of every agent method.
        gaps: cells that could not be measured, and why.
        latency: None where it was not measured.
        tuning_questions: by how many questions of each task's train split the rivals' schedules were chosen; None where
            they prune as their papers have it.
    """

    format: Literal["toprl-export/comparison"] = field(default="toprl-export/comparison", kw_only=True)
    version: Literal[2] = field(default=2, kw_only=True)
    provenance: Provenance
    tasks: tuple[TaskColumn, ...]
    methods: tuple[MethodRow, ...]
    budgets_kept: tuple[int, ...]
    entries: tuple[Entry, ...]
    averages: tuple[Average, ...]
    margins: tuple[Margin, ...]
    gaps: tuple[Gap, ...]
    latency: LatencyTable | None
    tuning_questions: int | None = None

    @property
    def visual_tokens(self) -> int:
        """n, at which nothing is pruned."""
        return self.provenance.visual_tokens

    @property
    def pruned(self) -> tuple[MethodRow, ...]:
        """The methods that prune, the rows of every budget's block."""
        return tuple(method for method in self.methods if method.kind != "unpruned")

    @property
    def reference(self) -> MethodRow:
        """The unpruned reference."""
        return self.methods[0]

    @property
    def averaged_over(self) -> str:
        """What averages are made of, in words."""
        return f"mean over {len(self.tasks)} tasks" if len(self.tasks) > 1 else self.tasks[0].name

    def entry(self, method: str, task: str, budget_kept: int) -> Entry | None:
        """What was measured in a cell of the table; None for a gap."""
        wanted = (method, task, budget_kept)
        return next((one for one in self.entries if (one.method, one.task, one.budget_kept) == wanted), None)

    def reason(self, method: str, task: str, budget_kept: int) -> str | None:
        """Why a cell is a gap; None where it is none."""
        wanted = (method, task, budget_kept)
        return next((one.reason for one in self.gaps if (one.method, one.task, one.budget_kept) == wanted), None)

    def average(self, method: str, budget_kept: int) -> Average | None:
        """A method's average; None where it lacks a task."""
        wanted = (method, budget_kept)
        return next((one for one in self.averages if (one.method, one.budget_kept) == wanted), None)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write ``compare.json``."""
    write_json_atomic(path, to_json(comparison))


def read_comparison(path: Path) -> Comparison:
    """Read what :func:`write_comparison` wrote.

    Raises:
        UserError: the file is missing, of another format or version, or lacks a field.
    """
    return read_file(Comparison, path, "repeat the comparison")
