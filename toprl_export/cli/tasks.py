"""``toprl-export tasks``: list the tasks, or draw samples of one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toprl_export.cli.arguments import Subparsers, add_json, add_overwrite, add_seed, positive_int
from toprl_export.errors import UserError
from toprl_export.files import write_bytes_atomic

if TYPE_CHECKING:
    from toprl_export.tasks.task import Task

DEFAULT_SHOWN = 8
MAX_SHOWN = 64


def add_parser(subparsers: Subparsers) -> None:
    """Add the ``tasks`` command."""
    parser = subparsers.add_parser("tasks")
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this task (default: all)")
    parser.add_argument(
        "--show",
        type=positive_int,
        metavar="N",
        help=f"draw N samples of task NAME into --output, at most {MAX_SHOWN} (default: {DEFAULT_SHOWN})",
    )
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="picture to draw samples of task NAME into")
    parser.add_argument("--split", choices=("train", "held-out"), default="held-out", help="default: held-out")
    add_seed(parser)
    add_overwrite(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tasks, and write the picture where one is asked for."""
    from toprl_export.tasks.registry import TASKS

    _check(args)
    tasks = [TASKS.get(name) for name in ([args.name] if args.name else TASKS.names())]
    if args.output:
        _write_sheet(tasks[0], args)
    described = [_describe(task) for task in tasks]
    if args.json:
        print(json.dumps({"format": "toprl-export/tasks", "version": 1, "tasks": described}, indent=2))
    else:
        print("\n".join(map(_line, described)))
        if args.output:
            print(f"samples: {args.output}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.output is None:
        if args.show is not None:
            raise UserError("--show needs a file to draw into: add --output FILE.png")
        return
    if args.name is None:
        raise UserError("--output draws samples of one task: name it, `toprl-export tasks NAME --output FILE.png`")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output} is not a PNG file's name: end it in .png")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"{args.output} is already there: add --overwrite to replace it or choose another --output")
    if args.show is not None and args.show > MAX_SHOWN:
        raise UserError(f"--show {args.show} is more than a picture holds, expected 1 to {MAX_SHOWN}")


def _write_sheet(task: Task, args: argparse.Namespace) -> None:
    from toprl_export.tasks.contact_sheet import contact_sheet

    samples = list(task.samples(args.split, args.seed, args.show or DEFAULT_SHOWN))
    write_bytes_atomic(args.output, contact_sheet(samples))


def _describe(task: Task) -> dict[str, Any]:
    """One task as a JSON object; the number of questions is None where its data is not installed."""
    missing = task.missing()
    questions = None if missing else task.question_count("held-out")
    return {
        "name": task.name,
        "level": task.level,
        "metric": task.metric,
        "description": task.description,
        "held_out_questions": None if missing else "unlimited" if questions is None else questions,
        "missing_extra": missing.extra if missing else None,
    }


def _line(described: dict[str, Any]) -> str:
    extra, questions = described["missing_extra"], described["held_out_questions"]
    held_out = f"needs [{extra}]" if extra else questions if isinstance(questions, str) else f"{questions:,}"
    columns = f"{described['name']:<14}{described['level']:<12}{described['metric']:<13}{held_out:<14}"
    return f"{columns}{described['description']}"
