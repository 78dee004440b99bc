"""Commands whose help has sections and examples, and whose flags may stand in a file."""

from __future__ import annotations

import importlib
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from toprl_export.cli.config import read_defaults
from toprl_export.cli.output import log_on_stderr
from toprl_export.registry import unknown_name

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

INPUTS, BUDGETS, TRAINING, MEASUREMENT, ENGINE = "Inputs", "Budgets", "Training", "Measurement", "Engine"
MACHINE, OUTPUT, GENERAL = "Machine", "Output", "General"
FIRST_SECTIONS = (INPUTS, BUDGETS, TRAINING, MEASUREMENT, ENGINE)
LAST_SECTIONS = (MACHINE, OUTPUT, GENERAL)
"""The order of sections in every help; those that only one command has stand between."""
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}


@dataclass
class Reporting:
    """How a command reports; the context's object, set by the flags that every command has.

    Attributes:
        debug: show the traceback of an error.
        as_json: an error is printed as a JSON object, too.
        log_level: of the log on standard error.
    """

    debug: bool = False
    as_json: bool = False
    log_level: int = logging.INFO


class Option(click.Option):
    """An option that stands in a section of the help.

    Args:
        section: the section's heading.
        several_words: whether one flag takes all words up to the next flag (``--agents A B``); implies ``multiple``.
    """

    def __init__(
        self, flags: Sequence[str], *, section: str, several_words: bool = False, multiple: bool = False, **more: Any
    ) -> None:
        super().__init__(flags, multiple=multiple or several_words, **more)
        self.section = section
        self.several_words = several_words

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Flags and help; click puts a default that is said in words into parentheses, which it does not need."""
        record = super().get_help_record(ctx)
        if record is None or not isinstance(self.show_default, str):
            return record
        return record[0], record[1].replace(f"[default: ({self.show_default})", f"[default: {self.show_default}")


class Argument(click.Argument):
    """A positional argument that is explained in a section of the help, as options are."""

    def __init__(self, name: Sequence[str], *, section: str, help: str, **more: Any) -> None:
        super().__init__(name, **more)
        self.section = section
        self.help = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The argument's name and what it is."""
        return self.make_metavar(ctx), self.help or ""


