"""Prefill latency of every method and the unpruned reference, measured in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from toprl_export.comparison.method_cell import MethodCell, cell_pruning
from toprl_export.evaluation.answering import EncodedBatch
from toprl_export.evaluation.cells import CellStore
from toprl_export.evaluation.machine import Device, describe_device, torch_threads
from toprl_export.evaluation.questions import SPLIT
from toprl_export.fields import read_fields, to_json
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.progress import Progress
from toprl_export.tasks.registry import TASKS

WARMUP = 3
"""Rounds that are not counted: the first ones pay for allocations and cold caches."""
TimedMethod: TypeAlias = tuple[str, int]
"""A method and the budget that it is timed at."""


@dataclass(frozen=True)
class LatencyEntry:
    """One method's prefill at one budget.

    Attributes:
        method: its name; "unpruned" for the reference.
        budget_kept: average visual tokens kept.
        prefill_ms: median milliseconds of the prefill of one question.
        iqr_ms: interquartile range of the same.
        speedup: median over the rounds of the reference's time divided by this method's.
    """

    method: str
    budget_kept: int
    prefill_ms: float
    iqr_ms: float
    speedup: float


@dataclass(frozen=True)
class LatencyTable:
    """What was measured.

    Attributes:
        task: whose questions were prefilled, one at a time, the same for every method.
        iterations: rounds counted.
        warmup: rounds before them.
        device: the machine and its threads.
        entries: the unpruned reference first.
    """

    task: str
    iterations: int
    warmup: int
    device: Device
    entries: tuple[LatencyEntry, ...]

    def find(self, method: str, budget_kept: int) -> LatencyEntry | None:
        """One method's entry at one budget."""
        found = [one for one in self.entries if (one.method, one.budget_kept) == (method, budget_kept)]
        return found[0] if found else None


@dataclass(frozen=True)
class LatencyCell:
    """The whole measurement, in which all methods take turns, so that none of them is ever timed alone.

    Attributes:
        cells: what is timed, one cell for each method and budget, the unpruned one first.
        iterations: rounds counted.
        device: the machine and its threads.
    """

    cells: tuple[MethodCell, ...]
    iterations: int
    device: Device

    @property
    def identity(self) -> dict[str, Any]:
        """See `toprl_export.evaluation.cells.Cell`."""
        timed = [{"method": cell.method, **cell.identity} for cell in self.cells]
        measured = {"iterations": self.iterations, "warmup": WARMUP, "device": to_json(self.device)}
        return {"what": "compare-latency", "timed": timed, **measured}


def latency_cell(cells: Sequence[MethodCell], iterations: int, device: str, threads: int) -> LatencyCell:
    """What is measured for a comparison: of each method and budget the first cell, on the first task that has one.

    The oracle is left out: it scores by the evidence masks of generated scenes, which no deployed method has. So are
    rivals whose setting differs from task to task.
    """
    chosen: dict[TimedMethod, MethodCell] = {}
    for cell in cells:
        if cell.kind not in ("oracle", "baseline per task"):
            chosen.setdefault((cell.method, cell.budget_kept), cell)
    return LatencyCell(tuple(chosen.values()), iterations, describe_device(device, threads))


def measure_latency(adapter: LVLMAdapter, cell: LatencyCell, store: CellStore) -> LatencyTable:
    """The stored latencies of an earlier run on the same machine, else a new measurement.

    Raises:
        UserError: an agent cannot be read or changed while the command ran, or a stored file is damaged.
    """
    kept = store.load(cell)
    if kept is not None:
        return read_fields(LatencyTable, kept, "the stored latencies", "delete them to have them measured again")
    runner, first = ReferenceRunner(adapter), cell.cells[0]
    task, seed = TASKS.get(first.task), first.setting.seed
    count = min(first.questions, WARMUP + cell.iterations)
    questions = [EncodedBatch(runner, [task.sample(SPLIT, seed, index)]) for index in range(count)]
    methods = {(one.method, one.budget_kept): cell_pruning(one, adapter)(questions[0].samples) for one in cell.cells}
    # The first question's samples stand for all: without the oracle no pruning depends on them.
    with torch_threads(cell.device.threads):
        rounds = time_prefills(runner, methods, questions, cell.iterations)
    reference = rounds[first.method, first.budget_kept]
    entries = tuple(_entry(name, times, reference) for name, times in rounds.items())
    table = LatencyTable(first.task, cell.iterations, WARMUP, cell.device, entries)
    store.save(cell, to_json(table))
    return table


def time_prefills(
    runner: ReferenceRunner,
    methods: Mapping[TimedMethod, Pruning | None],
    questions: Sequence[EncodedBatch],
    iterations: int,
) -> dict[TimedMethod, NDArray[np.float64]]:
    """Milliseconds of every method's prefill in every round, ``float64 [iterations]`` each.

    In a round all methods prefill the same question; which one begins rotates from round to round, so that drift of the
    machine's speed falls on all alike. The images are encoded, and the vision tower's attention is computed, before the
    clock starts.
    """
    names = list(methods)
    rounds: dict[TimedMethod, list[float]] = {name: [] for name in names}
    with Progress("latency", WARMUP + iterations, "round") as bar:
        for number in range(WARMUP + iterations):
            batch = questions[number % len(questions)]
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                milliseconds = _time_prefill(runner, batch, methods[name])
                if number >= WARMUP:
                    rounds[name].append(milliseconds)
            bar.update()
    return {name: np.array(times) for name, times in rounds.items()}


def _time_prefill(runner: ReferenceRunner, batch: EncodedBatch, pruning: Pruning | None) -> float:
    saliency = batch.saliency_for(pruning)
    # Reading a number back waits for a GPU to finish, before as after.
    float(batch.visual.flatten()[0])
    start = time.perf_counter()
    float(runner.prefill(batch.tokens, batch.visual, pruning, saliency=saliency).logits[0, 0])
    return (time.perf_counter() - start) * 1e3


def _entry(name: TimedMethod, times: NDArray[np.float64], reference: NDArray[np.float64]) -> LatencyEntry:
    low, median, high = np.percentile(times, (25, 50, 75))
    return LatencyEntry(*name, float(median), float(high - low), float(np.median(reference / times)))
