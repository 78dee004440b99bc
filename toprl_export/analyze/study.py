"""What every analysis stands on: the model, the tasks' held-out questions, and which of them each way gets right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toprl_export.analyze.results import Provenance
from toprl_export.analyze.ways import Unpruned, Way
from toprl_export.compare.cell import SPLIT
from toprl_export.compare.request import ALL, TaskQuestions, choose_tasks, draw_questions
from toprl_export.errors import UserError
from toprl_export.evaluation.answering import BATCH, MAX_NEW_TOKENS, answer_samples
from toprl_export.evaluation.cells import CellStore, Result, answered_by, compute_cells
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model, load_unchanged_model
from toprl_export.models.reference import ReferenceRunner
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Sample, Task

RETAINED = 0.95
"""The share of the unpruned accuracy that counts as enough in what analyses say in words."""

Right = NDArray[np.float64]
"""1 for a question answered rightly, else 0, in the order of the questions, ``[n]``."""


@dataclass(frozen=True)
class Scope:
    """What an analysis covers and where it goes.

    Attributes:
        output_dir: of the results and, in ``cells/``, of the answers, which analyses share.
        model: a name, path or hub id.
        tasks: their names, or "all" for every one whose data is installed.
        limit: held-out questions a task; fewer where a task has fewer.
        seed: of questions and bootstrap.
        jobs: processes.
        device: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one.
        command: for the record.

    Raises:
        UserError: a number is below 1.
    """

    output_dir: Path
    model: str = "mini"
    tasks: tuple[str, ...] = (ALL,)
    limit: int = 200
    seed: int = 0
    jobs: int = 1
    device: str = "auto"
    command: str = "python"

    def __post_init__(self) -> None:
        for name in ("limit", "jobs"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True)
class AnswerCell:
    """A task's held-out questions, answered in one way by one model.

    Attributes:
        questions: which task, how many, and a digest of the first, so that a task whose data changed is another one.
        way: how visual tokens are pruned.
        seed: of the questions.
        model: what else of the model the answers depend on: fingerprint, dtype, device.
    """

    questions: TaskQuestions
    way: Way
    seed: int
    model: tuple[str, str, str]

    @property
    def identity(self) -> dict[str, Any]:
        """See `toprl_export.evaluation.cells.Cell`."""
        return {
            "kind": "answers",
            "model": self.model,
            "task": self.questions.name,
            "questions": self.questions.count,
            "questions_digest": self.questions.digest,
            "seed": self.seed,
            "answering": [SPLIT, BATCH, MAX_NEW_TOKENS, answered_by()],
            **self.way.identity,
        }


@dataclass(frozen=True)
class OpenAnswerer:
    """Makes an `Answerer` in another process."""

    model: str
    device: str
    model_fingerprint: str

    def __call__(self) -> Answerer:
        """Load the model.

        Raises:
            UserError: it cannot be loaded, or answers otherwise by now.
        """
        return Answerer(load_unchanged_model(self.model, self.device, self.model_fingerprint))


class Answerer:
    """Answers cells with one model in PyTorch."""

    def __init__(self, adapter: LVLMAdapter) -> None:
        self._runner = ReferenceRunner(adapter)

    def __call__(self, cell: AnswerCell) -> Result:
        """``right``: for each question 1 or 0."""
        task = TASKS.get(cell.questions.name)
        samples = held_out(task.name, cell.seed, cell.questions.count)
        pruning = cell.way.pruning(self._runner.adapter)
        answers = answer_samples(self._runner, samples, lambda _: pruning)
        return {"right": [int(task.score(one, sample.answer)) for one, sample in zip(answers, samples, strict=True)]}


@lru_cache(maxsize=1)  # cells come task by task, and a task's pictures take more time to draw than memory to keep
def held_out(task: str, seed: int, questions: int) -> tuple[Sample, ...]:
    """A task's first held-out questions."""
    return tuple(TASKS.get(task).samples(SPLIT, seed, questions))


@dataclass(frozen=True)
class Study:
    """An opened scope; tasks of perception come first."""

    scope: Scope
    adapter: LVLMAdapter
    tasks: tuple[Task, ...]

    @classmethod
    def open(cls, scope: Scope, adapter: LVLMAdapter | None = None) -> Study:
        """Find the tasks and load the model, or take one already loaded (then ``scope.jobs`` must be 1).

        Raises:
            UserError: a task or the model is unknown.
            MissingExtraError: a named task's data is not installed.
        """
        tasks = tuple(sorted(choose_tasks(scope.tasks, ()), key=lambda task: task.level))
        return cls(scope, adapter or load_model(scope.model, device=_device(scope.device)), tasks)

    @cached_property
    def questions(self) -> dict[str, TaskQuestions]:
        """What is asked, by task."""
        return {task.name: draw_questions(task, self.scope.seed, self.scope.limit) for task in self.tasks}

    def right(self, wanted: Sequence[tuple[Task, Way]], what: str) -> list[Right]:
        """Which questions each task's way gets right; what the output directory holds already is not asked again.

        Args:
            wanted: tasks and ways; those of one task best stand together.
            what: the progress bar's name.

        Raises:
            UserError: a way does not suit the model, or a process died.
        """
        scope = self.scope
        fingerprint, device = self.adapter.answering_fingerprint, str(self.adapter.device)
        model = (fingerprint, str(self.adapter.dtype), device)
        cells = [AnswerCell(self.questions[task.name], way, scope.seed, model) for task, way in wanted]
        opener = OpenAnswerer(scope.model, device, fingerprint) if scope.jobs > 1 else lambda: Answerer(self.adapter)
        results = compute_cells(cells, CellStore(scope.output_dir / "cells"), opener, scope.jobs, what)
        return [np.asarray(result["right"], dtype=np.float64) for result in results]

    def provenance(self) -> Provenance:
        """What results of this study are made with."""
        return Provenance.today(self.adapter, self.scope.seed, self.scope.command)

    def unpruned(self) -> dict[str, Right]:
        """Which questions the whole model gets right, by task.

        Raises:
            UserError: on one of the tasks it gets none right, so that nothing can be retained.
        """
        found = self.right([(task, Unpruned()) for task in self.tasks], "unpruned")
        for task, right in zip(self.tasks, found, strict=True):
            if not right.any():
                raise UserError(
                    f"the unpruned model answers none of {len(right)} questions of {task.name} rightly, so nothing can "
                    "be retained: leave that task out, or raise --limit"
                )
        return {task.name: right for task, right in zip(self.tasks, found, strict=True)}


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
