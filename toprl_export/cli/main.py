"""The ``toprl-export`` program: picks the command, and turns every outcome into a line and an exit code."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import click

from toprl_export.cli.command import LazyGroup, Reporting, debug_option
from toprl_export.cli.output import print_json
from toprl_export.errors import UserError, is_utf8, missing_extra, one_line
from toprl_export.files import disk_full_error
from toprl_export.registry import unknown_name

PROGRAM = "toprl-export"
COMMANDS = {
    "train": "train a pruning agent for one task",
    "build": "export model and agents as engines, into a bundle",
    "validate": "measure a bundle against the reference model and gate it",
    "compare": "compare pruning methods on tasks and budgets, as tables and plots",
    "run": "answer a question about an image with a bundle",
    "inspect": "show what a bundle, an agent, a plan or a report holds",
    "analyze": "measure where pruning hurts: cliff, sensitivity, transfer, ablation",
    "visualize": "draw the visual tokens each stage keeps",
    "tasks": "list the tasks",
    "models": "list the models",
    "doctor": "report what is installed, and what each extra and engine still needs",
    "completion": "print the script that completes commands and flags in a shell",
}
"""Every command and its help line; ``toprl_export.cli.<command>`` has it as ``command`` and is imported when used."""

EXIT_USER_ERROR = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
EXIT_TERMINATED = 143
COMPLETE_VARIABLE = "_TOPRL_EXPORT_COMPLETE"
"""Set by the script of ``toprl-export completion`` when the shell asks for completions."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system or container sends it: everything is cleaned up as it is on Ctrl-C."""


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"{PROGRAM} {version(PROGRAM)}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    kind="command",
    table=COMMANDS,
    targets={name: f"toprl_export.cli.{name}:command" for name in COMMANDS},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    epilog=f"{PROGRAM} COMMAND --help explains a command.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="show the version"
)
@click.pass_context
def program(ctx: click.Context) -> None:
    """Learned visual-token pruning, from training to a validated engine."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(EXIT_USER_ERROR)


program.params.append(debug_option())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        the exit code: 0 done or passed, 1 a gate failed, 2 the user's mistake, 130 interrupted, 141 the reader
        of the output went away, 143 terminated, 70 a bug (with its traceback).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Looked up before parsing, so that parsing errors too are reported in the requested form.
    settings = Reporting(debug="--debug" in arguments, as_json="--json" in arguments)
    with _Outcome(settings) as outcome, _terminating():
        _print_on_any_terminal()
        _check_utf8(arguments)
        outcome.code = _run(arguments, settings)
        if sys.stdout is not None:  # as it is where the shell closed it
            sys.stdout.flush()
    return outcome.code


def _print_on_any_terminal() -> None:
    """Where a terminal's encoding lacks a character, print its escape instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _check_utf8(arguments: Sequence[str]) -> None:
    """Refuse names and texts that no record could hold, before any work.

    Raises:
        UserError: an argument or the working directory's name is not UTF-8.
    """
    for what, text in (*(("the argument", argument) for argument in arguments), ("the working directory", os.getcwd())):
        if not is_utf8(text):
            raise UserError(f"{what} {text!r} is not UTF-8, so no file could record it: use another name or text")


@contextmanager
def _terminating() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM within the block, unless it was ignored or the program is somebody's thread."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _run(arguments: list[str], settings: Reporting) -> int:
    instruction = os.environ.get(COMPLETE_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(program, {}, PROGRAM, COMPLETE_VARIABLE, instruction)
    # https://no-color.org; None colours what goes to a terminal. Not click's own `main`, which has other exit codes.
    colour = False if os.environ.get("NO_COLOR") else None
    with program.make_context(PROGRAM, arguments, obj=settings, color=colour) as ctx:
        return program.invoke(ctx) or 0


class _Outcome:
    """Holds the exit code of its block, and sets it from whatever the block raised.

    A context manager, because every exception that leaves the program has its code: Python's own exit code for an
    uncaught one is 1, which here means that a gate failed.
    """

    def __init__(self, settings: Reporting) -> None:
        self._settings = settings
        self.code = 0

    def __enter__(self) -> _Outcome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        self.code, message = _explain(error)
        if message:
            try:
                self._report(error, message)
            except BrokenPipeError:
                _discard_output()
        return True

    def _report(self, error: BaseException, message: str) -> None:
        if self._settings.debug or self.code == EXIT_BUG:
            traceback.print_exception(error)
        prefix = "" if self.code in (EXIT_INTERRUPTED, EXIT_TERMINATED) else click.style("error: ", fg="red", bold=True)
        click.echo(prefix + message, err=True, color=False if os.environ.get("NO_COLOR") else None)
        if self._settings.as_json:
            print_json({"error": {"message": message, "exit_code": self.code}})


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit code for an exception, and the line to print (empty: none)."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code, ""
    if isinstance(error, Terminated):
        return EXIT_TERMINATED, "terminated"
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return EXIT_INTERRUPTED, "interrupted"
    if isinstance(error, BrokenPipeError):
        _discard_output()
        return EXIT_BROKEN_PIPE, ""
    mistake = _mistake(error)
    if mistake:
        return EXIT_USER_ERROR, one_line(mistake)
    return EXIT_BUG, "this is a bug in toprl-export: please report it with the traceback above"


def _mistake(error: BaseException) -> str | None:
    """What a user did wrong or lacks, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, click.UsageError):
        return _usage_mistake(error)
    if isinstance(error, ModuleNotFoundError):
        missing = missing_extra(error)
        return str(missing) if missing else None
    if isinstance(error, OSError):
        full = disk_full_error(Path(error.filename or "."), error)
        return str(full) if full else None
    return None


def _usage_mistake(error: click.UsageError) -> str:
    """click's error in our words: what was wrong, what was expected, and where that is explained."""
    see = f"see {error.ctx.command_path} --help" if error.ctx else "see toprl-export --help"
    if isinstance(error, click.NoSuchOption):
        close = f"; did you mean {error.possibilities[0]}?" if error.possibilities else ":"
        return f"unknown option {error.option_name}{close} {see}"
    if not isinstance(error, click.BadParameter) or error.param is None:
        return f"{error.format_message().rstrip('.')}: {see}"
    param = error.param
    name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
    if isinstance(error, click.MissingParameter):
        return f"{name} is missing: {see}"
    if isinstance(param.type, click.Choice):
        value = re.match(r"'(.*)' is not one of", error.message)
        if value:
            return str(unknown_name(f"value of {name}", value[1], map(str, param.type.choices)))
    return f"{name}: {error.message.rstrip('.')}"


def _discard_output() -> None:
    """Send what is still buffered nowhere, so that the interpreter does not complain when it flushes at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
