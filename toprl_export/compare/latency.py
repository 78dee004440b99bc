"""How long prefill takes under each method, beside the unpruned reference and in one process alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from toprl_export.compare.answer import cell_pruning
from toprl_export.compare.cell import SPLIT, Cell
from toprl_export.evaluation.answering import EncodedBatch
from toprl_export.evaluation.cells import CellStore
from toprl_export.evaluation.machine import Device, describe_device
from toprl_export.fields import read_fields, to_json
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.progress import Progress
from toprl_export.tasks.registry import TASKS

WARMUP = 3
Contender: TypeAlias = tuple[str, int]
"""A method and a budget."""


@dataclass(frozen=True)
class LatencyEntry:
    """One method's prefill at one budget.

    Attributes:
        method: its name; "unpruned" for the reference.
        budget_kept: average visual tokens kept.
        prefill_ms: median milliseconds of the prefill of one question.
        iqr_ms: interquartile range of the same.
        speedup: median over the rounds of the reference's time over this one's.
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
        task: whose questions were asked, one at a time, the same for everyone.
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
    """The whole measurement, in which all contenders take turns, so that one of them never stands alone.

    Attributes:
        cells: the contenders, one cell for each method and budget, the unpruned one first.
        iterations: rounds counted.
        device: the machine and its threads.
    """

    cells: tuple[Cell, ...]
    iterations: int
    device: Device

    @property
    def identity(self) -> dict[str, Any]:
        """See `toprl_export.evaluation.cells.Cell`."""
        contenders = [{"method": cell.method, **cell.identity} for cell in self.cells]
        measured = {"iterations": self.iterations, "warmup": WARMUP, "device": to_json(self.device)}
        return {"what": "compare-latency", "contenders": contenders, **measured}


def latency_cell(cells: Sequence[Cell], iterations: int, device: str, threads: int) -> LatencyCell:
    """What is measured for a comparison: of each method and budget the first cell, on the first task that has one.

    The oracle is left out: it scores by what only the scenes know.
    """
    chosen: dict[Contender, Cell] = {}
    for cell in cells:
        if cell.kind != "oracle":
            chosen.setdefault((cell.method, cell.budget_kept), cell)
    return LatencyCell(tuple(chosen.values()), iterations, describe_device(device, threads))


def measure_latency(adapter: LVLMAdapter, cell: LatencyCell, store: CellStore) -> LatencyTable:
    """What ``store`` holds of an earlier run on the same machine, else a fresh measurement.

    Raises:
        UserError: an agent cannot be read or is another one by now, or a kept file is damaged.
    """
    kept = store.load(cell)
    if kept is not None:
        return read_fields(LatencyTable, kept, "the kept latencies", "delete them to have them measured again")
    runner, first = ReferenceRunner(adapter), cell.cells[0]
    task, seed = TASKS.get(first.task), first.setting.seed
    questions = min(first.questions, WARMUP + cell.iterations)
    asked = [EncodedBatch(runner, [task.sample(SPLIT, seed, index)]) for index in range(questions)]
    contenders = {(one.method, one.budget_kept): cell_pruning(one, adapter)(asked[0].samples) for one in cell.cells}
    with _torch_threads(cell.device.threads):
        rounds = time_prefills(runner, contenders, asked, cell.iterations)
    reference = rounds[first.method, first.budget_kept]
    entries = tuple(_entry(name, times, reference) for name, times in rounds.items())
    table = LatencyTable(first.task, cell.iterations, WARMUP, cell.device, entries)
    store.save(cell, to_json(table))
    return table


def time_prefills(
    runner: ReferenceRunner,
    contenders: Mapping[Contender, Pruning | None],
    asked: Sequence[EncodedBatch],
    iterations: int,
) -> dict[Contender, NDArray[np.float64]]:
    """Milliseconds of every contender's prefill in every round, ``float64 [iterations]`` each.

    In a round all answer the same question; who begins changes from round to round. The images are encoded, and the
    vision tower's attention is there, before the clock starts.
    """
    names = list(contenders)
    rounds: dict[Contender, list[float]] = {name: [] for name in names}
    with Progress("latency", WARMUP + iterations, "round") as bar:
        for number in range(WARMUP + iterations):
            batch = asked[number % len(asked)]
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                milliseconds = _time_prefill(runner, batch, contenders[name])
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


def _entry(name: Contender, times: NDArray[np.float64], reference: NDArray[np.float64]) -> LatencyEntry:
    low, median, high = np.percentile(times, (25, 50, 75))
    return LatencyEntry(*name, float(median), float(high - low), float(np.median(reference / times)))


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use ``threads`` for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
