"""What is to be compared, and the questions that it is compared on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from toprl_export.compare.cell import SPLIT
from toprl_export.errors import UserError
from toprl_export.pruning.baselines.specs import BASELINES, ORACLE
from toprl_export.registry import unknown_name
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Level, Task

ALL = "all"
RANDOM = "random"
_DIGESTED_SAMPLES = 4


@dataclass(frozen=True)
class CompareRequest:
    """What is to be compared.

    Attributes:
        output_dir: where tables, plots and cells go.
        model: the reference model's name, path or hub id.
        agents: patterns of agent directories, see `find_agents`.
        baselines: their names, or "all" for every baseline and the oracle; random takes part always.
        tasks: their names, or "all" for every one whose data is installed; None for those of the agents, or all.
        budgets_kept: average visual tokens kept over all decoder layers.
        limit: held-out questions a task, where it has as many.
        draws: how often random pruning is drawn.
        seed: of the questions, of random pruning and of the bootstrap.
        jobs: processes that answer questions at the same time.
        iterations: rounds of the latency measurement; 0 leaves it out.
        threads: CPU threads of the latency measurement; None for all cores.
        device: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one.
        command: the command line, for the record.

    Raises:
        UserError: a number is out of range, or a baseline is unknown.
    """

    output_dir: Path
    model: str = "mini"
    agents: tuple[str, ...] = ()
    baselines: tuple[str, ...] = (ALL,)
    tasks: tuple[str, ...] | None = None
    budgets_kept: tuple[int, ...] = (192, 64)
    limit: int = 1000
    draws: int = 3
    seed: int = 0
    jobs: int = 1
    iterations: int = 20
    threads: int | None = None
    device: str = "auto"
    command: str = "python"

    def __post_init__(self) -> None:
        counts = {"limit": self.limit, "random draws": self.draws, "jobs": self.jobs}
        counts |= {"threads": 1 if self.threads is None else self.threads}
        counts |= {f"budget_kept[{at}]": budget for at, budget in enumerate(self.budgets_kept)}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name} is {value}, expected at least 1")
        if self.iterations < 0:
            raise UserError(f"iterations is {self.iterations}, expected at least 0")
        if not self.budgets_kept:
            raise UserError("no budget was given to compare at: give at least one")
        for name in self.baselines:
            if name not in (ALL, *BASELINES, ORACLE):
                raise unknown_name("baseline", name, (ALL, *BASELINES, ORACLE))

    @property
    def budgets(self) -> tuple[int, ...]:
        """The budgets, each once, largest first."""
        return tuple(sorted(set(self.budgets_kept), reverse=True))

    @property
    def baseline_names(self) -> tuple[str, ...]:
        """The baselines that take part, in the registry's order, the oracle last."""
        known = (*BASELINES, ORACLE)
        return known if ALL in self.baselines else tuple(n for n in known if n == RANDOM or n in self.baselines)


@dataclass(frozen=True)
class TaskQuestions:
    """A task and the held-out questions that everyone answers.

    Attributes:
        name: the task's name.
        level: "perception" or "reasoning".
        count: how many questions.
        digest: SHA-256 over the first of them.
        evidence_patches: size of the mask that says what an image shows; None where there is none.
    """

    name: str
    level: Level
    count: int
    digest: str
    evidence_patches: int | None


def choose_tasks(wanted: Sequence[str] | None, of_agents: Sequence[str]) -> tuple[Task, ...]:
    """The tasks in the registry's order.

    Raises:
        UserError: a name is unknown.
        MissingExtraError: the data of a task that was named is not installed.
    """
    names = of_agents if wanted is None and of_agents else [ALL] if wanted is None else wanted
    for name in names:
        if name != ALL and name not in TASKS:
            raise unknown_name("task", name, (ALL, *TASKS.names()))
    if ALL in names:
        return tuple(task for task in map(TASKS.get, TASKS.names()) if task.missing() is None)
    chosen = tuple(TASKS.get(name) for name in TASKS.names() if name in names)
    for missing in filter(None, (task.missing() for task in chosen)):
        raise missing
    return chosen


def draw_questions(task: Task, seed: int, limit: int) -> TaskQuestions:
    """Settle which questions of a task are asked."""
    available = task.question_count(SPLIT)
    count = limit if available is None else min(limit, available)
    found = hashlib.sha256()
    evidence = None
    for sample in islice(task.samples(SPLIT, seed, count), _DIGESTED_SAMPLES):
        found.update(f"{sample.image.shape} {sample.question}\n{sample.answer}\n".encode())
        found.update(sample.image.tobytes())
        evidence = None if sample.evidence is None else sample.evidence.size
    return TaskQuestions(task.name, task.level, count, found.hexdigest(), evidence)
