"""``compare``: from a request to tables, plots and a typed result."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from toprl_export.comparison.findings import Findings, all_margins
from toprl_export.comparison.latency import LatencyTable, latency_cell, measure_latency
from toprl_export.comparison.method_cell import (
    CELLS_FOLDER,
    CellRunner,
    ComparisonSetting,
    MethodCell,
    MethodKind,
    OpenCellRunner,
)
from toprl_export.comparison.pareto import pareto_png
from toprl_export.comparison.recompute import ANSWERS_FILE, Answers, write_answers
from toprl_export.comparison.request import CompareRequest, Grid, build_grid, per_task
from toprl_export.comparison.result import (
    JSON_FILE,
    AgentNote,
    Comparison,
    MethodRow,
    TaskColumn,
    read_comparison,
    write_comparison,
)
from toprl_export.comparison.tables import csv_records, render_markdown
from toprl_export.comparison.tuning import TUNING_FILE, TUNING_SPLIT, TuningGround, tune, tuned_names, write_tuning
from toprl_export.cores import usable_cores
from toprl_export.errors import UserError
from toprl_export.evaluation.cells import CellStore, compute_cells
from toprl_export.evaluation.compared_agents import ComparedAgent, check_agents, find_agents
from toprl_export.evaluation.estimates import Correctness
from toprl_export.evaluation.machine import Provenance, torch_device
from toprl_export.evaluation.questions import UNPRUNED, TaskQuestions, choose_tasks, draw_questions, no_correct_answer
from toprl_export.evaluation.tables import csv_text
from toprl_export.files import write_bytes_atomic, write_text_atomic
from toprl_export.models.adapter import LVLMAdapter
from toprl_export.models.agreement import require_attention
from toprl_export.models.load import load_model
from toprl_export.places import check_fillable, resolved, taken
from toprl_export.pruning.baselines.specs import ORACLE, baseline_spec
from toprl_export.pruning.schedule import DEFAULT_DECAY
from toprl_export.pruning.scorer import make_scorer
from toprl_export.tasks.registry import TASKS

MARKDOWN_FILE = "compare.md"
CSV_FILE = "compare.csv"
PICTURE_FILE = "pareto.png"
_FILES = (MARKDOWN_FILE, CSV_FILE, PICTURE_FILE, JSON_FILE, TUNING_FILE, ANSWERS_FILE)
# What `toprl_export.files` leaves of these when it is killed before the rename.
_LEFT_BY_A_KILL = re.compile(rf"\.({'|'.join(map(re.escape, _FILES))})\.partial-[0-9a-f]+")


@dataclass(frozen=True)
class Prepared:
    """A checked request, with its model and agents loaded and its questions drawn."""

    request: CompareRequest
    adapter: LVLMAdapter
    setting: ComparisonSetting
    tasks: tuple[TaskQuestions, ...]
    agents: tuple[ComparedAgent, ...]
    grid: Grid

    @property
    def store(self) -> CellStore:
        """Where results of cells are kept."""
        return CellStore(self.request.output_dir / CELLS_FOLDER)


def compare(request: CompareRequest) -> Comparison:
    """Answer every task's questions with every method at every budget, and write what follows from it.

    Cells whose results the output directory holds already are not measured again; Ctrl-C loses no finished cell.

    Returns:
        what was found; ``compare.md``, ``compare.csv``, ``compare.json`` and ``pareto.png`` show the same, and
        ``answers.json.gz`` holds every answer.

    Raises:
        UserError: a name is unknown, an agent fits neither model nor tasks, no method can meet a budget, the unpruned
            model has no correct answer on a task, or the output directory holds something else.
        MissingExtraError: an optional package is missing.
    """
    with taken(request.output_dir):
        prepared = prepare(request)
        if request.tune:
            prepared = with_tuned_rivals(prepared)
        correct = measure(prepared)
        latency = time_methods(prepared) if request.iterations else None
        comparison = assemble(prepared, correct, latency)
        write_answers(request.output_dir / ANSWERS_FILE, Answers.of(prepared.grid.cells, correct, request.seed))
        write_outputs(request.output_dir, comparison)
    return comparison


def prepare(request: CompareRequest) -> Prepared:
    """Load and check everything without measuring anything; see :func:`compare`."""
    check_directory(request.output_dir)
    check_fillable(request.output_dir)
    agents = find_agents(request.agents)
    tasks = choose_tasks(request.tasks, [one.task for one in agents])
    adapter = load_model(request.model, device=torch_device(request.device))
    check_agents(agents, adapter, [task.name for task in tasks])
    setting = ComparisonSetting(
        model=request.model,
        model_fingerprint=adapter.answering_fingerprint,
        device=str(adapter.device),
        dtype=str(adapter.dtype).removeprefix("torch."),
        seed=request.seed,
    )
    questions = tuple(draw_questions(task, request.seed, request.limit) for task in tasks)
    grid = build_grid(request, adapter, setting, questions, agents)
    for spec in map(baseline_spec, request.baseline_names):
        if spec.buildable:  # the others read no attention
            require_attention(adapter, make_scorer(spec.scorer).needs)
    return Prepared(request, adapter, setting, questions, agents, grid)


def with_tuned_rivals(prepared: Prepared) -> Prepared:
    """The same request with the rivals' schedules chosen on training questions; writes ``tuning.json``.

    Its cells are kept like all others, so that a repeated command chooses without measuring.

    Raises:
        UserError: see `CellRunner`.
    """
    request = prepared.request
    ground = tuning_ground(prepared)
    tuning = tune(ground, request.baseline_names, request.budgets, lambda cells: _compute(prepared, cells, "tuning"))
    write_tuning(request.output_dir / TUNING_FILE, tuning)
    grid = build_grid(request, prepared.adapter, prepared.setting, prepared.tasks, prepared.agents, tuning)
    return replace(prepared, grid=grid)


def tuning_ground(prepared: Prepared) -> TuningGround:
    """What rivals are tuned for. Stages of methods whose papers name none are the model's default, not the agents', so
    that what was measured before the agents were trained still holds."""
    request, adapter = prepared.request, prepared.adapter
    tasks = [TASKS.get(task.name) for task in prepared.tasks]
    return TuningGround(
        setting=prepared.setting,
        visual_tokens=adapter.visual_tokens,
        decoder_layers=adapter.shape.layers,
        stage_layers=adapter.default_stage_layers,
        decay=DEFAULT_DECAY,
        tasks=tuple(draw_questions(task, request.seed, request.tune, TUNING_SPLIT) for task in tasks),
    )


def measure(prepared: Prepared) -> list[Correctness]:
    """Which questions every cell answered correctly, in the grid's order.

    The unpruned model goes first: where it has no correct answer there is nothing to compare with.

    Raises:
        UserError: the unpruned model has no correct answer on a task, or see `CellRunner`.
    """
    cells = prepared.grid.cells
    unpruned = [cell for cell in cells if cell.kind == "unpruned"]
    found = dict(zip(unpruned, _compute(prepared, unpruned, "unpruned"), strict=True))
    for cell, correct in found.items():
        if not correct.any():
            raise no_correct_answer(cell.task, cell.questions)
    pruned = [cell for cell in cells if cell.kind != "unpruned"]
    found |= zip(pruned, _compute(prepared, pruned, "cells"), strict=True)
    return [found[cell] for cell in cells]


def _compute(prepared: Prepared, cells: Sequence[MethodCell], what: str) -> list[Correctness]:
    jobs = prepared.request.jobs
    # A worker process loads the model itself: weights are not sent between processes.
    opener = OpenCellRunner(prepared.setting) if jobs > 1 else lambda: CellRunner(prepared.adapter)
    results = compute_cells(cells, prepared.store, opener, jobs, what)
    return [cell.correct(result) for cell, result in zip(cells, results, strict=True)]


def time_methods(prepared: Prepared) -> LatencyTable:
    """Prefill latency of every method and budget, in this process alone."""
    request = prepared.request
    threads = request.threads or usable_cores()
    cell = latency_cell(prepared.grid.cells, request.iterations, prepared.setting.device, threads)
    return measure_latency(prepared.adapter, cell, prepared.store)


def assemble(prepared: Prepared, correct: Sequence[Correctness], latency: LatencyTable | None) -> Comparison:
    """Estimates, margins and provenance."""
    request, adapter = prepared.request, prepared.adapter
    findings = Findings(prepared.grid.cells, correct, request.seed)
    columns = [TaskColumn(task.name, task.level, task.count) for task in prepared.tasks]
    return Comparison(
        provenance=Provenance.today(adapter, request.seed, request.command),
        # Perception before reasoning, as the alphabet has it.
        tasks=tuple(sorted(columns, key=lambda column: column.level)),
        methods=_methods(prepared),
        budgets_kept=request.budgets,
        entries=findings.entries(),
        averages=findings.averages(),
        margins=all_margins(findings),
        gaps=prepared.grid.gaps,
        latency=latency,
        tuning_questions=request.tune or None,
    )


def _methods(prepared: Prepared) -> tuple[MethodRow, ...]:
    """The rows of the tables: unpruned, baselines, agents, oracle."""
    names = prepared.request.baseline_names
    agents: dict[str, list[AgentNote]] = {}
    for one in prepared.agents:
        note = AgentNote(one.task, one.seed, one.agent.fingerprint, str(one.directory))
        agents.setdefault(one.method, []).append(note)
    kinds: list[tuple[str, MethodKind]] = [(UNPRUNED, "unpruned")]
    tuned = tuned_names(names) if prepared.request.tune else ()
    for name in names:
        kinds += [(name, "baseline")] if name != ORACLE else []
        kinds += [(per_task(name), "baseline per task")] if name in tuned else []
    kinds += [(name, "agent") for name in agents]
    kinds += [(ORACLE, "oracle")] if ORACLE in names else []
    return tuple(MethodRow(name, kind, tuple(agents.get(name, ()))) for name, kind in kinds)


def check_directory(directory: Path) -> None:
    """Refuse an output directory that holds anything but an earlier comparison, finished or not.

    Raises:
        UserError: it does, or is no directory.
    """
    directory = resolved(directory)
    if not os.path.exists(directory):  # unlike Path.exists it answers for names that are too long, too
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file, expected a directory: choose another --output-dir")
    names = sorted(path.name for path in directory.iterdir())
    others = [name for name in names if name not in (*_FILES, CELLS_FOLDER) and not _LEFT_BY_A_KILL.fullmatch(name)]
    if others:
        raise UserError(
            f"{directory} holds something else ({others[0]}), so it is left alone: choose another --output-dir"
        )
    begun = (directory / CELLS_FOLDER).is_dir()
    if names and not begun:
        # Without cells only the JSON file of a finished comparison shows that these files are ours to replace.
        read_comparison(directory / JSON_FILE)


def write_outputs(directory: Path, comparison: Comparison) -> None:
    """Write tables and picture in the place of earlier ones, each whole or not at all, the JSON file last.

    Raises:
        UserError: they cannot be written there.
    """
    write_text_atomic(directory / MARKDOWN_FILE, render_markdown(comparison, PICTURE_FILE))
    write_text_atomic(directory / CSV_FILE, csv_text(csv_records(comparison)))
    write_bytes_atomic(directory / PICTURE_FILE, pareto_png(comparison))
    write_comparison(directory / JSON_FILE, comparison)
