"""The unit of a comparison: one method at one budget on one task with one seed, and what measures it in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from toprl_export.agent import load_agent
from toprl_export.errors import UserError
from toprl_export.evaluation.answering import BATCH, EncodedBatch, PruningOf
from toprl_export.evaluation.cells import Result, answered_by
from toprl_export.evaluation.estimates import Correctness
from toprl_export.evaluation.questions import SPLIT
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_unchanged_model
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.pruning.baselines.controls import OracleScorer
from toprl_export.pruning.scorer import Scorer, make_scorer
from toprl_export.runtime.answer_length import DEFAULT_NEW_TOKENS
from toprl_export.seeding import derive_seed
from toprl_export.tasks.registry import TASKS
from toprl_export.tasks.task import Sample, Split, Task

CELLS_FOLDER = "cells"
ENCODED_BYTES = 2**30
"""Memory limit for one task's encoded questions; questions beyond it are drawn and encoded again for every cell."""

MethodKind: TypeAlias = Literal["unpruned", "baseline", "baseline per task", "oracle", "agent"]
RIVALS: Sequence[MethodKind] = ("baseline", "baseline per task")
"""What agents are compared with: baselines with one setting for all tasks, and those with a setting for each."""


@dataclass(frozen=True)
class ComparisonSetting:
    """What all cells of a comparison share.

    Attributes:
        model: the reference model's name, path or hub id.
        model_fingerprint: of all that its answers depend on, see `LVLMAdapter.answering_fingerprint`.
        device: where it runs, "cpu", "cuda" or "cuda:N".
        dtype: of its weights, as torch names it.
        seed: of the questions drawn and of random pruning.
    """

    model: str
    model_fingerprint: str
    device: str
    dtype: str
    seed: int


@dataclass(frozen=True)
class MethodCell:
    """What is measured, and with what.

    Attributes:
        setting: what it shares with the other cells.
        method: its name in the comparison.
        kind: whether it prunes at all, and what by.
        scorer: an agent's fingerprint, a baseline's name, or "unpruned".
        task: whose questions are answered.
        questions: how many, the first of the draw.
        questions_digest: see `TaskQuestions.digest`.
        budget_kept: average visual tokens kept, as requested; n where nothing is pruned.
        stage_layers: decoder layers before which tokens are dropped.
        keep_counts: visual tokens left after each stage.
        average_kept: what these counts average over all layers.
        seed: an agent's, or the number of the draw of random pruning; 0 for what is deterministic.
        agent: the agent's directory.
        split: where the questions come from; rivals are tuned on those of the train split.
    """

    setting: ComparisonSetting
    method: str
    kind: MethodKind
    scorer: str
    task: str
    questions: int
    questions_digest: str
    budget_kept: int
    stage_layers: tuple[int, ...]
    keep_counts: tuple[int, ...]
    average_kept: float
    seed: int
    agent: str | None = None
    split: Split = SPLIT

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the answers depend on, see `toprl_export.evaluation.cells.Cell`: what the method is called
        and where model and agent lie is no part of it."""
        own = {
            name: value for name, value in asdict(self).items() if name not in ("setting", "method", "kind", "agent")
        }
        shared = {name: value for name, value in asdict(self.setting).items() if name != "model"}
        return {
            "what": "compare",
            **own,
            "setting": shared,
            "batch": BATCH,
            "max_new_tokens": DEFAULT_NEW_TOKENS,
            "answered_by": answered_by(__name__),
        }

    def result(self, scores: list[float]) -> Result:
        """What is stored of the questions' scores, 0 or 1 each: ``right``, a string of one digit per question."""
        return {"right": "".join(str(int(score)) for score in scores)}

    def correct(self, result: Result) -> Correctness:
        """Which questions were answered correctly, from a kept result.

        Raises:
            UserError: it is not what :meth:`result` makes.
        """
        digits = result.get("right")
        if not isinstance(digits, str) or len(digits) != self.questions or set(digits) - {"0", "1"}:
            raise UserError(
                f"the stored result of {self.method} on {self.task} is not {self.questions} digits of 0 or 1: "
                f"delete the folder {CELLS_FOLDER} to have it measured again"
            )
        return np.array([int(digit) for digit in digits], dtype=np.float64)


