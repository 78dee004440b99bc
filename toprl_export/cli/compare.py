"""``toprl-export compare``: methods × tasks × budgets on the same questions, as tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toprl_export.cli import options
from toprl_export.cli.command import BUDGETS, INPUTS, MEASUREMENT, Command, option
from toprl_export.cli.output import command_line, hint_to_continue, print_json, say, table_lines
from toprl_export.fields import to_json
from toprl_export.pruning.baselines.specs import BASELINES, ORACLE

if TYPE_CHECKING:
    from toprl_export.comparison.result import Comparison
    from toprl_export.comparison.runner import Prepared


@click.command(
    "compare",
    cls=Command,
    help="Compare pruning methods on tasks and budgets, as tables and plots.",
    examples=[
        "compare --agents 'agents/seed-*/*' --budget-kept 192,64 --tune 240 --limit 1000 --jobs 2",
        "compare --baselines fastv,visionzip --tasks mini-count --dry-run",
    ],
)
@options.model
@option(
    INPUTS,
    "--agents",
    several_words=True,
    metavar="[NAME=]DIR...",
    help="agent directories or quoted globs such as 'agents/*'; a method is named after its learner, or NAME; "
    "agents of one name and task are its seeds",
)
@option(
    INPUTS,
    "--baselines",
    type=options.NAMES,
    default="all",
    metavar="NAME[,NAME]",
    help=f"all, or some of {', '.join((*BASELINES, ORACLE))}; random is always included",
    shell_complete=options.complete_from(lambda: ("all", *BASELINES, ORACLE)),
)
@options.tasks(default="those of the agents, else all")
@option(
    BUDGETS,
    "--budget-kept",
    "budgets_kept",
    type=options.POSITIVES,
    default="192,64",
    metavar="N[,N]",
    help="visual tokens kept, averaged over all decoder layers",
)
@option(
    MEASUREMENT,
    "--limit",
    type=options.POSITIVE,
    default="1000",
    metavar="N",
    help="held-out questions per task",
)
@option(
    MEASUREMENT,
    "--random-draws",
    "draws",
    type=options.POSITIVE,
    default="3",
    metavar="N",
    help="draws of random pruning",
)
@option(
    MEASUREMENT,
    "--tune",
    type=options.NOT_NEGATIVE,
    default="0",
    metavar="N",
    help="training questions per task by which the baselines' schedules are chosen; 0 leaves them as published",
)
@option(
    MEASUREMENT,
    "--iterations",
    type=options.NOT_NEGATIVE,
    default="20",
    metavar="N",
    help="rounds of the prefill latency measurement; 0 skips it",
)
@options.jobs
@options.threads
@options.device
@options.seed
@options.output_dir(Path("comparison"))
@options.dry_run
@options.as_json
def command(dry_run: bool, as_json: bool, **settings: Any) -> None:
    """Compare, or say what would be."""
    from toprl_export.comparison.request import CompareRequest
    from toprl_export.comparison.runner import compare, prepare

    request = CompareRequest(**settings, command=command_line())
    if dry_run:
        found = preview(prepare(request))
        print_json(found) if as_json else say(_preview_text(found))
        return
    with hint_to_continue():
        comparison = compare(request)
    print_json(to_json(comparison)) if as_json else say(describe(comparison, request.output_dir))


def preview(prepared: Prepared) -> dict[str, Any]:
    """What would be measured, as a JSON object."""
    cells = prepared.grid.cells
    return {
        "format": "toprl-export/comparison-preview",
        "version": 1,
        "output_dir": str(prepared.request.output_dir),
        "model": prepared.request.model,
        "tasks": {task.name: task.count for task in prepared.tasks},
        "budgets_kept": list(prepared.request.budgets),
        "methods": list(dict.fromkeys(cell.method for cell in cells)),
        "cells": len(cells),
        "tuning_questions": prepared.request.tune,
        "measured_before": sum(prepared.store.load(cell) is not None for cell in cells),
        "gaps": [f"{gap.method}, {gap.task}, {gap.budget_kept} kept: {gap.reason}" for gap in prepared.grid.gaps],
    }


def describe(comparison: Comparison, directory: Path) -> str:
    """The averages as a table for the terminal, and where the rest is."""
    places = [(comparison.visual_tokens, comparison.reference)]
    places += [(budget, method) for budget in comparison.budgets_kept for method in comparison.pruned]
    rows: list[tuple[str, ...]] = [("kept", "method", "accuracy", "retention", "prefill ms")]
    for budget, method in places:
        average = comparison.average(method.name, budget)
        timed = comparison.latency.find(method.name, budget) if comparison.latency else None
        figures = (f"{average.accuracy:.1%}", f"{average.retention.value:.1%}") if average else ("-", "-")
        rows.append((str(budget), method.name, *figures, f"{timed.prefill_ms:.1f}" if timed else "-"))
    tables = f"{comparison.averaged_over}; tables: {directory / 'compare.md'}"
    return "\n".join([*table_lines(rows, "right"), tables])


def _preview_text(found: dict[str, Any]) -> str:
    tasks = ", ".join(f"{name} ({count:,})" for name, count in found["tasks"].items())
    lines = [
        f"would compare into {found['output_dir']}",
        f"  model      {found['model']}",
        f"  tasks      {tasks}",
        f"  budgets    {', '.join(map(str, found['budgets_kept']))} kept",
        f"  methods    {', '.join(found['methods'])}",
        f"  cells      {found['cells']}, of which {found['measured_before']} were measured before",
    ]
    if found["tuning_questions"]:
        lines.append(f"  tuning     {found['tuning_questions']} training questions a task first, in cells of their own")
    return "\n".join([*lines, *(f"  gap        {gap}" for gap in found["gaps"])])
