"""``optimum-cli export toprl``: `toprl-export build` by Optimum's program, with the same options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from toprl_export.cli.build import command as build
from toprl_export.cli.command import Command
from toprl_export.cli.main import COMMANDS, PROGRAM, main, program


class TOPRLExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum has no types
    """The command that Optimum's program shows, parses and runs."""

    COMMAND = CommandInfo(name="toprl", help=f"{COMMANDS['build']} (toprl-export)")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Give Optimum's parser the options of ``build``, and the directory as its other exports take it."""
        parser.description = build.help
        parser.add_argument("output", nargs="?", metavar="DIR", help="the same as --output-dir")
        for heading, options in _sections():
            group = parser.add_argument_group(heading)
            for option, help in options:
                group.add_argument(*option.opts, help=help.replace("%", "%%"), **_taking(option))

    def run(self) -> None:
        """Run ``build`` and leave with its exit code."""
        words = ["build", *self.args.build_words]
        if self.args.output is not None:
            if "--output-dir" in words:
                self.parser.error(f"{self.args.output} and --output-dir are both given: leave one of the two out")
            words += ["--output-dir", self.args.output]
        sys.exit(main(words))


class _PassOn(argparse.Action):
    """Keeps a flag, spelled out, and its value for ``build``, which checks them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Append them to what came before."""
        taken = [values] if isinstance(values, str) else []
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), self.option_strings[-1], *taken])


def _taking(option: click.Option) -> dict[str, Any]:
    """How argparse takes an option."""
    common = {"action": _PassOn, "dest": "build_words", "default": []}
    if option.is_flag:
        return common | {"nargs": 0}
    choices = f"{{{','.join(option.type.choices)}}}" if isinstance(option.type, click.Choice) else None
    return common | {"metavar": option.metavar or choices or str(option.name).upper()}


def _sections() -> Iterator[tuple[str, list[tuple[click.Option, str]]]]:
    """Heading of every section of ``build --help``, and its options with their explanations."""
    assert isinstance(build, Command)  # all of this program's are
    top = click.Context(program, info_name=PROGRAM)
    with click.Context(build, info_name="build", parent=top, **build.context_settings) as ctx:
        for heading, params in build.sections(ctx).items():
            explained = [(param, param.get_help_record(ctx)) for param in params if isinstance(param, click.Option)]
            # argparse brings --help of its own.
            yield (
                heading,
                [(option, record[1]) for option, record in explained if record and "--help" not in option.opts],
            )
