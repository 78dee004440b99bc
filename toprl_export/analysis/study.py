"""What every analysis builds on: the model, the tasks' held-out questions, the pruning methods, and which questions the
model answers correctly under each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toprl_export.agent import load_agent
from toprl_export.cores import check_parallel
from toprl_export.errors import UserError
from toprl_export.evaluation.answering import BATCH, answer_samples
from toprl_export.evaluation.cells import CellStore, Result, answered_by, compute_cells
from toprl_export.evaluation.estimates import Correctness
from toprl_export.evaluation.machine import Provenance, torch_device
from toprl_export.evaluation.questions import (
    ALL,
    SPLIT,
    TaskQuestions,
    choose_tasks,
    draw_questions,
    no_correct_answer,
)
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model, load_unchanged_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.models.walk import Decision
from toprl_export.pruning.baselines.attention import FastVScorer
from toprl_export.pruning.baselines.controls import UniformScorer
from toprl_export.pruning.scorer import StageInputs
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Sample, Task

RETAINED = 0.95
"""The share of the unpruned accuracy from which the analyses' texts call the accuracy retained."""


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
        device: "cpu", "cuda", "cuda:N", or "auto" for a GPU if there is one.
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
        check_parallel("jobs", self.jobs)
        if self.limit < 1:
            raise UserError(f"limit is {self.limit}, expected at least 1")


class PruningMethod(Protocol):
    """How visual tokens are pruned; small enough to be sent to another process and to name a file."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the answers depend on besides model and questions, as a JSON object."""
        ...

    def pruning(self, adapter: LVLMAdapter) -> Pruning | None:
        """What the reference runs; None for no pruning.

        Raises:
            UserError: the model cannot be pruned by this method.
        """
        ...


@dataclass(frozen=True)
class Unpruned:
    """All visual tokens go through all layers."""

    @property
    def identity(self) -> dict[str, Any]:
        """See `PruningMethod.identity`."""
        return {"pruning": "none"}

    def pruning(self, adapter: LVLMAdapter) -> None:
        """See `PruningMethod.pruning`."""
        del adapter


@dataclass(frozen=True)
class OneCut:
    """One stage, before decoder layer ``layer``, that keeps the ``kept`` tokens of the highest FastV scores, or none.

    The score at a layer is the attention that the question's last token pays in the layer before. TOP-RL's Figure 1 is
    made of such cuts.
    """

    layer: int
    kept: int

    @property
    def identity(self) -> dict[str, Any]:
        """See `PruningMethod.identity`."""
        return {"pruning": "fastv" if self.kept else "everything", "layer": self.layer, "kept": self.kept}

    def pruning(self, adapter: LVLMAdapter) -> Pruning:
        """See `PruningMethod.pruning`."""
        del adapter
        if self.kept == 0:
            # `select` keeps at least one token.
            return NothingKept((self.layer,), (0,), UniformScorer())
        return Pruning((self.layer,), (self.kept,), FastVScorer())


@dataclass(frozen=True)
class NothingKept(Pruning):
    """Pruning that drops all visual tokens at its stage; its scorer is never run."""

    def decide(self, inputs: StageInputs) -> Decision:
        """No token: ``int64 [b, 0]``."""
        return Decision(inputs.origin[:, :0])


@dataclass(frozen=True)
class ByAgent:
    """A trained agent with its keep counts, one for each stage; ``fingerprint`` is the agent's, so that a replaced
    agent is noticed."""

    directory: Path
    fingerprint: str
    keep_counts: tuple[int, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """See `PruningMethod.identity`."""
        return {"pruning": "agent", "fingerprint": self.fingerprint, "keep_counts": self.keep_counts}

    def pruning(self, adapter: LVLMAdapter) -> Pruning:
        """See `PruningMethod.pruning`."""
        agent = load_agent(self.directory)
        if agent.fingerprint != self.fingerprint:
            raise UserError(f"the agent in {self.directory} changed while the command ran: repeat the command")
        agent.check_fits(adapter)
        return Pruning(agent.record.plan.stage_layers, self.keep_counts, agent.actor.to(adapter.device))


@dataclass(frozen=True)
class AnswerCell:
    """A task's held-out questions, answered by one model under one pruning method.

    Attributes:
        questions: the task and how many of its questions.
        method: how visual tokens are pruned.
        seed: of the questions.
        model: what else of the model the answers depend on: fingerprint, dtype, device.
    """

    questions: TaskQuestions
    method: PruningMethod
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
            "answering": [SPLIT, BATCH, DEFAULT_NEW_TOKENS, answered_by(__name__)],
            **self.method.identity,
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
            UserError: it cannot be loaded, or changed while the command ran.
        """
        return Answerer(load_unchanged_model(self.model, self.device, self.model_fingerprint))


class Answerer:
    """Answers the questions of cells by one model in PyTorch."""

    def __init__(self, adapter: LVLMAdapter) -> None:
        self._runner = ReferenceRunner(adapter)

    def __call__(self, cell: AnswerCell) -> Result:
        """``right``: 1 for each question answered correctly, else 0."""
        task = TASKS.get(cell.questions.name)
        samples = held_out(task.name, cell.seed, cell.questions.count)
        pruning = cell.method.pruning(self._runner.adapter)
        answers = answer_samples(self._runner, samples, lambda _: pruning)
        return {"right": [int(task.score(one, sample.answer)) for one, sample in zip(answers, samples, strict=True)]}


@lru_cache(maxsize=1)  # cells come task by task, and drawing a task's images takes long
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
        # Perception before reasoning, as the alphabet has it.
        tasks = tuple(sorted(choose_tasks(scope.tasks, ()), key=lambda task: task.level))
        return cls(scope, adapter or load_model(scope.model, device=torch_device(scope.device)), tasks)

    @cached_property
    def questions(self) -> dict[str, TaskQuestions]:
        """The questions to answer, by task."""
        return {task.name: draw_questions(task, self.scope.seed, self.scope.limit) for task in self.tasks}

    def correctness(self, wanted: Sequence[tuple[Task, PruningMethod]], what: str) -> list[Correctness]:
        """Which questions are answered correctly; what the output directory holds already is not answered again.

        Args:
            wanted: tasks and pruning methods; those of one task next to each other, so that its
                images are drawn once.
            what: the progress bar's name.

        Raises:
            UserError: a method does not fit the model, or a process died.
        """
        scope = self.scope
        fingerprint, device = self.adapter.answering_fingerprint, str(self.adapter.device)
        model = (fingerprint, str(self.adapter.dtype), device)
        cells = [AnswerCell(self.questions[task.name], method, scope.seed, model) for task, method in wanted]
        opener = OpenAnswerer(scope.model, device, fingerprint) if scope.jobs > 1 else lambda: Answerer(self.adapter)
        results = compute_cells(cells, CellStore(scope.output_dir / "cells"), opener, scope.jobs, what)
        return [np.asarray(result["right"], dtype=np.float64) for result in results]

    def provenance(self) -> Provenance:
        """What the results of this study were made with."""
        return Provenance.today(self.adapter, self.scope.seed, self.scope.command)

    def unpruned(self) -> dict[str, Correctness]:
        """Which questions the unpruned model answers correctly, by task.

        Raises:
            UserError: it has no correct answer on one of the tasks, so that there is no accuracy to retain.
        """
        found = self.correctness([(task, Unpruned()) for task in self.tasks], "unpruned")
        for task, correct in zip(self.tasks, found, strict=True):
            if not correct.any():
                raise no_correct_answer(task.name, len(correct))
        return {task.name: correct for task, correct in zip(self.tasks, found, strict=True)}
