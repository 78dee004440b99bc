"""Which held-out questions are answered: the tasks that take part, and how many questions of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from toprl_export.errors import UserError
from toprl_export.registry import unknown_name
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Level, Sample, Split, Task

SPLIT: Final[Split] = "held-out"
"""Everything is measured on questions that no agent was trained on."""
ALL: Final = "all"
UNPRUNED: Final = "unpruned"
"""What the reference model that keeps every visual token is called among the methods."""
_DIGESTED_SAMPLES = 4


@dataclass(frozen=True)
class TaskQuestions:
    """A task and the questions that every method answers.

    Attributes:
        name: the task's name.
        level: "perception" or "reasoning".
        count: how many questions, from the start of the draw.
        digest: SHA-256 over the first of them, so that a task whose data changed counts as another one.
        evidence_patches: size of the mask that marks the evidence in an image; None where the task has no such mask.
    """

    name: str
    level: Level
    count: int
    digest: str
    evidence_patches: int | None


def choose_tasks(requested: Sequence[str] | None, of_agents: Sequence[str]) -> tuple[Task, ...]:
    """The tasks that take part, in the registry's order.

    Args:
        requested: their names, or "all" for every task whose data is installed; None for those of the agents.
        of_agents: the tasks that the agents were trained for; where there are none, None means all.

    Raises:
        UserError: a name is unknown.
        MissingExtraError: the data of a task that was named is not installed.
    """
    names = of_agents if requested is None and of_agents else [ALL] if requested is None else requested
    for name in names:
        if name != ALL and name not in TASKS:
            raise unknown_name("task", name, (ALL, *TASKS.names()))
    if ALL in names:
        return tuple(task for task in map(TASKS.get, TASKS.names()) if task.missing() is None)
    chosen = tuple(TASKS.get(name) for name in TASKS.names() if name in names)
    for missing in filter(None, (task.missing() for task in chosen)):
        raise missing
    return chosen


def questions_digest(samples: Iterable[Sample]) -> str:
    """SHA-256 over questions, answers and the pixels of the images."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.image.shape} {sample.question}\n{sample.answer}\n".encode())
        digest.update(sample.image.tobytes())
    return digest.hexdigest()


def draw_questions(task: Task, seed: int, limit: int, split: Split = SPLIT) -> TaskQuestions:
    """The first ``limit`` questions of a task's split, or all of them where it has fewer."""
    available = task.question_count(split)
    count = limit if available is None else min(limit, available)
    # A few tell data apart; drawing all images would take minutes.
    samples = list(islice(task.samples(split, seed, count), _DIGESTED_SAMPLES))
    evidence = samples[-1].evidence if samples else None
    patches = None if evidence is None else evidence.size
    return TaskQuestions(task.name, task.level, count, questions_digest(samples), patches)


def no_correct_answer(task: str, questions: int) -> UserError:
    """The error for a task on which retention, a share of the unpruned model's accuracy, is undefined."""
    return UserError(
        f"the unpruned model answered none of {questions} questions of {task} correctly, so there is no accuracy to "
        "retain: leave that task out, or raise --limit"
    )
