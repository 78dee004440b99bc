"""What commands print: JSON, tables, and the log on standard error."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import click

from toprl_export.errors import visible

LOGGED_PACKAGES = ("toprl_export", "toprl_trainers", "toprl_engines")
"""Whose log messages the command line shows; those of other libraries go where Python sends them by itself."""


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    # In the texts of a JSON object the parser of whoever reads it undoes these escapes.
    text = json.dumps(content, indent=2, ensure_ascii=False)
    click.echo("".join(sign if sign == visible(sign) else f"\\u{ord(sign):04x}" for sign in text))


def say(text: str = "", nl: bool = True, err: bool = False, **style: Any) -> None:
    """Print text for people, control characters spelled out; ``style`` as `click.style` has it."""
    click.secho(visible(text), nl=nl, err=err, **style)


def table_lines(rows: Sequence[Sequence[str]], align: Literal["left", "right"]) -> list[str]:
    """Rows as lines of columns, each as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        padded = [cell.ljust(width) if align == "left" else cell.rjust(width) for cell, width in cells]
        lines.append("  ".join(padded).rstrip())
    return lines


def command_line() -> str:
    """The command as typed, for records."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


@contextmanager
def hint_to_continue() -> Iterator[None]:
    """Say, when Ctrl-C ends the block, that a second run does not begin anew."""
    try:
        yield
    except KeyboardInterrupt:
        say("finished work is kept: run the same command again to continue", err=True)
        raise


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The line, control characters spelled out."""
        return visible(super().format(record))


@contextmanager
def log_on_stderr(level: int) -> Iterator[None]:
    """Show log messages of ``level`` and above on standard error, within the block.

    Only the command line does this: a library must not decide where the log of the program that uses it goes.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_VisibleFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    loggers = [logging.getLogger(name) for name in LOGGED_PACKAGES]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, earlier in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(earlier)
