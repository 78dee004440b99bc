"""``toprl-export build``: export a model with agents or a baseline as engines, into a bundle."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprl_export.cli.arguments import (
    Subparsers,
    add_config,
    add_dry_run,
    add_json,
    add_model,
    add_output_dir,
    add_overwrite,
    budgets,
    command_line,
)
from toprl_export.engine import BUILDABLE_BASELINES, GRAPHS, PRECISIONS, ConfigurableEngine
from toprl_export.trainer import DEFAULT_BUDGETS_KEPT

if TYPE_CHECKING:
    from toprl_export.build import PreparedBuild
    from toprl_export.bundle import Bundle


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``build`` command."""
    parser = subparsers.add_parser("build")
    add_model(parser)
    scored = parser.add_mutually_exclusive_group()
    scored.add_argument(
        "--agent",
        type=Path,
        action="append",
        metavar="DIR",
        help="an agent that `toprl-export train` wrote; repeat it to serve several tasks "
        "(default: agents/TASK of the first task)",
    )
    scored.add_argument(
        "--baseline",
        metavar="NAME",
        help=f"an untrained method in the place of agents, for every task: {', '.join(BUILDABLE_BASELINES)}",
    )
    parser.add_argument(
        "--budget-kept",
        type=budgets,
        metavar="N[,N]",
        help="visual tokens kept, averaged over all decoder layers (default: the agents' own budgets; "
        f"{','.join(map(str, DEFAULT_BUDGETS_KEPT))} for a baseline)",
    )
    parser.add_argument(
        "--stage-layers",
        type=_layers,
        metavar="L[,L]",
        help="decoder layers before which a baseline prunes (default: its own, or where agents do)",
    )
    parser.add_argument("--engine", default="onnx", metavar="ENGINE", help="see `toprl-export doctor` (default: onnx)")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="TYPE",
        help=f"{', '.join(PRECISIONS)}; the engine onnx builds the first two (default: %(default)s)",
    )
    parser.add_argument("--static-k", action="store_true", help="bake the one budget into the graph")
    add_output_dir(parser)
    add_overwrite(parser)
    add_dry_run(parser)
    add_json(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    """Build; 0 when the bundle is there (or, for a dry run, could be built)."""
    from toprl_export.build import prepare, up_to_date, write_bundle
    from toprl_export.bundle import MANIFEST_NAME
    from toprl_export.files import check_replaceable

    agents = args.agent or ([_default_agent()] if args.baseline is None else [])
    output_dir: Path = args.output_dir or Path("engines") / (args.baseline or agents[0].resolve().name)
    check_replaceable(output_dir.resolve(), overwrite=True, marker=MANIFEST_NAME)
    prepared = prepare(
        args.model,
        agents,
        args.budget_kept,
        args.engine,
        args.precision,
        args.static_k,
        baseline=args.baseline,
        stage_layers=args.stage_layers,
    )
    current = up_to_date(prepared, output_dir)
    if not current:
        check_replaceable(output_dir.resolve(), args.overwrite, marker=MANIFEST_NAME)
    if args.dry_run:
        _say(args.json, {"status": "up-to-date" if current else "dry-run", **preview(prepared, output_dir)}, _preview)
        return 0
    if current:
        _say(args.json, outcome(current, "up-to-date"), lambda done: f"up to date: {done['bundle']}")
        return 0
    print(f"building {output_dir} with {prepared.engine.name}, {args.precision} …", file=sys.stderr)
    bundle = write_bundle(prepared, output_dir, args.overwrite, command_line())
    _say(args.json, outcome(bundle, "built"), lambda done: _describe(bundle))
    return 0


def preview(prepared: PreparedBuild, output_dir: Path) -> dict[str, Any]:
    """What would be built, as a JSON object."""
    request, engine = prepared.request, prepared.engine
    return {
        "bundle": str(output_dir),
        "engine": engine.name,
        "precision": request.precision,
        "graphs": list(GRAPHS),
        "model": request.adapter.model_id,
        "tasks": [agent.record.task for agent in request.agents],
        "baseline": request.baseline,
        "plan": request.plan.to_json(),
        "weight_bytes": prepared.weight_bytes,
        "plans": engine.preview(request) if isinstance(engine, ConfigurableEngine) else None,
    }


def outcome(bundle: Bundle, status: str) -> dict[str, Any]:
    """What is there now, as a JSON object."""
    manifest = bundle.manifest
    return {
        "status": status,
        "bundle": str(bundle.dir),
        "tasks": list(manifest.tasks),
        "baseline": manifest.baseline,
        "budgets_kept": list(manifest.budgets_kept),
        "bytes": sum(file.size for file in manifest.files),
    }


def _default_agent() -> Path:
    from toprl_export.tasks.registry import TASKS

    return Path("agents") / TASKS.names()[0]


def _say(as_json: bool, payload: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> None:
    print(json.dumps({"format": "toprl-export/build", "version": 1, **payload}, indent=2) if as_json else text(payload))


def _preview(found: dict[str, Any]) -> str:
    plan = found["plan"]
    tasks = ", ".join(found["tasks"]) or f"all, by the baseline {found['baseline']}"
    stages = ", ".join(f"{stage['site']} ({stage['scorer']})" for stage in plan["stages"])
    lines = [
        f"{'up to date' if found['status'] == 'up-to-date' else 'would build'}: {found['bundle']}",
        f"  engine     {found['engine']}, {found['precision']}",
        f"  graphs     {', '.join(found['graphs'])}",
        f"  model      {found['model']}: {plan['visual_tokens']} visual tokens, {plan['decoder_layers']} layers",
        f"  tasks      {tasks}",
        f"  stages     {stages}",
    ]
    for schedule in plan["schedules"]:
        counts = ", ".join(map(str, schedule["keep_counts"]))
        lines.append(f"  budget     {schedule['budget_kept']} kept: {counts} (average {schedule['average_kept']:.1f})")
    lines.append(f"  weights    about {found['weight_bytes'] / 1e6:.1f} MB")
    return "\n".join(lines)


def _describe(bundle: Bundle) -> str:
    manifest = bundle.manifest
    size = sum(file.size for file in manifest.files) / 1e6
    budgets_kept = ", ".join(map(str, manifest.budgets_kept))
    tasks = ", ".join(manifest.tasks) or f"all, by the baseline {manifest.baseline}"
    return (
        f"bundle: {bundle.dir} ({size:.1f} MB; tasks {tasks}; budgets kept {budgets_kept} "
        f"of {manifest.model.visual_tokens})\n"
        f"next: toprl-export validate {bundle.dir} --task {bundle.task()}"
    )


def _layers(text: str) -> tuple[int, ...]:
    """An argparse type: layers counted from 0, separated by commas."""
    if not re.fullmatch(r"\d+(,\d+)*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} names no layers, expected such as 0,2,5")
    return tuple(map(int, text.split(",")))
