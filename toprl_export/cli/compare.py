"""``toprl-export compare``: methods × tasks × budgets on the same questions, as tables and plots."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprl_export.cli.arguments import (
    Subparsers,
    add_config,
    add_device,
    add_dry_run,
    add_json,
    add_model,
    add_output_dir,
    add_seed,
    add_threads,
    budgets,
    command_line,
    positive_int,
)
from toprl_export.fields import to_json
from toprl_export.pruning.baselines.plans import BASELINES, ORACLE

if TYPE_CHECKING:
    from toprl_export.compare.request import CompareRequest
    from toprl_export.compare.result import Comparison
    from toprl_export.compare.runner import Prepared

DEFAULT_OUTPUT = Path("comparison")


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``compare`` command."""
    parser = subparsers.add_parser("compare")
    add_model(parser)
    parser.add_argument(
        "--agents",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]DIR",
        help="agent directories or quoted globs such as 'agents/*'; the method is called as its learner, or NAME; "
        "agents of one name and task are its seeds",
    )
    parser.add_argument(
        "--baselines",
        type=_names,
        default=("all",),
        metavar="NAME[,NAME]",
        help=f"all, or some of {', '.join((*BASELINES, ORACLE))}; random takes part always (default: all)",
    )
    parser.add_argument(
        "--tasks", type=_names, metavar="TASK[,TASK]", help="all, or some (default: those of the agents, else all)"
    )
    parser.add_argument(
        "--budget-kept",
        type=budgets,
        default=(192, 64),
        metavar="N[,N]",
        help="visual tokens kept, averaged over all decoder layers (default: 192,64)",
    )
    parser.add_argument(
        "--limit", type=positive_int, default=1000, metavar="N", help="held-out questions a task (default: 1000)"
    )
    parser.add_argument(
        "--random-draws", type=positive_int, default=3, metavar="N", help="draws of random pruning (default: 3)"
    )
    parser.add_argument(
        "--jobs",
        type=positive_int,
        default=1,
        metavar="N",
        help="processes of one CPU thread each that answer at the same time (default: 1)",
    )
    parser.add_argument(
        "--iterations",
        type=_not_negative,
        default=20,
        metavar="N",
        help="rounds of the prefill latency measurement, 0 to leave it out (default: 20)",
    )
    add_threads(parser)
    add_output_dir(parser, DEFAULT_OUTPUT)
    add_device(parser)
    add_seed(parser)
    add_json(parser)
    add_dry_run(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Compare, or say what would be; 0 when the tables are there."""
    from toprl_export.compare.runner import compare, prepare

    request = _request(args)
    if args.dry_run:
        found = preview(prepare(request))
        print(json.dumps(found, indent=2) if args.json else _preview_text(found))
        return 0
    try:
        comparison = compare(request)
    except KeyboardInterrupt:
        print("what was measured is kept: the same command goes on from here", file=sys.stderr)
        raise
    print(json.dumps(to_json(comparison), indent=2) if args.json else describe(comparison, request.output_dir))
    return 0


def _request(args: argparse.Namespace) -> CompareRequest:
    from toprl_export.compare.request import CompareRequest

    return CompareRequest(
        output_dir=args.output_dir,
        model=args.model,
        agents=tuple(args.agents),
        baselines=args.baselines,
        tasks=args.tasks,
        budgets_kept=args.budget_kept,
        limit=args.limit,
        draws=args.random_draws,
        seed=args.seed,
        jobs=args.jobs,
        iterations=args.iterations,
        threads=args.threads,
        device=args.device,
        command=command_line(),
    )


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
        "measured_before": sum(prepared.store.load(cell) is not None for cell in cells),
        "gaps": [f"{gap.method}, {gap.task}, {gap.budget_kept} kept: {gap.reason}" for gap in prepared.grid.gaps],
    }


def describe(comparison: Comparison, directory: Path) -> str:
    """The averages as a table for the terminal, and where the rest is."""
    head = ("kept", "method", "accuracy", "retention", "prefill ms")
    places = [(comparison.visual_tokens, comparison.reference)]
    places += [(budget, method) for budget in comparison.budgets_kept for method in comparison.pruned]
    rows = [head]
    for budget, method in places:
        average = comparison.average(method.name, budget)
        timed = comparison.latency.find(method.name, budget) if comparison.latency else None
        figures = (f"{average.accuracy:.1%}", f"{average.retention.value:.1%}") if average else ("-", "-")
        rows.append((str(budget), method.name, *figures, f"{timed.prefill_ms:.1f}" if timed else "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(f"{comparison.averaged_over}; tables: {directory / 'compare.md'}")
    return "\n".join(lines)


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
    return "\n".join([*lines, *(f"  gap        {gap}" for gap in found["gaps"])])


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