@dataclass(frozen=True)
class OpenCellRunner:
    """Makes a `CellRunner` in another process, to which it is sent in place of the model."""

    setting: ComparisonSetting

    def __call__(self) -> CellRunner:
        """Load the model.

        Raises:
            UserError: it cannot be loaded, or changed while the command ran.
        """
        setting = self.setting
        return CellRunner(load_unchanged_model(setting.model, setting.device, setting.model_fingerprint))


class CellRunner:
    """Measures one cell after another; the questions of the last cell's task stay encoded."""

    def __init__(self, adapter: LVLMAdapter) -> None:
        self._runner = ReferenceRunner(adapter)
        self._encoded: _EncodedTask | None = None

    def __call__(self, cell: MethodCell) -> Result:
        """Answer the cell's questions; see `MethodCell.result`.

        Raises:
            UserError: its agent cannot be read or changed while the command ran, or a question is too long.
        """
        task, pruning_of = TASKS.get(cell.task), cell_pruning(cell, self._runner.adapter)
        scores: list[float] = []
        for batch in self._questions(task, cell):
            answers = batch.answer(pruning_of(batch.samples))
            scores += [task.score(one, sample.answer) for one, sample in zip(answers, batch.samples, strict=True)]
        return cell.result(scores)

    def _questions(self, task: Task, cell: MethodCell) -> Iterator[EncodedBatch]:
        wanted = (task, cell.split, cell.setting.seed, cell.questions)
        if self._encoded is None or self._encoded.wanted != wanted:
            self._encoded = _EncodedTask(self._runner, *wanted)
        return iter(self._encoded)


class _EncodedTask:
    """A task's questions in encoded batches; the first ``ENCODED_BYTES`` stay in memory between passes."""

    def __init__(self, runner: ReferenceRunner, task: Task, split: Split, seed: int, questions: int) -> None:
        self.wanted = (task, split, seed, questions)
        self._runner = runner
        self._kept: list[EncodedBatch] = []
        self._bytes = 0

    def __iter__(self) -> Iterator[EncodedBatch]:
        task, split, seed, questions = self.wanted
        for number, start in enumerate(range(0, questions, BATCH)):
            if number < len(self._kept):
                yield self._kept[number]
                continue
            drawn = [task.sample(split, seed, index) for index in range(start, min(start + BATCH, questions))]
            batch = EncodedBatch(self._runner, drawn)
            # Images are counted too: the vision tower's attention may still be computed from them.
            self._bytes += batch.visual.nbytes + sum(sample.image.nbytes for sample in drawn)
            if self._bytes <= ENCODED_BYTES:
                self._kept.append(batch)
            yield batch


def cell_pruning(cell: MethodCell, adapter: LVLMAdapter) -> PruningOf:
    """What prunes each batch in a cell.

    Raises:
        UserError: the cell's agent cannot be read or changed while the command ran.
    """
    if cell.kind == "unpruned":
        return lambda _: None
    if cell.kind == "oracle":
        return lambda samples: Pruning(cell.stage_layers, cell.keep_counts, _oracle(samples, adapter.device))
    pruning = Pruning(cell.stage_layers, cell.keep_counts, _scorer(cell).to(adapter.device))
    # Everything but the oracle scores all batches by one scorer.
    return lambda _: pruning


def _oracle(samples: Sequence[Sample], device: torch.device) -> Scorer:
    marked = [sample.evidence.reshape(-1) for sample in samples if sample.evidence is not None]
    return OracleScorer(torch.from_numpy(np.stack(marked)).to(device))  # bool [b, n]


def _scorer(cell: MethodCell) -> Scorer:
    if cell.agent is None:
        return make_scorer(cell.scorer, derive_seed(cell.setting.seed, "random-pruning", cell.budget_kept, cell.seed))
    agent = load_agent(Path(cell.agent))
    if agent.fingerprint != cell.scorer:
        raise UserError(f"the agent in {cell.agent} changed while the command ran: repeat the command")
    return agent.actor
