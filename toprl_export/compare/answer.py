"""Measures cells: answers a task's questions under one method's pruning, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from toprl_export.agent import load_agent
from toprl_export.compare.cell import SPLIT, Cell, Setting
from toprl_export.errors import UserError
from toprl_export.evaluation.answering import BATCH, EncodedBatch, PruningOf
from toprl_export.evaluation.cells import Result
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_unchanged_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.controls import OracleScorer
from toprl_export.pruning.scorer import Scorer, make_scorer
from toprl_export.seeding import derive_seed
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Sample, Task

ENCODED_BYTES = 2**30
"""Most memory for one task's encoded questions; those beyond it are drawn and encoded anew for every cell."""


@dataclass(frozen=True)
class OpenCellRunner:
    """Makes a `CellRunner` in another process."""

    setting: Setting

    def __call__(self) -> CellRunner:
        """Load the model.

        Raises:
            UserError: it cannot be loaded, or answers otherwise by now.
        """
        setting = self.setting
        return CellRunner(load_unchanged_model(setting.model, setting.device, setting.model_fingerprint))


class CellRunner:
    """Measures one cell after another; the questions of the task asked last stay encoded."""

    def __init__(self, adapter: LVLMAdapter) -> None:
        self._runner = ReferenceRunner(adapter)
        self._encoded: _EncodedTask | None = None

    def __call__(self, cell: Cell) -> Result:
        """Answer the cell's questions; see `Cell.result`.

        Raises:
            UserError: its agent cannot be read or is another one by now, or a question is too long for the model.
        """
        task, pruning_of = TASKS.get(cell.task), cell_pruning(cell, self._runner.adapter)
        scores: list[float] = []
        for batch in self._questions(task, cell):
            answers = batch.answer(pruning_of(batch.samples))
            scores += [task.score(one, sample.answer) for one, sample in zip(answers, batch.samples, strict=True)]
        return cell.result(scores)

    def _questions(self, task: Task, cell: Cell) -> Iterator[EncodedBatch]:
        wanted = (task, cell.setting.seed, cell.questions)
        if self._encoded is None or self._encoded.wanted != wanted:
            self._encoded = _EncodedTask(self._runner, *wanted)
        return iter(self._encoded)


class _EncodedTask:
    """A task's questions in encoded batches; the first ``ENCODED_BYTES`` of them are kept from one pass to the next."""

    def __init__(self, runner: ReferenceRunner, task: Task, seed: int, questions: int) -> None:
        self.wanted = (task, seed, questions)
        self._runner = runner
        self._kept: list[EncodedBatch] = []
        self._bytes = 0

    def __iter__(self) -> Iterator[EncodedBatch]:
        task, seed, questions = self.wanted
        for number, start in enumerate(range(0, questions, BATCH)):
            if number < len(self._kept):
                yield self._kept[number]
                continue
            drawn = [task.sample(SPLIT, seed, index) for index in range(start, min(start + BATCH, questions))]
            batch = EncodedBatch(self._runner, drawn)
            self._bytes += batch.visual.nbytes + sum(sample.image.nbytes for sample in drawn)
            if self._bytes <= ENCODED_BYTES:
                self._kept.append(batch)
            yield batch


def cell_pruning(cell: Cell, adapter: LVLMAdapter) -> PruningOf:
    """What prunes each batch in a cell.

    Raises:
        UserError: the cell's agent cannot be read or is another one by now.
    """
    if cell.kind == "unpruned":
        return lambda _: None
    if cell.kind == "oracle":
        return lambda samples: Pruning(cell.stage_layers, cell.keep_counts, _oracle(samples, adapter.device))
    pruning = Pruning(cell.stage_layers, cell.keep_counts, _scorer(cell).to(adapter.device))
    return lambda _: pruning


def _oracle(samples: Sequence[Sample], device: torch.device) -> Scorer:
    marked = [sample.evidence.reshape(-1) for sample in samples if sample.evidence is not None]
    return OracleScorer(torch.from_numpy(np.stack(marked)).to(device))  # bool [b, n]


def _scorer(cell: Cell) -> Scorer:
    if cell.agent is None:
        return make_scorer(cell.scorer, derive_seed(cell.setting.seed, "random-pruning", cell.budget_kept, cell.seed))
    agent = load_agent(Path(cell.agent))
    if agent.fingerprint != cell.scorer:
        raise UserError(f"the agent in {cell.agent} has changed meanwhile: repeat the command")
    return agent.actor
