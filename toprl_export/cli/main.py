"""The ``toprl-export`` program: picks the command, and turns every outcome into a line and an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from toprl_export.cli.arguments import Subparsers
from toprl_export.cli.config import apply_config
from toprl_export.errors import UserError, missing_extra
from toprl_export.files import disk_full_error
from toprl_export.registry import unknown_name

COMMANDS = {
    "train": "train a pruning agent for one task",
    "build": "export model and agents as engines, into a bundle",
    "validate": "measure a bundle against the reference model and gate it",
    "compare": "compare pruning methods on tasks and budgets, as tables and plots",
    "run": "answer a question about an image with a bundle",
    "inspect": "say what an agent or a bundle holds",
    "analyze": "measure where pruning hurts: cliff, sensitivity, transfer, ablation",
    "visualize": "draw the visual tokens each stage keeps",
    "tasks": "list the tasks",
    "models": "list the models",
    "doctor": "say what is installed and what each extra and engine needs",
}
"""Every command and its help line; ``toprl_export.cli.<command>`` is imported only when the command is used.

Such a module has ``add_parser(subparsers)``, which adds its arguments, and ``run(args) -> int``, the exit code.
"""

EXIT_USER_ERROR = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0 done or passed, 1 a gate failed, 2 the user's mistake, 130 interrupted, 141 the reader
        of the output went away, 70 a bug (with its traceback).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _Outcome(debug="--debug" in arguments) as outcome:
        outcome.code = _run(arguments)
        sys.stdout.flush()
    return outcome.code


class _Outcome:
    """Holds the exit code of its block, and sets it from whatever the block raised.

    A context manager, because every exception that leaves the program has its code: Python's own exit code for an
    uncaught one is 1, which here means that a gate failed.
    """

    def __init__(self, debug: bool) -> None:
        self._debug = debug
        self.code = 0

    def __enter__(self) -> _Outcome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        self.code, line = _explain(error)
        if line and (self._debug or self.code == EXIT_BUG):
            traceback.print_exception(error)
        if line:
            print(line, file=sys.stderr)
        return True


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code for an exception, and the line to print (empty: none)."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted"
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return EXIT_BROKEN_PIPE, ""
    mistake: UserError | None = None
    if isinstance(error, UserError):
        mistake = error
    elif isinstance(error, ModuleNotFoundError):
        mistake = missing_extra(error)
    elif isinstance(error, OSError):
        mistake = disk_full_error(Path(error.filename or "."), error)
    if mistake:
        return EXIT_USER_ERROR, "error: " + " ".join(str(mistake).split())
    return EXIT_BUG, "error: this is a bug in toprl-export: please report it with the traceback above"


def _discard_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")


def _run(arguments: list[str]) -> int:
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS)
    parser, commands = _top_parser()
    if command is None:
        parser.parse_args(arguments)
        parser.print_help()
        return EXIT_USER_ERROR
    position = arguments.index(command)
    parser.parse_args(arguments[:position])
    module = importlib.import_module(f"toprl_export.cli.{command}")
    module.add_parser(commands)
    chosen = commands.choices[command]
    chosen.allow_abbrev = False
    chosen.description = chosen.description or COMMANDS[command].capitalize() + "."
    _add_debug(chosen)
    code: int = module.run(chosen.parse_args(apply_config(chosen, arguments[position + 1 :])))
    return code


def _top_parser() -> tuple[argparse.ArgumentParser, Subparsers]:
    listed = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    parser: argparse.ArgumentParser = _Parser(
        prog="toprl-export",
        usage="toprl-export [--help] [--version] [--debug] COMMAND ...",
        description="Learned visual-token pruning, from training to a validated engine.",
        epilog=f"commands:\n{listed}\n\ntoprl-export COMMAND --help explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"toprl-export {version('toprl-export')}")
    _add_debug(parser)
    commands = parser.add_subparsers(prog="toprl-export", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser, commands


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


if __name__ == "__main__":
    sys.exit(main())
