"""Options that several commands share, so that each is spelled, checked and explained once, and types of values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from toprl_export.cli.command import INPUTS, MACHINE, OUTPUT, Decorated, Option, Reporting, option
from toprl_export.cores import check_parallel
from toprl_export.errors import UserError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

T = TypeVar("T")

MAX_SEED = 2**32 - 1
PATH = click.Path(path_type=Path)


class Parsed(click.ParamType[Any]):
    """The type of a value that a function reads; its `ValueError` says what is wrong with it."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a text; anything else is a value already."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _named_value(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise ValueError(f"{text!r} is no option of an engine, expected NAME=VALUE")
    return name, value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _positive(text: str) -> int:
    value = _whole(text)
    if value < 1:
        raise ValueError(f"{value} is too small, expected at least 1")
    return value


def _budget(text: str) -> int | float:
    """A count, or a share such as 33%."""
    if not text.endswith("%"):
        return _positive(text)
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ValueError(f"{text!r} is no share of the visual tokens, expected one such as 33%")
    return share


def _not_negative(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _seed(text: str) -> int:
    value = _whole(text)
    if not 0 <= value <= MAX_SEED:
        raise ValueError(f"{value} is out of range, expected 0 to {MAX_SEED}")
    return value


def _layer(text: str) -> int:
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise ValueError(f"{text!r} is no decoder layer, expected numbers from 0 on, such as 0,2,5")
    return int(text)


def _limit(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{text!r} is not a limit, expected a number above 0 such as 0.97")
    return value


def _device(text: str) -> str:
    """The name of a device, in the form torch takes."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError(f"unknown device {text!r}, expected auto, cpu, cuda or cuda:N")
    return text


def _listed(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Reads values that are separated by commas."""
    return lambda text: tuple(parse(part.strip()) for part in text.split(","))


POSITIVE = Parsed("number", _positive)
NOT_NEGATIVE = Parsed("number", _not_negative)
SEED = Parsed("number", _seed)
LIMIT = Parsed("number", _limit)
DEVICE = Parsed("device", _device)
POSITIVES = Parsed("numbers", _listed(_positive))
BUDGET = Parsed("budget", _budget)
BUDGETS_KEPT = Parsed("budgets", _listed(_budget))
SEEDS = Parsed("numbers", _listed(_seed))
LAYERS = Parsed("layers", _listed(_layer))
NAMES = Parsed("names", _listed(str))


Completion = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


def complete_from(names: Callable[[], Iterable[str]]) -> Completion:
    """Completes a value, or the last of several with commas between them, from ``names``, called only then."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in names() if name.startswith(last)]

    return complete


def task_names() -> list[str]:
    """Names of the tasks."""
    from toprl_export.tasks.registry import TASKS

    return TASKS.names()


def engine_names() -> list[str]:
    """Names of the engines."""
    from toprl_export.engine import ENGINES

    return ENGINES.names()


def baseline_names() -> tuple[str, ...]:
    """Names of the baselines."""
    from toprl_export.pruning.baselines.specs import BASELINES

    return BASELINES


def _model_names() -> list[str]:
    from toprl_export.models.registry import NAMED_MODELS

    return list(NAMED_MODELS)


def _provider_names() -> list[str]:
    from toprl_export.cli.engine_command_line import load_command_lines

    lines = load_command_lines().loaded.values()
    return list(dict.fromkeys(name for line in lines for name in line.providers))


model = option(
    INPUTS,
    "--model",
    default="mini",
    metavar="MODEL",
    help="a model's name, Hugging Face id or directory; mini is the embedded one",
    shell_complete=complete_from(_model_names),
)
"""``--model``: id or path of the reference model (str)."""

seed = option(MACHINE, "--seed", type=SEED, default="0", metavar="N", help="seed of everything random")
"""``--seed``: 0 to 2**32 - 1 (int)."""

device = option(
    MACHINE,
    "--device",
    type=DEVICE,
    default="auto",
    metavar="DEVICE",
    help="auto, cpu, cuda or cuda:N",
    shell_complete=complete_from(lambda: ("auto", "cpu", "cuda")),
)
"""``--device``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` (str)."""


def _check_parallel(ctx: click.Context, param: click.Parameter, count: int | None) -> int | None:
    if not ctx.resilient_parsing:
        check_parallel(str(param.opts[0]), count)
    return count


threads = option(
    MACHINE,
    "--threads",
    type=POSITIVE,
    callback=_check_parallel,
    metavar="N",
    show_default="all cores",
    help="CPU threads",
)
"""``--threads``: CPU threads (int of at least 1, or None for the library's choice)."""

jobs = option(
    MACHINE,
    "--jobs",
    type=POSITIVE,
    callback=_check_parallel,
    default="1",
    metavar="N",
    help="processes of one CPU thread each that answer at the same time",
)
"""``--jobs``: processes (int of at least 1)."""

overwrite = option(OUTPUT, "--overwrite", is_flag=True, help="replace an earlier result of the same kind")
"""``--overwrite``: replace an earlier result of the same kind (bool)."""

dry_run = option(OUTPUT, "--dry-run", is_flag=True, help="check everything, report what would be done, write nothing")
"""``--dry-run``: check everything, say what would be done, write nothing (bool)."""


def task(help: str, default: str) -> Callable[[Decorated], Decorated]:
    """``--task``: name of a task (str, or None for ``default``, which is said in words)."""
    return option(
        INPUTS,
        "--task",
        metavar="TASK",
        show_default=default,
        help=help,
        shell_complete=complete_from(task_names),
    )


def tasks(default: str) -> Callable[[Decorated], Decorated]:
    """``--tasks``: names of tasks (tuple of str, or None for ``default``, which is said in words)."""
    return option(
        INPUTS,
        "--tasks",
        type=NAMES,
        metavar="TASK[,TASK]",
        show_default=default,
        help="all (whose data is installed), or some",
        shell_complete=complete_from(task_names),
    )


class _ProviderOption(Option):
    """``--provider``, whose help names what the installed engines take; they are imported only to show the help."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Flags and help."""
        from toprl_export.cli.engine_command_line import load_command_lines

        engines = load_command_lines().loaded.items()
        named = [f"for {name}: {', '.join(engine.providers)}" for name, engine in engines if engine.providers]
        self.help = "; ".join(["where the engine runs", *named])
        return super().get_help_record(ctx)


def provider(default: str) -> Callable[[Decorated], Decorated]:
    """``--provider``: the engine's name for where it runs (str, or None for ``default``, which is said in words)."""
    return click.option(
        "--provider",
        cls=_ProviderOption,
        section=MACHINE,
        metavar="NAME",
        show_default=default,
        shell_complete=complete_from(_provider_names),
    )


def _as_mapping(ctx: click.Context, param: click.Parameter, value: tuple[tuple[str, str], ...]) -> dict[str, str]:
    del ctx
    found = dict(value)
    if len(found) < len(value):
        names = [name for name, _ in value]
        twice = next(name for name in names if names.count(name) > 1)
        raise click.BadParameter(f"{twice!r} is given twice", param=param)
    return found


class _EngineOptionsOption(Option):
    """``--engine-option``, whose help names what the installed engines take."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Flags and help."""
        from toprl_export.cli.engine_command_line import load_command_lines

        engines = load_command_lines().loaded.items()
        named = [
            f"for {name}: " + ", ".join(f"{key}={'|'.join(values)}" for key, values in engine.run_options.items())
            for name, engine in engines
            if engine.run_options
        ]
        self.help = "; ".join(["what only one engine can be told, repeatable", *named])
        return super().get_help_record(ctx)


engine_options = click.option(
    "--engine-option",
    "engine_options",
    cls=_EngineOptionsOption,
    section=MACHINE,
    type=Parsed("name=value", _named_value),
    multiple=True,
    callback=_as_mapping,
    metavar="NAME=VALUE",
)
"""``--engine-option``, repeatable: names and values (dict[str, str])."""


def output_dir(default: Path | None = None, otherwise: str | None = None) -> Callable[[Decorated], Decorated]:
    """``--output-dir``: where the result goes (Path, or None where the command derives it as ``otherwise`` says)."""
    return option(
        OUTPUT,
        "--output-dir",
        type=PATH,
        default=default,
        show_default=otherwise or True,
        metavar="DIR",
        help="directory to write the result to",
    )


def picture(required: bool, help: str) -> Callable[[Decorated], Decorated]:
    """``--output``: a PNG file to write (Path or None)."""
    return option(OUTPUT, "--output", type=PATH, required=required, metavar="FILE.png", help=help)


def _report_as_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.ensure_object(Reporting).as_json |= value
    return value


as_json = option(
    OUTPUT, "--json", "as_json", is_flag=True, callback=_report_as_json, help="print one JSON object, also for errors"
)
"""``--json``: print one JSON object instead of text (bool, called ``as_json``)."""


def check_picture(output: Path, overwrite: bool) -> None:
    """Refuse a file that :func:`picture` cannot write.

    Raises:
        UserError: it is not called ``.png``, cannot be written, or is there and shall not be overwritten.
    """
    from toprl_export.places import check_writable, resolved

    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output} is not a PNG file's name: end it in .png")
    check_writable(output)
    place = resolved(output)
    if place.exists() and not place.is_file():
        raise UserError(f"{output} is no file that can be replaced: choose another --output")
    if place.exists() and not overwrite:
        raise UserError(f"{output} is already there: add --overwrite to replace it or choose another --output")
