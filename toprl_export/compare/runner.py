"""``compare``: from a request to tables, plots and a typed result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from numpy.typing import NDArray

from toprl_export.analyze.results import Provenance
from toprl_export.compare.answer import CellRunner, OpenCellRunner
from toprl_export.compare.cell import CELLS_FOLDER, UNPRUNED, Cell, Kind, Setting
from toprl_export.compare.findings import Findings, nothing_right
from toprl_export.compare.grid import Grid, build_grid
from toprl_export.compare.latency import LatencyTable, latency_cell, measure_latency
from toprl_export.compare.margins import all_margins
from toprl_export.compare.outputs import check_directory, write_outputs
from toprl_export.compare.request import CompareRequest, TaskQuestions, choose_tasks, draw_questions
from toprl_export.compare.result import AgentNote, Comparison, MethodRow, TaskColumn
from toprl_export.evaluation.cells import CellStore, compute_cells
from toprl_export.evaluation.compared_agents import Entrant, check_agents, find_agents
from toprl_export.evaluation.machine import installed_versions, usable_cores
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.load import load_model
from toprl_export.pruning.baselines.specs import ORACLE


@dataclass(frozen=True)
class Prepared:
    """A request whose model, agents and questions are there and fit together."""

    request: CompareRequest
    adapter: LVLMAdapter
    setting: Setting
    tasks: tuple[TaskQuestions, ...]
    entrants: tuple[Entrant, ...]
    grid: Grid

    @property
    def store(self) -> CellStore:
        """Where measured cells are kept."""
        return CellStore(self.request.output_dir / CELLS_FOLDER)


def compare(request: CompareRequest) -> Comparison:
    """Answer every task's questions with every method at every budget, and write what follows from it.

    What the output directory holds already of the same cells is not measured again; Ctrl-C loses no finished cell.

    Returns:
        what was found, which ``compare.md``, ``compare.csv``, ``compare.json`` and ``pareto.png`` say too.

    Raises:
        UserError: a name is unknown, an agent fits neither model nor tasks, no method can meet a budget, the unpruned
            model has nothing right on a task, or the output directory holds something else.
        MissingExtraError: an optional package is missing.
    """
    prepared = prepare(request)
    outcomes = measure(prepared)
    latency = time_methods(prepared) if request.iterations else None
    comparison = assemble(prepared, outcomes, latency)
    write_outputs(request.output_dir, comparison)
    return comparison


def prepare(request: CompareRequest) -> Prepared:
    """Load and check everything, measure nothing; see :func:`compare`."""
    check_directory(request.output_dir)
    entrants = find_agents(request.agents)
    tasks = choose_tasks(request.tasks, [one.task for one in entrants])
    adapter = load_model(request.model, device=_device(request.device))
    check_agents(entrants, adapter, [task.name for task in tasks])
    setting = Setting(
        model=request.model,
        model_fingerprint=adapter.answering_fingerprint,
        device=str(adapter.device),
        dtype=str(adapter.dtype).removeprefix("torch."),
        seed=request.seed,
    )
    asked = tuple(draw_questions(task, request.seed, request.limit) for task in tasks)
    grid = build_grid(request, adapter, setting, asked, entrants)
    return Prepared(request, adapter, setting, asked, entrants, grid)


def measure(prepared: Prepared) -> list[NDArray[np.float64]]:
    """The outcomes of every cell in the grid's order: the unpruned model first, for without it nothing follows.

    Raises:
        UserError: it has nothing right on a task, or see `CellRunner`.
    """
    cells = prepared.grid.cells
    unpruned = [cell for cell in cells if cell.kind == "unpruned"]
    found = dict(zip(unpruned, _compute(prepared, unpruned, "unpruned"), strict=True))
    for cell, right in found.items():
        if not right.any():
            raise nothing_right(cell.task, cell.questions)
    pruned = [cell for cell in cells if cell.kind != "unpruned"]
    found |= zip(pruned, _compute(prepared, pruned, "cells"), strict=True)
    return [found[cell] for cell in cells]


def _compute(prepared: Prepared, cells: Sequence[Cell], what: str) -> list[NDArray[np.float64]]:
    jobs = prepared.request.jobs
    opener = OpenCellRunner(prepared.setting) if jobs > 1 else lambda: CellRunner(prepared.adapter)
    results = compute_cells(cells, prepared.store, opener, jobs, what)
    return [cell.outcomes(result) for cell, result in zip(cells, results, strict=True)]


def time_methods(prepared: Prepared) -> LatencyTable:
    """Prefill latency of every method and budget, in this process alone."""
    request = prepared.request
    threads = request.threads or usable_cores()
    cell = latency_cell(prepared.grid.cells, request.iterations, prepared.setting.device, threads)
    return measure_latency(prepared.adapter, cell, prepared.store)


def assemble(prepared: Prepared, outcomes: Sequence[NDArray[np.float64]], latency: LatencyTable | None) -> Comparison:
    """Estimates, margins and provenance."""
    request, adapter = prepared.request, prepared.adapter
    findings = Findings(prepared.grid.cells, outcomes, request.seed)
    columns = [TaskColumn(task.name, task.level, task.count) for task in prepared.tasks]
    return Comparison(
        provenance=Provenance(
            model=request.model,
            model_fingerprint=adapter.fingerprint,
            visual_tokens=adapter.visual_tokens,
            decoder_layers=adapter.shape.layers,
            device=prepared.setting.device,
            seed=request.seed,
            command=request.command,
            date=datetime.now(UTC).date().isoformat(),
            versions=installed_versions(),
        ),
        tasks=tuple(sorted(columns, key=lambda column: column.level)),
        methods=_methods(prepared),
        budgets_kept=request.budgets,
        entries=findings.entries(),
        averages=findings.averages(),
        margins=all_margins(findings),
        gaps=prepared.grid.gaps,
        latency=latency,
    )


def _methods(prepared: Prepared) -> tuple[MethodRow, ...]:
    """The rows of the tables: unpruned, baselines, agents, oracle."""
    names = prepared.request.baseline_names
    agents: dict[str, list[AgentNote]] = {}
    for one in prepared.entrants:
        note = AgentNote(one.task, one.seed, one.agent.fingerprint, str(one.directory))
        agents.setdefault(one.method, []).append(note)
    kinds: list[tuple[str, Kind]] = [(UNPRUNED, "unpruned")]
    kinds += [(name, "baseline") for name in names if name != ORACLE]
    kinds += [(name, "agent") for name in agents]
    kinds += [(ORACLE, "oracle")] if ORACLE in names else []
    return tuple(MethodRow(name, kind, tuple(agents.get(name, ()))) for name, kind in kinds)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
