"""``toprl-export tasks``: list the tasks, or draw samples of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from toprl_export.cli import options
from toprl_export.cli.command import INPUTS, OUTPUT, Command, argument, option
from toprl_export.cli.output import print_json, say
from toprl_export.errors import UserError
from toprl_export.files import write_bytes_atomic

if TYPE_CHECKING:
    from toprl_export.tasks.task import Task

DEFAULT_SHOWN = 8
MAX_SHOWN = 64


@click.command(
    "tasks",
    cls=Command,
    help="List the tasks, or draw samples of one.",
    examples=["tasks", "tasks mini-colour --show 12 --output samples.png"],
)
@argument(
    INPUTS,
    "name",
    required=False,
    metavar="[NAME]",
    help="only this task (default: all)",
    shell_complete=options.complete_from(options.task_names),
)
@option(
    INPUTS,
    "--split",
    type=click.Choice(("train", "held-out")),
    default="held-out",
    help="which samples are drawn",
)
@options.seed
@option(
    OUTPUT,
    "--show",
    type=options.POSITIVE,
    metavar="N",
    show_default=str(DEFAULT_SHOWN),
    help=f"draw N samples of task NAME into --output, at most {MAX_SHOWN}",
)
@options.picture(required=False, help="picture to draw samples of task NAME into")
@options.overwrite
@options.as_json
def command(
    name: str | None,
    split: Literal["train", "held-out"],
    seed: int,
    show: int | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Print the tasks, and write the picture where one is wanted."""
    from toprl_export.tasks.registry import TASKS

    _check(name, show, output, overwrite)
    tasks = [TASKS.get(one) for one in ([name] if name else TASKS.names())]
    if output:
        from toprl_export.tasks.contact_sheet import contact_sheet

        samples = list(tasks[0].samples(split, seed, show or DEFAULT_SHOWN))
        write_bytes_atomic(output, contact_sheet(samples))
    described = [_describe(task) for task in tasks]
    if as_json:
        print_json({"format": "toprl-export/tasks", "version": 1, "tasks": described})
        return
    say("\n".join(map(_line, described)))
    if output:
        say(f"samples: {output}")


def _check(name: str | None, show: int | None, output: Path | None, overwrite: bool) -> None:
    if output is None:
        if show is not None:
            raise UserError("--show needs a file to draw into: add --output FILE.png")
        return
    if name is None:
        raise UserError("--output draws samples of one task: name it, `toprl-export tasks NAME --output FILE.png`")
    options.check_picture(output, overwrite)
    if show is not None and show > MAX_SHOWN:
        raise UserError(f"--show {show} is more than a picture holds, expected 1 to {MAX_SHOWN}")


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
