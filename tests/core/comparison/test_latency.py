"""Latency: who is measured, in which order, and that a measurement is kept. No test looks at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.support.comparison import make_cell
from toprl_export.comparison import latency
from toprl_export.comparison.latency import WARMUP, LatencyCell, latency_cell, measure_latency, time_prefills
from toprl_export.evaluation.answering import EncodedBatch
from toprl_export.evaluation.cells import CellStore, digest
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.reference import Pruning, ReferenceRunner
from toprl_export.tasks.mini_tasks import EXIST


def one_cell(iterations: int = 2) -> LatencyCell:
    methods = ("unpruned", "random", "fastv", "visionzip", "oracle")
    cells = [make_cell(method, seed=seed, questions=4) for method in methods for seed in (0, 1)]
    cells += [make_cell("fastv", task="mini-count", questions=4), make_cell("fastv", budget=6, questions=4)]
    return latency_cell(cells, iterations, "cpu", 1)


def test_each_method_and_budget_is_measured_once_and_the_oracle_not() -> None:
    found = [(cell.method, cell.budget_kept, cell.task, cell.seed) for cell in one_cell().cells]
    assert found == [
        ("unpruned", 25, "mini-exist", 0),
        ("random", 12, "mini-exist", 0),
        ("fastv", 12, "mini-exist", 0),
        ("visionzip", 12, "mini-exist", 0),
        ("fastv", 6, "mini-exist", 0),
    ]


def test_another_machine_or_method_is_another_measurement() -> None:
    cell = one_cell()
    elsewhere = replace(cell, device=replace(cell.device, threads=2))
    fewer = replace(cell, cells=cell.cells[:-1])
    assert len({digest(cell), digest(elsewhere), digest(fewer), digest(one_cell(3))}) == 4


def test_all_answer_the_same_question_in_turns(adapter: LVLMAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[tuple[str, str]] = []

    def recorded(runner: ReferenceRunner, batch: EncodedBatch, pruning: Pruning | None) -> float:
        timed.append((batch.samples[0].image_key, "pruned" if pruning else "whole"))
        return float(len(timed))

    monkeypatch.setattr(latency, "_time_prefill", recorded)
    runner = ReferenceRunner(adapter)
    batches = [EncodedBatch(runner, [EXIST.sample("held-out", 0, index)]) for index in range(2)]
    pruning = Pruning((0,), (6,), latency.cell_pruning(make_cell("uniform"), adapter)([]).scorer)
    rounds = time_prefills(runner, {("whole", 25): None, ("uniform", 6): pruning}, batches, iterations=3)
    keys = [key for key, _ in timed]
    order = [who for _, who in timed]
    assert keys == [f"mini-exist/held-out/0/{number % 2}" for number in range(WARMUP + 3) for _ in range(2)]
    assert order == ["whole", "pruned", "pruned", "whole"] * ((WARMUP + 3) // 2)
    assert {name: len(times) for name, times in rounds.items()} == {("whole", 25): 3, ("uniform", 6): 3}
    assert np.concatenate(list(rounds.values())).min() > 2 * WARMUP  # the rounds to warm up do not count


def test_a_measurement_is_kept(adapter: LVLMAdapter, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, store = one_cell(), CellStore(tmp_path)
    table = measure_latency(adapter, cell, store)
    assert [(one.method, one.budget_kept) for one in table.entries] == [
        (one.method, one.budget_kept) for one in cell.cells
    ]
    assert table.entries[0].speedup == 1.0 and min(one.prefill_ms for one in table.entries) > 0
    assert table.find("fastv", 6) == table.entries[-1] and table.find("fastv", 7) is None
    monkeypatch.setattr(latency, "time_prefills", lambda *_: pytest.fail("measured again"))
    assert measure_latency(adapter, cell, store) == table