def option(section: str, *flags: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """A decorator that gives a command an `Option` in ``section``."""
    return click.option(*flags, cls=Option, section=section, **attributes)


def argument(section: str, name: str, **attributes: Any) -> Callable[[Decorated], Decorated]:
    """A decorator that gives a command an `Argument` in ``section``."""
    return click.argument(name, cls=Argument, section=section, **attributes)


class Command(click.Command):
    """A command with the general flags, sections in its help, and examples at its end.

    Args:
        examples: command lines without the program's name.
    """

    def __init__(self, name: str | None, *, examples: Sequence[str] = (), **more: Any) -> None:
        super().__init__(name, context_settings=dict(CONTEXT_SETTINGS), **more)
        self.examples = tuple(examples)
        self.params += _general_options()

    def section_of(self, param: click.Parameter, ctx: click.Context) -> str:
        """Heading of the section that a parameter is explained in."""
        return param.section if isinstance(param, Option | Argument) else GENERAL

    def sections(self, ctx: click.Context) -> dict[str, list[click.Parameter]]:
        """Parameters by heading, in the order of the help."""
        found: dict[str, list[click.Parameter]] = {}
        for param in self.get_params(ctx):
            found.setdefault(self.section_of(param, ctx), []).append(param)
        between = [heading for heading in found if heading not in (*FIRST_SECTIONS, *LAST_SECTIONS)]
        order = (*FIRST_SECTIONS, *between, *LAST_SECTIONS)
        return {heading: found[heading] for heading in order if heading in found}

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: arguments are written among the options of their section."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        for heading, params in self.sections(ctx).items():
            records = [record for param in params if (record := param.get_help_record(ctx))]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=32)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, one line each however narrow the terminal is, so that they can be copied."""
        program = ctx.find_root().info_name
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{program} {line}\n")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does, after every flag has been given its values."""
        return super().parse_args(ctx, self._one_value_a_flag(ctx, args))

    def _one_value_a_flag(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        """``args`` with flags of several words repeated before each of them.

        Raises:
            click.BadOptionUsage: another flag stands where a value should, which click would take for the value.
        """
        options = _by_flag(self.get_params(ctx))
        spelt, rest = list[str](), deque(args)
        while rest:
            word = rest.popleft()
            if word == "--":
                return [*spelt, word, *rest]
            taking = options.get(word)
            if taking is None or taking.is_flag or taking.count or not rest:
                spelt.append(word)
                continue
            if rest[0].partition("=")[0] in options and not ctx.resilient_parsing:
                raise click.BadOptionUsage(word, f"{word} needs a value, not the flag {rest[0]}", ctx)
            spelt += [word, rest.popleft()]
            while getattr(taking, "several_words", False) and rest and not rest[0].startswith("-"):
                spelt += [word, rest.popleft()]
        return spelt

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command with the log on standard error."""
        with log_on_stderr(ctx.ensure_object(Reporting).log_level):
            return super().invoke(ctx)


class LazyGroup(click.Group):
    """A group that imports the module of a command only when that command is used.

    Args:
        kind: what its commands are, in the singular; used in messages.
        table: help line by name of a command.
        targets: ``"package.module:attribute"`` by name of a command.
    """

    def __init__(
        self, name: str | None, *, kind: str, table: Mapping[str, str], targets: Mapping[str, str], **more: Any
    ) -> None:
        super().__init__(name, context_settings=dict(CONTEXT_SETTINGS), **more)
        self.kind, self.table, self.targets = kind, table, targets

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called ``cmd_name``, imported; None for an unknown name."""
        if cmd_name not in self.targets:
            return None
        module, _, attribute = self.targets[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` begin with.

        Raises:
            UserError: the name is unknown; the message lists the known ones.
        """
        if args[0] not in self.table and not ctx.resilient_parsing:
            raise unknown_name(self.kind, args[0], self.table)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, without importing a command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands that begin so, without importing one, and the group's flags."""
        from click.shell_completion import CompletionItem

        named = [CompletionItem(name, help=text) for name, text in self.table.items() if name.startswith(incomplete)]
        return [*named, *click.Command.shell_complete(self, ctx, incomplete)]


def debug_option() -> click.Option:
    """``--debug``, which the program and every command have."""

    def switch_on(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Reporting).debug = True

    return Option(
        ["--debug"],
        section=GENERAL,
        is_flag=True,
        expose_value=False,
        callback=switch_on,
        help="show the traceback of an error",
    )


def _general_options() -> list[click.Parameter]:
    return [
        Option(
            ["--config"],
            section=GENERAL,
            type=click.Path(path_type=Path),
            metavar="FILE",
            is_eager=True,  # so that its values are known when the other flags look for theirs
            expose_value=False,
            callback=_read_config,
            help="YAML file of flags and values; flags given here override it",
        ),
        Option(
            ["--quiet", "-q"],
            section=GENERAL,
            is_flag=True,
            expose_value=False,
            callback=_log_at(logging.WARNING),
            help="log warnings only",
        ),
        Option(
            ["--verbose", "-v"],
            section=GENERAL,
            is_flag=True,
            expose_value=False,
            callback=_log_at(logging.DEBUG),
            help="also log details",
        ),
        debug_option(),
    ]


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = read_defaults(path, _by_flag(ctx.command.get_params(ctx)))


def _log_at(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def set_level(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Reporting).log_level = level

    return set_level


def _by_flag(params: Sequence[click.Parameter]) -> dict[str, click.Option]:
    options = [param for param in params if isinstance(param, click.Option)]
    return {flag: option for option in options for flag in (*option.opts, *option.secondary_opts)}
